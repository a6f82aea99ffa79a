// Overlap of rectangles between torch and the kernels: checks, output tensors, threads, stream.
#include "fusion3d/box_iou.h"

#include <tuple>

#include "tensors.h"

namespace fusion3d {
namespace {

constexpr int64_t kRowGrain = 512;  // fewest rows worth a thread

void check_rows(const Tensor& boxes, const char* name, const Tensor& like) {
  check(boxes, name, 2, like.scalar_type(), like);
  STD_TORCH_CHECK(boxes.size(1) == 5, "fusion3d: ", name, " must be [N, 5]: x, y, length, width, yaw");
}

BoxIou pair_args(const Tensor& a, const Tensor& b, Tensor& out) {
  check_rows(a, "a", a);
  check_rows(b, "b", a);
  STD_TORCH_CHECK(b.size(0) < INT32_MAX, "fusion3d: b must have fewer than 2^31 rows");
  out = torch::stable::new_empty(a, {a.size(0), b.size(0)});
  return {dtype_of(a, "a"), a.size(0), b.size(0), a.const_data_ptr(), b.const_data_ptr(), out.mutable_data_ptr()};
}

BoxIouAligned aligned_args(const Tensor& a, const Tensor& b) {
  check_rows(a, "a", a);
  check_rows(b, "b", a);
  STD_TORCH_CHECK(a.size(0) == b.size(0), "fusion3d: a and b must have as many rows");
  return {dtype_of(a, "a"), a.size(0), a.const_data_ptr(), b.const_data_ptr(), nullptr, nullptr, nullptr, nullptr};
}

BoxIouAligned aligned_args(const Tensor& a, const Tensor& b, Tensor& out) {
  BoxIouAligned args = aligned_args(a, b);
  out = torch::stable::new_empty(a, {a.size(0)});
  args.out = out.mutable_data_ptr();
  return args;
}

BoxIouAligned aligned_args(const Tensor& grad, const Tensor& a, const Tensor& b, Tensor& grad_a, Tensor& grad_b) {
  BoxIouAligned args = aligned_args(a, b);
  check(grad, "grad", 1, a.scalar_type(), a);
  STD_TORCH_CHECK(grad.size(0) == a.size(0), "fusion3d: grad must have as many rows as a");
  grad_a = torch::stable::empty_like(a);
  grad_b = torch::stable::empty_like(b);
  args.grad = grad.const_data_ptr();
  args.grad_a = grad_a.mutable_data_ptr();
  args.grad_b = grad_b.mutable_data_ptr();
  return args;
}

Tensor iou_cpu(const Tensor& a, const Tensor& b) {
  Tensor out;
  box_iou_cpu(pair_args(a, b, out), parallel_for);
  return out;
}

Tensor iou_aligned_cpu(const Tensor& a, const Tensor& b) {
  Tensor out;
  const BoxIouAligned args = aligned_args(a, b, out);
  parallel_for(0, args.rows, kRowGrain, [&](int64_t begin, int64_t end) { box_iou_aligned_cpu(args, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> iou_aligned_backward_cpu(const Tensor& grad, const Tensor& a, const Tensor& b) {
  Tensor grad_a, grad_b;
  const BoxIouAligned args = aligned_args(grad, a, b, grad_a, grad_b);
  parallel_for(
      0, args.rows, kRowGrain, [&](int64_t begin, int64_t end) { box_iou_aligned_backward_cpu(args, begin, end); });
  return {grad_a, grad_b};
}

#ifdef FUSION3D_WITH_CUDA
Tensor iou_cuda(const Tensor& a, const Tensor& b) {
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor out;
  const BoxIou args = pair_args(a, b, out);
  check_launch(box_iou_cuda(args, current_stream(a)), "box_iou_bev");
  return out;
}

Tensor iou_aligned_cuda(const Tensor& a, const Tensor& b) {
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor out;
  const BoxIouAligned args = aligned_args(a, b, out);
  check_launch(box_iou_aligned_cuda(args, current_stream(a)), "box_iou_bev_aligned");
  return out;
}

std::tuple<Tensor, Tensor> iou_aligned_backward_cuda(const Tensor& grad, const Tensor& a, const Tensor& b) {
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor grad_a, grad_b;
  const BoxIouAligned args = aligned_args(grad, a, b, grad_a, grad_b);
  check_launch(box_iou_aligned_backward_cuda(args, current_stream(a)), "box_iou_bev_aligned_backward");
  return {grad_a, grad_b};
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def("box_iou_bev(Tensor a, Tensor b) -> Tensor");
  m.def("box_iou_bev_aligned(Tensor a, Tensor b) -> Tensor");
  m.def("box_iou_bev_aligned_backward(Tensor grad, Tensor a, Tensor b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("box_iou_bev", TORCH_BOX(&fusion3d::iou_cpu));
  m.impl("box_iou_bev_aligned", TORCH_BOX(&fusion3d::iou_aligned_cpu));
  m.impl("box_iou_bev_aligned_backward", TORCH_BOX(&fusion3d::iou_aligned_backward_cpu));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("box_iou_bev", TORCH_BOX(&fusion3d::iou_cuda));
  m.impl("box_iou_bev_aligned", TORCH_BOX(&fusion3d::iou_aligned_cuda));
  m.impl("box_iou_bev_aligned_backward", TORCH_BOX(&fusion3d::iou_aligned_backward_cuda));
}
#endif
