// What the kernels know of tensors: a pointer, a dtype and sizes. No torch and no CUDA header is needed for it.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;  // as CUDA declares it

namespace fusion3d {

enum class Dtype { kFloat16, kBFloat16, kFloat32, kFloat64 };

constexpr int64_t size_of(Dtype dtype) {  // in bytes
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

const char* cuda_error_name(int error);  // of a cudaError_t; only in builds with CUDA

}  // namespace fusion3d
