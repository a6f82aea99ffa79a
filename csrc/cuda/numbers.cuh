// What the CUDA kernels share: storage types and what they are computed in, packs of neighbouring values, launch sizes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "fusion3d/dtype.h"

namespace fusion3d {

constexpr int kWarp = 32;
constexpr int64_t kBlocks = 1 << 20;  // most blocks of a launch; kernels stride over the rest

// What each storage type is computed in.
template <typename T>
struct Compute {
  typedef float Real;
};
template <>
struct Compute<double> {
  typedef double Real;
};

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ T narrow(typename Compute<T>::Real v);
template <>
__device__ inline float narrow<float>(float v) { return v; }
template <>
__device__ inline double narrow<double>(double v) { return v; }
template <>
__device__ inline __half narrow<__half>(float v) { return __float2half_rn(v); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// Neighbours that are loaded and stored at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

inline int64_t blocks_for(int64_t items, int64_t per_block) {
  return std::min((items + per_block - 1) / per_block, kBlocks);
}

// run(zero) with a value of the storage type.
template <typename Run>
cudaError_t for_dtype(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::kFloat16: return run(__half());
    case Dtype::kBFloat16: return run(__nv_bfloat16());
    case Dtype::kFloat32: return run(float());
    case Dtype::kFloat64: return run(double());
  }
  return cudaErrorInvalidValue;
}

}  // namespace fusion3d
