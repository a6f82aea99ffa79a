// BEV pooling between torch and the kernels: checks, output tensors, threads, stream.
#include "fusion3d/bev_pool.h"

#include <algorithm>
#include <tuple>

#include "tensors.h"

namespace fusion3d {
namespace {

constexpr int64_t kSampleGrain = 1 << 14;  // fewest samples worth a thread, for their pixels

void check_frustum(const Tensor& depth, const Tensor& feat, const Tensor& cell) {
  check(depth, "depth", 4, depth.scalar_type(), depth);
  check(feat, "feat", 4, depth.scalar_type(), depth);
  check(cell, "cell", 4, ScalarType::Int, depth);
  STD_TORCH_CHECK(
      feat.size(0) == depth.size(0) && feat.size(1) == depth.size(2) && feat.size(2) == depth.size(3),
      "fusion3d: feat must be [M, H, W, C] for depth [M, D, H, W]");
  STD_TORCH_CHECK(cell.numel() == depth.numel(), "fusion3d: cell must have the shape of depth");
}

BevPoolForward forward_args(
    const Tensor& depth, const Tensor& feat, const Tensor& cell, const Tensor& sample, const Tensor& pixel,
    const Tensor& cell_ptr, const Tensor& order, const Tensor& part, Tensor& out) {
  check_frustum(depth, feat, cell);
  check(sample, "sample", 1, ScalarType::Int, depth);
  check(pixel, "pixel", 1, ScalarType::Int, depth);
  check(cell_ptr, "cell_ptr", 1, ScalarType::Int, depth);
  check(order, "order", 1, ScalarType::Int, depth);
  check(part, "part", 1, ScalarType::Int, depth);
  STD_TORCH_CHECK(sample.size(0) == pixel.size(0), "fusion3d: sample and pixel must be equally long");
  STD_TORCH_CHECK(cell_ptr.size(0) >= 1, "fusion3d: cell_ptr must have one entry more than there are cells");
  const int64_t num_cells = cell_ptr.size(0) - 1;
  STD_TORCH_CHECK(order.size(0) == num_cells, "fusion3d: order must have one entry for each cell");
  STD_TORCH_CHECK(part.size(0) >= 1, "fusion3d: part must have one entry more than there are parts");
  out = torch::stable::new_empty(feat, {num_cells, feat.size(3)});
  return {
      dtype_of(depth, "depth"),
      num_cells,
      feat.size(3),
      part.size(0) - 1,
      depth.const_data_ptr(),
      feat.const_data_ptr(),
      sample.const_data_ptr<int32_t>(),
      pixel.const_data_ptr<int32_t>(),
      cell_ptr.const_data_ptr<int32_t>(),
      order.const_data_ptr<int32_t>(),
      part.const_data_ptr<int32_t>(),
      out.mutable_data_ptr(),
  };
}

BevPoolBackward backward_args(
    const Tensor& grad, const Tensor& depth, const Tensor& feat, const Tensor& cell, Tensor& grad_depth,
    Tensor& grad_feat) {
  check_frustum(depth, feat, cell);
  check(grad, "grad", 2, depth.scalar_type(), depth);
  STD_TORCH_CHECK(grad.size(1) == feat.size(3), "fusion3d: grad must have as many channels as feat");
  grad_depth = torch::stable::empty_like(depth);
  grad_feat = torch::stable::empty_like(feat);
  return {
      dtype_of(depth, "depth"),
      depth.size(0),
      depth.size(1),
      depth.size(2),
      depth.size(3),
      feat.size(3),
      grad.const_data_ptr(),
      depth.const_data_ptr(),
      feat.const_data_ptr(),
      cell.const_data_ptr<int32_t>(),
      grad_depth.mutable_data_ptr(),
      grad_feat.mutable_data_ptr(),
  };
}

BevPoolPixel pixel_args(const Tensor& sample, int64_t bins, int64_t area, Tensor& pixel) {
  check(sample, "sample", 1, ScalarType::Int, sample);
  STD_TORCH_CHECK(
      bins >= 0 && bins <= INT32_MAX && area >= 0 && area <= INT32_MAX, "fusion3d: bins and area must fit in 31 bits");
  pixel = torch::stable::empty_like(sample);
  return {
      sample.const_data_ptr<int32_t>(),
      sample.numel(),
      area,
      divider(std::max<int64_t>(area, 1)),
      divider(std::max<int64_t>(bins, 1)),
      pixel.mutable_data_ptr<int32_t>(),
  };
}

Tensor bev_pool_pixel_cpu_op(const Tensor& sample, int64_t bins, int64_t area) {
  Tensor pixel;
  const BevPoolPixel args = pixel_args(sample, bins, area, pixel);
  parallel_for(0, args.samples, kSampleGrain, [&](int64_t begin, int64_t end) { bev_pool_pixel_cpu(args, begin, end); });
  return pixel;
}

Tensor bev_pool_cpu(
    const Tensor& depth, const Tensor& feat, const Tensor& cell, const Tensor& sample, const Tensor& pixel,
    const Tensor& cell_ptr, const Tensor& order, const Tensor& part) {
  Tensor out;
  const BevPoolForward args = forward_args(depth, feat, cell, sample, pixel, cell_ptr, order, part, out);
  bev_pool_prepare_cpu(args);
  parallel_for(0, args.parts, 1, [&](int64_t begin, int64_t end) { bev_pool_forward_cpu(args, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> bev_pool_backward_cpu_op(
    const Tensor& grad, const Tensor& depth, const Tensor& feat, const Tensor& cell) {
  Tensor grad_depth, grad_feat;
  const BevPoolBackward args = backward_args(grad, depth, feat, cell, grad_depth, grad_feat);
  parallel_for(0, bev_pool_patches_cpu(args), 1, [&](int64_t begin, int64_t end) {
    bev_pool_backward_cpu(args, begin, end);
  });
  return {grad_depth, grad_feat};
}

#ifdef FUSION3D_WITH_CUDA
Tensor bev_pool_pixel_cuda_op(const Tensor& sample, int64_t bins, int64_t area) {
  const torch::stable::accelerator::DeviceGuard guard(sample.get_device_index());
  Tensor pixel;
  const BevPoolPixel args = pixel_args(sample, bins, area, pixel);
  check_launch(bev_pool_pixel_cuda(args, current_stream(sample)), "bev_pool_pixel");
  return pixel;
}

Tensor bev_pool_cuda(
    const Tensor& depth, const Tensor& feat, const Tensor& cell, const Tensor& sample, const Tensor& pixel,
    const Tensor& cell_ptr, const Tensor& order, const Tensor& part) {
  const torch::stable::accelerator::DeviceGuard guard(depth.get_device_index());
  Tensor out;
  const BevPoolForward args = forward_args(depth, feat, cell, sample, pixel, cell_ptr, order, part, out);
  check_launch(bev_pool_forward_cuda(args, current_stream(depth)), "bev_pool");
  return out;
}

std::tuple<Tensor, Tensor> bev_pool_backward_cuda_op(
    const Tensor& grad, const Tensor& depth, const Tensor& feat, const Tensor& cell) {
  const torch::stable::accelerator::DeviceGuard guard(depth.get_device_index());
  Tensor grad_depth, grad_feat;
  const BevPoolBackward args = backward_args(grad, depth, feat, cell, grad_depth, grad_feat);
  check_launch(bev_pool_backward_cuda(args, current_stream(depth)), "bev_pool_backward");
  return {grad_depth, grad_feat};
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def("bev_pool_pixel(Tensor sample, SymInt bins, SymInt area) -> Tensor");
  m.def(
      "bev_pool(Tensor depth, Tensor feat, Tensor cell, Tensor sample, Tensor pixel, Tensor cell_ptr, Tensor order, "
      "Tensor part) -> Tensor");
  m.def("bev_pool_backward(Tensor grad, Tensor depth, Tensor feat, Tensor cell) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) {
  m.impl("bev_pool_pixel", TORCH_BOX(&fusion3d::bev_pool_pixel_cpu_op));
  m.impl("bev_pool", TORCH_BOX(&fusion3d::bev_pool_cpu));
  m.impl("bev_pool_backward", TORCH_BOX(&fusion3d::bev_pool_backward_cpu_op));
}

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) {
  m.impl("bev_pool_pixel", TORCH_BOX(&fusion3d::bev_pool_pixel_cuda_op));
  m.impl("bev_pool", TORCH_BOX(&fusion3d::bev_pool_cuda));
  m.impl("bev_pool_backward", TORCH_BOX(&fusion3d::bev_pool_backward_cuda_op));
}
#endif
