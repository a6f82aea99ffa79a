// Deformable attention between torch and the kernels: checks, output tensors, scratch, threads, stream.
#include "fusion3d/deform_attn.h"

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fusion3d {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

DeformAttn inputs(
    const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference, const Tensor& offsets,
    const Tensor& logits, const std::optional<Tensor>& map_of_query) {
  check(value, "value", 4, value.scalar_type(), value);
  check(reference, "reference", 4, reference.scalar_type(), value);
  check(offsets, "offsets", 5, offsets.scalar_type(), value);
  check(logits, "logits", 4, logits.scalar_type(), value);
  DeformAttn in = {};
  in.dtype = dtype_of(value, "value");
  in.reference_dtype = dtype_of(reference, "reference");
  in.offset_dtype = dtype_of(offsets, "offsets");
  in.logit_dtype = dtype_of(logits, "logits");
  in.maps = value.size(0), in.area = value.size(1), in.heads = value.size(2), in.channels = value.size(3);
  in.queries = logits.size(0), in.num_levels = logits.size(2), in.points = logits.size(3);
  in.reference_levels = reference.size(1), in.anchors = reference.size(2);
  STD_TORCH_CHECK(
      spatial_shapes.size() == size_t(2 * in.num_levels) && in.num_levels >= 1 && in.num_levels <= kMaxDeformLevels,
      "fusion3d: spatial_shapes must hold rows and columns of each of the 1 to ", kMaxDeformLevels, " levels");
  int64_t area = 0;
  for (int64_t l = 0; l < in.num_levels; ++l) {
    const int64_t rows = spatial_shapes[2 * l], cols = spatial_shapes[2 * l + 1];
    STD_TORCH_CHECK(
        rows >= 1 && cols >= 1 && rows < kLargest && cols < kLargest && rows <= kLargest / cols,
        "fusion3d: a level must have at least one row and column, and less than 2^31 pixels");
    in.levels[l] = {int32_t(rows), int32_t(cols), area};
    area += rows * cols;
  }
  STD_TORCH_CHECK(area == in.area && area < kLargest, "fusion3d: value must be [N, pixels of all levels, heads, channels]");
  STD_TORCH_CHECK(
      logits.size(1) == in.heads && in.points >= 1, "fusion3d: logits must be [Q, heads, levels, points]");
  bool fits = offsets.size(4) == 2;
  for (int64_t d = 0; d < 4; ++d) fits = fits && offsets.size(d) == logits.size(d);
  STD_TORCH_CHECK(fits, "fusion3d: offsets must be [Q, heads, levels, points, 2] for logits without the last");
  STD_TORCH_CHECK(
      reference.size(0) == in.queries && (in.reference_levels == 1 || in.reference_levels == in.num_levels) &&
          in.anchors >= 1 && in.points % in.anchors == 0 && reference.size(3) == 2,
      "fusion3d: reference must be [Q, 1 or levels, a divisor of points, 2]");
  in.value = value.const_data_ptr();
  in.reference = reference.const_data_ptr();
  in.offsets = offsets.const_data_ptr();
  in.logits = logits.const_data_ptr();
  if (map_of_query.has_value()) {
    check(*map_of_query, "map_of_query", 1, ScalarType::Int, value);
    STD_TORCH_CHECK(map_of_query->size(0) == in.queries, "fusion3d: map_of_query must have one entry for each query");
    in.map_of_query = map_of_query->const_data_ptr<int32_t>();
  } else {
    STD_TORCH_CHECK(
        in.maps > 0 ? in.queries % in.maps == 0 : in.queries == 0,
        "fusion3d: without map_of_query every map must have equally many queries");
  }
  return in;
}

DeformAttnForward forward_args(
    const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference, const Tensor& offsets,
    const Tensor& logits, const std::optional<Tensor>& map_of_query, Tensor& out) {
  DeformAttnForward args = {inputs(value, spatial_shapes, reference, offsets, logits, map_of_query), nullptr};
  out = torch::stable::new_empty(value, {args.in.queries, args.in.heads, args.in.channels});
  args.out = out.mutable_data_ptr();
  return args;
}

typedef std::tuple<Tensor, Tensor, Tensor, Tensor> Grads;

DeformAttnBackward backward_args(
    const Tensor& grad, const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference,
    const Tensor& offsets, const Tensor& logits, const std::optional<Tensor>& map_of_query, Grads& grads) {
  const DeformAttn in = inputs(value, spatial_shapes, reference, offsets, logits, map_of_query);
  check(grad, "grad", 3, value.scalar_type(), value);
  STD_TORCH_CHECK(
      grad.size(0) == in.queries && grad.size(1) == in.heads && grad.size(2) == in.channels,
      "fusion3d: grad must be [Q, heads, channels]");
  using torch::stable::empty_like;
  grads = {empty_like(value), empty_like(reference), empty_like(offsets), empty_like(logits)};
  return {
      in,
      grad.const_data_ptr(),
      std::get<0>(grads).mutable_data_ptr(),
      std::get<1>(grads).mutable_data_ptr(),
      std::get<2>(grads).mutable_data_ptr(),
      std::get<3>(grads).mutable_data_ptr(),
  };
}

Tensor ms_deform_attn_cpu(
    const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference, const Tensor& offsets,
    const Tensor& logits, const std::optional<Tensor>& map_of_query) {
  Tensor out;
  const DeformAttnForward args = forward_args(value, spatial_shapes, reference, offsets, logits, map_of_query, out);
  Tensor scratch = new_scratch(value, deform_attn_scratch_cpu(args.in, false));
  deform_attn_forward_cpu(args, scratch.mutable_data_ptr(), parallel_for);
  return out;
}

Grads ms_deform_attn_backward_cpu(
    const Tensor& grad, const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference,
    const Tensor& offsets, const Tensor& logits, const std::optional<Tensor>& map_of_query) {
  Grads grads;
  const DeformAttnBackward args =
      backward_args(grad, value, spatial_shapes, reference, offsets, logits, map_of_query, grads);
  Tensor scratch = new_scratch(value, deform_attn_scratch_cpu(args.in, true));
  deform_attn_backward_cpu(args, scratch.mutable_data_ptr(), parallel_for);
  return grads;
}

#ifdef FUSION3D_WITH_CUDA
Tensor ms_deform_attn_cuda(
    const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference, const Tensor& offsets,
    const Tensor& logits, const std::optional<Tensor>& map_of_query) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Tensor out;
  const DeformAttnForward args = forward_args(value, spatial_shapes, reference, offsets, logits, map_of_query, out);
  check_launch(deform_attn_forward_cuda(args, current_stream(value)), "ms_deform_attn");
  return out;
}

