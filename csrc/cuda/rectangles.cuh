// Rectangles on the device. They are few: nothing is won by compiling for each dtype.
#pragma once

#include "fusion3d/rectangles.h"
#include "numbers.cuh"

namespace fusion3d {

__device__ inline Rectangle load_rectangle(const void* boxes, Dtype dtype, int64_t i, bool snap) {
  double v[5];
#pragma unroll
  for (int n = 0; n < 5; ++n) v[n] = load_any<double>(dtype, boxes, 5 * i + n);
  return rectangle_of(v[0], v[1], v[2], v[3], v[4], snap);
}

// Not fused, so that the same distances lie below a threshold as on the CPU. NaN where one does not exist.
__device__ inline double squared_distance(const Rectangle& a, const Rectangle& b) {
  const double x = a.x - b.x, y = a.y - b.y;
  return __dadd_rn(__dmul_rn(x, x), __dmul_rn(y, y));
}

}  // namespace fusion3d
