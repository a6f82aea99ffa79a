// Rectangles on the device: loaded from every dtype, at run time; few are loaded, so nothing is won by compiling for each.
#pragma once

#include "fusion3d/rectangles.h"
#include "numbers.cuh"

namespace fusion3d {

__device__ inline double load_real(const void* values, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat16: return widen(static_cast<const __half*>(values)[i]);
    case Dtype::kBFloat16: return widen(static_cast<const __nv_bfloat16*>(values)[i]);
    case Dtype::kFloat32: return static_cast<const float*>(values)[i];
    case Dtype::kFloat64: return static_cast<const double*>(values)[i];
  }
  return NAN;
}

__device__ inline void store_real(void* values, Dtype dtype, int64_t i, double value) {
  switch (dtype) {
    case Dtype::kFloat16: static_cast<__half*>(values)[i] = narrow<__half>(float(value)); break;
    case Dtype::kBFloat16: static_cast<__nv_bfloat16*>(values)[i] = narrow<__nv_bfloat16>(float(value)); break;
    case Dtype::kFloat32: static_cast<float*>(values)[i] = float(value); break;
    case Dtype::kFloat64: static_cast<double*>(values)[i] = value; break;
  }
}

__device__ inline Rectangle load_rectangle(const void* boxes, Dtype dtype, int64_t i, bool snap) {
  double v[5];
#pragma unroll
  for (int n = 0; n < 5; ++n) v[n] = load_real(boxes, dtype, 5 * i + n);
  return rectangle_of(v[0], v[1], v[2], v[3], v[4], snap);
}

// Not fused, so that the same distances lie below a threshold as on the CPU. NaN where one does not exist.
__device__ inline double squared_distance(const Rectangle& a, const Rectangle& b) {
  const double x = a.x - b.x, y = a.y - b.y;
  return __dadd_rn(__dmul_rn(x, x), __dmul_rn(y, y));
}

}  // namespace fusion3d