Grads ms_deform_attn_backward_cuda(
    const Tensor& grad, const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference,
    const Tensor& offsets, const Tensor& logits, const std::optional<Tensor>& map_of_query) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Grads grads;
  const DeformAttnBackward args =
      backward_args(grad, value, spatial_shapes, reference, offsets, logits, map_of_query, grads);
  const DeformAttn& in = args.in;
  STD_TORCH_CHECK(
      logits.numel() < kLargest && in.maps * in.heads * deform_cells(in) < kLargest,
      "fusion3d: ms_deform_attn's gradient on CUDA takes less than 2^31 points, and less than 2^31 pixels of heads");
  const cudaStream_t stream = current_stream(value);
  launch_with_scratch(value, "ms_deform_attn_backward", [&](void* scratch, size_t* bytes) {
    return deform_attn_backward_cuda(args, scratch, bytes, stream);
  });
  return grads;
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor reference, Tensor offsets, Tensor logits, "
      "Tensor? map_of_query) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad, Tensor value, int[] spatial_shapes, Tensor reference, Tensor offsets, "
      "Tensor logits, Tensor? map_of_query) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&fusion3d::ms_deform_attn_cpu));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&fusion3d::ms_deform_attn_backward_cpu));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&fusion3d::ms_deform_attn_cuda));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&fusion3d::ms_deform_attn_backward_cuda));
}
#endif
