// Greedy suppression of boxes seen from above, per label: a box goes when a better one of its label is too close.
//
// Boxes are ordered by descending score, equal scores by ascending index, NaN last. A box with a label below 0, or with no
// threshold for its label, is none: it is never kept. One without area, or not finite, is kept and suppresses nothing,
// unless by circle, where only its centre must be finite.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fusion3d/dtype.h"
#include "fusion3d/portable.h"

namespace fusion3d {

enum class NmsMetric : int64_t {
  kRotated = 0,  // too close: intersection over union above the threshold
  kCircle = 1,   // too close: distance of centres below the threshold
  kAxis = 2,     // as rotated, of boxes turned to the nearest right angle
};

constexpr int64_t kNmsThresholds = 256;  // most labels with a threshold of their own: they travel with the launch

struct Nms {
  Dtype dtype;        // of boxes
  Dtype score_dtype;  // of scores
  NmsMetric metric;
  int64_t count;           // N
  int64_t max_out;
  int64_t num_thresholds;  // 1: one for every label
  double thresholds[kNmsThresholds];
  const void* boxes;      // [N, 5] x, y, length, width, yaw
  const void* scores;     // [N]
  const int64_t* labels;  // [N]
  int64_t* keep;          // [max_out] indices, best first; then -1
  int64_t* num_keep;      // [1]
};

// Ascending where scores descend; equal for +0 and -0, largest for NaN.
FUSION3D_SHARED uint64_t nms_key(double score) {
  if (score != score) return ~uint64_t(0);
  score += 0.0;  // -0 becomes +0
  uint64_t bits;
  memcpy(&bits, &score, sizeof(bits));
  return bits >> 63 ? bits : ~bits & ~(uint64_t(1) << 63);
}

FUSION3D_SHARED uint32_t nms_key(float score) {
  if (score != score) return ~uint32_t(0);
  score += 0.0f;
  uint32_t bits;
  memcpy(&bits, &score, sizeof(bits));
  return bits >> 31 ? bits : ~bits & ~(uint32_t(1) << 31);
}

// The threshold of a label, or NaN where there is none.
FUSION3D_SHARED double nms_threshold(const Nms& args, int64_t label) {
  if (args.num_thresholds == 1 && label >= 0) return args.thresholds[0];
  return label >= 0 && label < args.num_thresholds ? args.thresholds[label] : double(NAN);
}

void nms_cpu(const Nms& args);

constexpr int64_t kNmsCudaBoxes = 1 << 18;  // most boxes on CUDA: clashes take a bit for each pair, one label's survivors fit on chip

// CUDA, on device pointers and the given stream, without synchronisation. Returns a cudaError_t.
int64_t nms_cuda_bytes(int64_t count);  // of scratch memory
int nms_cuda(const Nms& args, void* scratch, cudaStream_t stream);

}  // namespace fusion3d
