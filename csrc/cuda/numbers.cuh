// What the CUDA kernels share: storage types and what they are computed in, packs of neighbouring values, sums over lanes,
// launch sizes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "fusion3d/dtype.h"

namespace fusion3d {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;  // lanes of a warp
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

// One number of an array whose dtype is known at run time; the same for every thread, so nothing diverges.
template <typename Real>
__device__ inline Real load_any(Dtype dtype, const void* array, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat16: return widen(static_cast<const __half*>(array)[i]);
    case Dtype::kBFloat16: return widen(static_cast<const __nv_bfloat16*>(array)[i]);
    case Dtype::kFloat32: return static_cast<const float*>(array)[i];
    case Dtype::kFloat64: return Real(static_cast<const double*>(array)[i]);
  }
  return 0;
}

template <typename Real>
__device__ inline void store_any(Dtype dtype, void* array, int64_t i, Real value) {
  switch (dtype) {
    case Dtype::kFloat16: static_cast<__half*>(array)[i] = narrow<__half>(float(value)); break;
    case Dtype::kBFloat16: static_cast<__nv_bfloat16*>(array)[i] = narrow<__nv_bfloat16>(float(value)); break;
    case Dtype::kFloat32: static_cast<float*>(array)[i] = float(value); break;
    case Dtype::kFloat64: static_cast<double*>(array)[i] = double(value); break;
  }
}

// The sum over a group of so many neighbouring lanes, a power of two, in each of them. The whole warp takes part.
template <typename Real>
__device__ inline Real group_sum(Real v, int lanes) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    if (step < lanes) v += __shfl_xor_sync(kAll, v, step);
  return v;
}

// Neighbours that are loaded and stored at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// A thread's first item and the step to its next, where one thread takes one item.
__device__ inline int64_t first_thread() { return blockIdx.x * int64_t(blockDim.x) + threadIdx.x; }
__device__ inline int64_t all_threads() { return int64_t(gridDim.x) * blockDim.x; }

inline int64_t blocks_for(int64_t items, int64_t per_block) {
  return std::min((items + per_block - 1) / per_block, kBlocks);
}

// More shared memory than 48 KiB, of which a kernel may declare a part itself, has to be asked for. Where the device has
// less, the error is returned and not left for the next launch to find.
template <typename Kernel>
cudaError_t ask_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 40 << 10) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) cudaGetLastError();
  return error;
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
