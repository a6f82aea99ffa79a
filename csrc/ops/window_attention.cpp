// Window attention between torch and the kernels: checks, output tensors, threads, stream.
#include "fusion3d/window_attention.h"

#include <functional>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fusion3d {
namespace {

// Sums of the softmax are kept in what they are computed in.
ScalarType exact(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Rows may be a stride apart, as slices of one projection are; what is in a row lies side by side.
int64_t row_stride(const Tensor& tensor, const char* name, const Tensor& like) {
  check_kind(tensor, name, 3, like.scalar_type(), like);
  for (int64_t i = 0; i < 3; ++i)
    STD_TORCH_CHECK(tensor.size(i) == like.size(i), "fusion3d: ", name, " must have the shape of q");
  STD_TORCH_CHECK(
      tensor.numel() == 0 || ((tensor.size(2) == 1 || tensor.stride(2) == 1) &&
                              (tensor.size(1) == 1 || tensor.stride(1) == tensor.size(2))),
      "fusion3d: ", name, " must be contiguous in its heads and channels");
  return tensor.stride(0);
}

WindowInput input_args(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, const std::optional<Tensor>& order,
    double scale) {
  const int64_t q_stride = row_stride(q, "q", q), k_stride = row_stride(k, "k", q), v_stride = row_stride(v, "v", q);
  check(cu_seqlens, "cu_seqlens", 1, ScalarType::Int, q);
  STD_TORCH_CHECK(cu_seqlens.size(0) >= 1, "fusion3d: cu_seqlens must have one entry more than there are windows");
  if (order) check(*order, "order", 1, ScalarType::Int, q);
  STD_TORCH_CHECK(!q.is_cuda() || q.size(2) <= 256, "fusion3d: heads of more than 256 channels are for the CPU only");
  return {
      dtype_of(q, "q"),
      q.size(0),
      q.size(1),
      q.size(2),
      cu_seqlens.size(0) - 1,
      order ? order->size(0) : q.size(0),
      scale,
      cu_seqlens.const_data_ptr<int32_t>(),
      order ? order->const_data_ptr<int32_t>() : nullptr,
      q.const_data_ptr(),
      k.const_data_ptr(),
      v.const_data_ptr(),
      q_stride,
      k_stride,
      v_stride,
  };
}

// On the CPU the lists are cheap to read: a wrong one is an error. On CUDA, where nobody has read how far the windows
// reach, what lies beyond the rows is left out by the kernels, and every output is cleared before. Returns whether all rows
// are listed.
bool check_lists(const WindowInput& in) {
  bool ascending = in.cu_seqlens[0] == 0 && in.cu_seqlens[in.windows] == in.listed;
  for (int64_t w = 0; w < in.windows; ++w) ascending &= in.cu_seqlens[w] <= in.cu_seqlens[w + 1];
  STD_TORCH_CHECK(
      ascending, "fusion3d: cu_seqlens must ascend from 0 to the number of rows that are listed, ", in.listed);
  std::vector<bool> seen(in.order ? in.rows : 0);
  for (int64_t i = 0; in.order && i < in.listed; ++i) {
    const int64_t row = in.order[i];
    STD_TORCH_CHECK(row >= 0 && row < in.rows, "fusion3d: order must name rows of q, from 0 to ", in.rows - 1);
    STD_TORCH_CHECK(!seen[row], "fusion3d: order names row ", row, " twice");
    seen[row] = true;
  }
  return in.listed == in.rows;
}

// Rows that no window lists stay 0; where it is known that every row is listed, nothing needs to be cleared.
Tensor output(const Tensor& like, bool all_listed) {
  const auto shape = like.sizes();
  return all_listed ? torch::stable::new_empty(like, shape) : torch::stable::new_zeros(like, shape);
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& q, const WindowInput& in, bool all_listed, const std::function<void(const WindowForward&)>& run) {
  Tensor out = output(q, all_listed);
  const int64_t shape[] = {in.rows, in.heads};
  Tensor lse = all_listed ? torch::stable::new_empty(q, shape, exact(q))
                          : torch::stable::new_zeros(q, shape, exact(q));
  run({in, out.mutable_data_ptr(), lse.mutable_data_ptr()});
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& q, const Tensor& out, const Tensor& lse, const WindowInput& in, bool all_listed,
    void* delta, const std::function<void(const WindowBackward&)>& run) {
  check(grad, "grad", 3, q.scalar_type(), q);
  check(out, "out", 3, q.scalar_type(), q);
  check(lse, "lse", 2, exact(q), q);
  row_stride(grad, "grad", q);
  row_stride(out, "out", q);
  STD_TORCH_CHECK(lse.size(0) == in.rows && lse.size(1) == in.heads, "fusion3d: lse must be [N, heads]");
  Tensor grad_q = output(q, all_listed), grad_k = output(q, all_listed), grad_v = output(q, all_listed);
  run({in, out.const_data_ptr(), lse.const_data_ptr(), grad.const_data_ptr(), delta, grad_q.mutable_data_ptr(),
       grad_k.mutable_data_ptr(), grad_v.mutable_data_ptr()});
  return {grad_q, grad_k, grad_v};
}

std::tuple<Tensor, Tensor> window_attention_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, std::optional<Tensor> order,
    double scale) {
  const WindowInput in = input_args(q, k, v, cu_seqlens, order, scale);
  return forward(q, in, check_lists(in), [](const WindowForward& args) {
    window_attention_forward_cpu(args, parallel_for);
  });
}

std::tuple<Tensor, Tensor, Tensor> window_attention_backward_cpu_op(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const Tensor& cu_seqlens, std::optional<Tensor> order, double scale) {
  const WindowInput in = input_args(q, k, v, cu_seqlens, order, scale);
  return backward(grad, q, out, lse, in, check_lists(in), nullptr, [](const WindowBackward& args) {
    window_attention_backward_cpu(args, parallel_for);
  });
}

#ifdef FUSION3D_WITH_CUDA
std::tuple<Tensor, Tensor> window_attention_cuda(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, std::optional<Tensor> order,
    double scale) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const WindowInput in = input_args(q, k, v, cu_seqlens, order, scale);
  const cudaStream_t stream = current_stream(q);
  return forward(q, in, false, [&](const WindowForward& args) {
    check_launch(window_attention_forward_cuda(args, stream), "window_attention");
  });
}

std::tuple<Tensor, Tensor, Tensor> window_attention_backward_cuda_op(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const Tensor& cu_seqlens, std::optional<Tensor> order, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const WindowInput in = input_args(q, k, v, cu_seqlens, order, scale);
  const cudaStream_t stream = current_stream(q);
  Tensor delta = torch::stable::empty_like(lse);
  return backward(grad, q, out, lse, in, false, delta.mutable_data_ptr(), [&](const WindowBackward& args) {
    check_launch(window_attention_backward_cuda(args, stream), "window_attention_backward");
  });
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def(
      "window_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Tensor? order, float scale) -> (Tensor, "
      "Tensor)");
  m.def(
      "window_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens, "
      "Tensor? order, float scale) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("window_attention", TORCH_BOX(&fusion3d::window_attention_cpu));
  m.impl("window_attention_backward", TORCH_BOX(&fusion3d::window_attention_backward_cpu_op));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("window_attention", TORCH_BOX(&fusion3d::window_attention_cuda));
  m.impl("window_attention_backward", TORCH_BOX(&fusion3d::window_attention_backward_cuda_op));
}
#endif
