// Suppression between torch and the kernels: checks, output tensors, scratch memory, stream.
#include "fusion3d/nms.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fusion3d {
namespace {

Nms nms_args(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, const std::vector<double>& thresholds,
    int64_t max_out, int64_t metric, Tensor& keep, Tensor& num_keep) {
  check(boxes, "boxes", 2, boxes.scalar_type(), boxes);
  check(scores, "scores", 1, scores.scalar_type(), boxes);
  check(labels, "labels", 1, ScalarType::Long, boxes);
  const int64_t count = boxes.size(0), num_thresholds = int64_t(thresholds.size());
  STD_TORCH_CHECK(boxes.size(1) == 5, "fusion3d: boxes must be [N, 5]: x, y, length, width, yaw");
  STD_TORCH_CHECK(
      scores.size(0) == count && labels.size(0) == count, "fusion3d: boxes, scores and labels must be equally many");
  STD_TORCH_CHECK(count < INT32_MAX, "fusion3d: there must be fewer than 2^31 boxes");
  STD_TORCH_CHECK(
      num_thresholds >= 1 && num_thresholds <= kNmsThresholds, "fusion3d: there must be 1 to 256 thresholds");
  STD_TORCH_CHECK(metric >= 0 && metric <= 2, "fusion3d: metric must be 0 (rotated), 1 (circle) or 2 (axis)");
  STD_TORCH_CHECK(max_out >= 0, "fusion3d: max_out must not be negative");
  keep = torch::stable::new_empty(labels, {max_out});
  num_keep = torch::stable::new_empty(labels, {});
  Nms args = {};
  args.dtype = dtype_of(boxes, "boxes");
  args.score_dtype = dtype_of(scores, "scores");
  args.metric = NmsMetric(metric);
  args.count = count;
  args.max_out = max_out;
  args.num_thresholds = num_thresholds;
  std::copy(thresholds.begin(), thresholds.end(), args.thresholds);
  args.boxes = boxes.const_data_ptr();
  args.scores = scores.const_data_ptr();
  args.labels = labels.const_data_ptr<int64_t>();
  args.keep = keep.mutable_data_ptr<int64_t>();
  args.num_keep = num_keep.mutable_data_ptr<int64_t>();
  return args;
}

std::tuple<Tensor, Tensor> nms_bev_cpu(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, std::vector<double> thresholds, int64_t max_out,
    int64_t metric) {
  Tensor keep, num_keep;
  nms_cpu(nms_args(boxes, scores, labels, thresholds, max_out, metric, keep, num_keep));
  return {keep, num_keep};
}

#ifdef FUSION3D_WITH_CUDA
std::tuple<Tensor, Tensor> nms_bev_cuda(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, std::vector<double> thresholds, int64_t max_out,
    int64_t metric) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  STD_TORCH_CHECK(boxes.size(0) <= kNmsCudaBoxes, "fusion3d: nms_bev takes at most 2^18 boxes on CUDA");
  Tensor keep, num_keep;
  const Nms args = nms_args(boxes, scores, labels, thresholds, max_out, metric, keep, num_keep);
  Tensor scratch = new_scratch(labels, nms_cuda_bytes(args.count));
  check_launch(nms_cuda(args, scratch.mutable_data_ptr(), current_stream(boxes)), "nms_bev");
  return {keep, num_keep};
}
#endif

}  // namespace
}  // namespace fusion3d

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) {
  m.def(
      "nms_bev(Tensor boxes, Tensor scores, Tensor labels, float[] thresholds, SymInt max_out, int metric) -> "
      "(Tensor keep, Tensor num_keep)");
}

STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) { m.impl("nms_bev", TORCH_BOX(&fusion3d::nms_bev_cpu)); }

#ifdef FUSION3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CUDA, m) { m.impl("nms_bev", TORCH_BOX(&fusion3d::nms_bev_cuda)); }
#endif
