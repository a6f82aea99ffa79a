// Intersection over union of oriented rectangles: of every pair, or row by row with gradients to both.
//
// Rows are x, y, length, width, yaw, contiguous and of one dtype; the arithmetic is in double, the result in that dtype.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"

namespace fusion3d {

struct BoxIou {
  Dtype dtype;
  int64_t rows;     // N
  int64_t columns;  // K
  const void* a;    // [N, 5]
  const void* b;    // [K, 5]
  void* out;        // [N, K]
};

struct BoxIouAligned {
  Dtype dtype;
  int64_t rows;      // P
  const void* a;     // [P, 5]
  const void* b;     // [P, 5]
  void* out;         // [P] forward
  const void* grad;  // [P] backward, as the rest
  void* grad_a;      // [P, 5]
  void* grad_b;      // [P, 5]
};

void box_iou_cpu(const BoxIou& args, const ParallelFor& parallel);

// Rows [begin, end).
void box_iou_aligned_cpu(const BoxIouAligned& args, int64_t begin, int64_t end);
void box_iou_aligned_backward_cpu(const BoxIouAligned& args, int64_t begin, int64_t end);

// CUDA, on device pointers and the given stream, without synchronisation. Returns a cudaError_t.
int box_iou_cuda(const BoxIou& args, cudaStream_t stream);
int box_iou_aligned_cuda(const BoxIouAligned& args, cudaStream_t stream);
int box_iou_aligned_backward_cuda(const BoxIouAligned& args, cudaStream_t stream);

}  // namespace fusion3d
