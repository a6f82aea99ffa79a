// Functions that the CPU and the CUDA kernels share: index arithmetic is written once, and tested where there is no GPU.
#pragma once

#ifdef __CUDACC__
#define FUSION3D_SHARED __host__ __device__ inline
#else
#define FUSION3D_SHARED inline
#endif
