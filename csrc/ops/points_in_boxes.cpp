// Points in boxes between torch and the kernels: checks, output tensors, threads, stream.
#include "fusion3d/points_in_boxes.h"

#include <optional>
#include <tuple>

#include "tensors.h"

namespace fusion3d {
namespace {

PointsInBoxes points_args(
    const Tensor& points, const Tensor& boxes, const std::optional<Tensor>& point_batch,
    const std::optional<Tensor>& box_batch, double margin, Tensor& box, Tensor& count) {
  check(points, "points", 2, points.scalar_type(), points);
  check(boxes, "boxes", 2, points.scalar_type(), points);
  STD_TORCH_CHECK(points.size(1) >= 3, "fusion3d: points must be [P, 3 or more]");
  STD_TORCH_CHECK(boxes.size(1) == 7, "fusion3d: boxes must be [N, 7]: x, y, z, length, width, height, yaw");
  STD_TORCH_CHECK(boxes.size(0) < INT32_MAX, "fusion3d: there must be fewer than 2^31 boxes");
  STD_TORCH_CHECK(
      point_batch.has_value() == box_batch.has_value(), "fusion3d: give point_batch and box_batch, or neither");
  PointsInBoxes args = {};
  if (point_batch) {
    check(*point_batch, "point_batch", 1, ScalarType::Long, points);
    check(*box_batch, "box_batch", 1, ScalarType::Long, points);
    STD_TORCH_CHECK(
        point_batch->size(0) == points.size(0) && box_batch->size(0) == boxes.size(0),
        "fusion3d: point_batch and box_batch must have one entry for each point and box");
    args.point_batch = point_batch->const_data_ptr<int64_t>();
    args.box_batch = box_batch->const_data_ptr<int64_t>();
  }
  box = torch::stable::new_empty(points, {points.size(0)}, ScalarType::Long);
  count = torch::stable::new_empty(points, {boxes.size(0)}, ScalarType::Long);
  args.dtype = dtype_of(points, "points");
  args.num_points = points.size(0);
  args.num_boxes = boxes.size(0);
  args.stride = points.size(1);
  args.margin = margin;
  args.points = points.const_data_ptr();
  args.boxes = boxes.const_data_ptr();
  args.box = box.mutable_data_ptr<int64_t>();
  args.count = count.mutable_data_ptr<int64_t>();
  return args;
}

std::tuple<Tensor, Tensor> points_cpu(
    const Tensor& points, const Tensor& boxes, std::optional<Tensor> point_batch, std::optional<Tensor> box_batch,
    double margin) {
  Tensor box, count;
  points_in_boxes_cpu(points_args(points, boxes, point_batch, box_batch, margin, box, count), parallel_for);
  return {box, count};
}

#ifdef FUSION3D_WITH_CUDA
std::tuple<Tensor, Tensor> points_cuda(
    const Tensor& points, const Tensor& boxes, std::optional<Tensor> point_batch, std::optional<Tensor> box_batch,
    double margin) {
  const torch::stable::accelerator::DeviceGuard guard(points.get_device_index());
  Tensor box, count;
  const PointsInBoxes args = points_args(points, boxes, point_batch, box_batch, margin, box, count);
  check_launch(points_in_boxes_cuda(args, current_stream(points)), "points_in_boxes");
  return {box, count};
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def(
      "points_in_boxes(Tensor points, Tensor boxes, Tensor? point_batch, Tensor? box_batch, float margin) -> "
      "(Tensor box, Tensor count)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) { m.impl("points_in_boxes", TORCH_BOX(&fusion3d::points_cpu)); }

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) { m.impl("points_in_boxes", TORCH_BOX(&fusion3d::points_cuda)); }
#endif
