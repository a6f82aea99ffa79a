// Grouping and reduction of rows between torch and the kernels: checks, output tensors, scratch, threads, stream.
#include "fusion3d/segments.h"

#include <string>
#include <tuple>

#include "tensors.h"

namespace fusion3d {
namespace {

constexpr int64_t kRowGrain = 256;  // fewest rows worth a thread, backward

typedef std::tuple<Tensor, Tensor, Tensor, Tensor> Plan;

SegmentKeys keys_of(const Tensor& keys, int64_t num_keys, bool keep_empty) {
  const ScalarType dtype = keys.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Int || dtype == ScalarType::Long, "fusion3d: keys must be int32 or int64");
  check(keys, "keys", 1, dtype, keys);
  STD_TORCH_CHECK(keys.numel() < INT32_MAX, "fusion3d: keys must be fewer than 2^31 - 1");
  STD_TORCH_CHECK(
      num_keys >= 0 && (!keep_empty || num_keys < INT32_MAX) && (dtype == ScalarType::Long || num_keys <= INT32_MAX),
      "fusion3d: num_keys is out of range");
  return {keys.const_data_ptr(), dtype == ScalarType::Long, keys.numel(), num_keys, keep_empty};
}

SegmentOutputs new_outputs(const Tensor& keys, int64_t ordered, int64_t segments, Plan& plan) {
  const auto make = [&](int64_t size, ScalarType dtype) { return torch::stable::new_empty(keys, {size}, dtype); };
  auto& [order, ptr, key, segment] = plan;
  order = make(ordered, ScalarType::Int);
  ptr = make(segments + 1, ScalarType::Int);
  key = make(segments, keys.scalar_type());
  segment = make(keys.numel(), ScalarType::Int);
  return {
      order.mutable_data_ptr<int32_t>(),
      ptr.mutable_data_ptr<int32_t>(),
      key.mutable_data_ptr(),
      segment.mutable_data_ptr<int32_t>(),
  };
}

Reduce reduce_of(const std::string& name) {
  if (name == "sum") return Reduce::kSum;
  if (name == "mean") return Reduce::kMean;
  STD_TORCH_CHECK(name == "max", "fusion3d: reduce must be sum, mean or max");
  return Reduce::kMax;
}

SegmentReduce reduce_args(
    const Tensor& values, const Tensor& order, const Tensor& ptr, const Tensor& segment, const std::string& reduce,
    std::tuple<Tensor, Tensor>& result) {
  check(values, "values", 2, values.scalar_type(), values);
  check(order, "order", 1, ScalarType::Int, values);
  check(ptr, "ptr", 1, ScalarType::Int, values);
  check(segment, "segment", 1, ScalarType::Int, values);
  STD_TORCH_CHECK(ptr.numel() >= 1, "fusion3d: ptr must have one entry more than there are segments");
  STD_TORCH_CHECK(
      segment.numel() == values.size(0) && order.numel() <= values.size(0),
      "fusion3d: values must have the rows of the plan");
  const Reduce how = reduce_of(reduce);
  const int64_t segments = ptr.numel() - 1, channels = values.size(1);
  auto& [out, arg] = result;
  out = torch::stable::new_empty(values, {segments, channels});
  arg = torch::stable::new_empty(values, {how == Reduce::kMax ? segments : 0, channels}, ScalarType::Int);
  return {
      dtype_of(values, "values"),
      how,
      segments,
      channels,
      values.const_data_ptr(),
      order.const_data_ptr<int32_t>(),
      ptr.const_data_ptr<int32_t>(),
      out.mutable_data_ptr(),
      arg.mutable_data_ptr<int32_t>(),
  };
}

SegmentReduceBackward backward_args(
    const Tensor& grad, const Tensor& ptr, const Tensor& segment, const Tensor& arg, const std::string& reduce,
    Tensor& result) {
  check(grad, "grad", 2, grad.scalar_type(), grad);
  check(ptr, "ptr", 1, ScalarType::Int, grad);
  check(segment, "segment", 1, ScalarType::Int, grad);
  check(arg, "arg", 2, ScalarType::Int, grad);
  const Reduce how = reduce_of(reduce);
  STD_TORCH_CHECK(ptr.numel() == grad.size(0) + 1, "fusion3d: grad must have one row for each segment");
  STD_TORCH_CHECK(
      how != Reduce::kMax || arg.numel() == grad.numel(), "fusion3d: arg must have the shape of grad");
  result = torch::stable::new_empty(grad, {segment.numel(), grad.size(1)});
  return {
      dtype_of(grad, "grad"),
      how,
      segment.numel(),
      grad.size(1),
      grad.const_data_ptr(),
      ptr.const_data_ptr<int32_t>(),
      segment.const_data_ptr<int32_t>(),
      arg.const_data_ptr<int32_t>(),
      result.mutable_data_ptr(),
  };
}

Plan segment_plan_cpu(const Tensor& keys, int64_t num_keys, bool keep_empty) {
  const SegmentKeys input = keys_of(keys, num_keys, keep_empty);
  const Tensor scratch = new_scratch(keys, segment_scratch_bytes(input));
  const SegmentSort sort = segment_sort_cpu(input, parallel_for, scratch.mutable_data_ptr());
  Plan plan;
  segment_write_cpu(
      input, sort, parallel_for, new_outputs(keys, keep_empty ? input.rows : sort.inside, sort.segments, plan));
  return plan;
}

std::tuple<Tensor, Tensor> segment_reduce_cpu_op(
    const Tensor& values, const Tensor& order, const Tensor& ptr, const Tensor& segment, std::string reduce) {
  std::tuple<Tensor, Tensor> result;
  const SegmentReduce args = reduce_args(values, order, ptr, segment, reduce, result);
  parallel_for(0, kSegmentParts, 1, [&](int64_t begin, int64_t end) {
    const int64_t last = end == kSegmentParts ? args.segments : segment_part(args, end, kSegmentParts);
    segment_reduce_cpu(args, segment_part(args, begin, kSegmentParts), last);
  });
  return result;
}

Tensor segment_reduce_backward_cpu_op(
    const Tensor& grad, const Tensor& ptr, const Tensor& segment, const Tensor& arg, std::string reduce) {
  Tensor result;
  const SegmentReduceBackward args = backward_args(grad, ptr, segment, arg, reduce, result);
  segment_reduce_backward_prepare_cpu(args);
  parallel_for(
      0, args.rows, kRowGrain, [&](int64_t begin, int64_t end) { segment_reduce_backward_cpu(args, begin, end); });
  return result;
}

#ifdef FUSION3D_WITH_CUDA
Plan segment_plan_cuda(const Tensor& keys, int64_t num_keys, bool keep_empty) {
  const torch::stable::accelerator::DeviceGuard guard(keys.get_device_index());
  const SegmentKeys input = keys_of(keys, num_keys, keep_empty);
  const cudaStream_t stream = current_stream(keys);
  const Tensor scratch = launch_with_scratch(keys, "segment_plan", [&](void* memory, size_t* bytes) {
    return segment_sort_cuda(input, memory, bytes, stream);
  });
  int32_t counts[2] = {int32_t(input.rows), int32_t(num_keys)};
  if (!keep_empty) check_launch(segment_counts_cuda(input, scratch.const_data_ptr(), counts, stream), "segment_plan");
  Plan plan;
  const SegmentOutputs out = new_outputs(keys, counts[0], counts[1], plan);
  check_launch(segment_write_cuda(input, scratch.const_data_ptr(), out, stream), "segment_plan");
  return plan;
}

std::tuple<Tensor, Tensor> segment_reduce_cuda_op(
    const Tensor& values, const Tensor& order, const Tensor& ptr, const Tensor& segment, std::string reduce) {
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  std::tuple<Tensor, Tensor> result;
  const SegmentReduce args = reduce_args(values, order, ptr, segment, reduce, result);
  check_launch(segment_reduce_cuda(args, current_stream(values)), "segment_reduce");
  return result;
}

Tensor segment_reduce_backward_cuda_op(
    const Tensor& grad, const Tensor& ptr, const Tensor& segment, const Tensor& arg, std::string reduce) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  Tensor result;
  const SegmentReduceBackward args = backward_args(grad, ptr, segment, arg, reduce, result);
  check_launch(segment_reduce_backward_cuda(args, current_stream(grad)), "segment_reduce_backward");
  return result;
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def("segment_plan(Tensor keys, SymInt num_keys, bool keep_empty) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "segment_reduce(Tensor values, Tensor order, Tensor ptr, Tensor segment, str reduce) -> (Tensor out, Tensor arg)");
  m.def("segment_reduce_backward(Tensor grad, Tensor ptr, Tensor segment, Tensor arg, str reduce) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("segment_plan", TORCH_BOX(&fusion3d::segment_plan_cpu));
  m.impl("segment_reduce", TORCH_BOX(&fusion3d::segment_reduce_cpu_op));
  m.impl("segment_reduce_backward", TORCH_BOX(&fusion3d::segment_reduce_backward_cpu_op));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("segment_plan", TORCH_BOX(&fusion3d::segment_plan_cuda));
  m.impl("segment_reduce", TORCH_BOX(&fusion3d::segment_reduce_cuda_op));
  m.impl("segment_reduce_backward", TORCH_BOX(&fusion3d::segment_reduce_backward_cuda_op));
}
#endif
