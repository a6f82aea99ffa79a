// BEV pooling on CUDA. Forward: the threads of a cell lie side by side, each with some neighbouring channels, and walk the
// cell's samples. Backward: a warp owns a pixel, its lanes are channels. No atomics; the order of every sum is fixed.
#include "fusion3d/bev_pool.h"

#include <cstdint>

#include "numbers.cuh"

namespace fusion3d {
namespace {

constexpr int kWarps = 4;          // pixels of a block, backward
constexpr int kLaneChannels = 8;   // channels that a lane holds in registers, backward
constexpr int kThreads = 256;      // threads of a block, forward

template <typename T, int N>
__global__ void pool_cells(BevPoolForward args) {
  typedef typename Compute<T>::Real Real;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const Pack<T, N>* __restrict__ feat = static_cast<const Pack<T, N>*>(args.feat);
  Pack<T, N>* __restrict__ out = static_cast<Pack<T, N>*>(args.out);
  const int64_t packs = args.channels / N, total = args.num_cells * packs;
  for (int64_t t = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; t < total; t += int64_t(gridDim.x) * blockDim.x) {
    const int64_t cell = t / packs, pack = t % packs;
    Real sum[N] = {};
    const int32_t end = args.cell_ptr[cell + 1];
    for (int32_t s = args.cell_ptr[cell]; s < end; ++s) {
      const Real weight = widen(depth[args.sample[s]]);
      const Pack<T, N> row = feat[args.pixel[s] * packs + pack];
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += weight * widen(row.value[n]);
    }
    Pack<T, N> result;
#pragma unroll
    for (int n = 0; n < N; ++n) result.value[n] = narrow<T>(sum[n]);
    out[t] = result;
  }
}

template <typename T>
__global__ void unpool_pixels(BevPoolBackward args) {
  typedef typename Compute<T>::Real Real;
  extern __shared__ __align__(8) unsigned char shared[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Real* dots = reinterpret_cast<Real*>(shared) + warp * args.bins;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const T* __restrict__ feat = static_cast<const T*>(args.feat);
  const T* __restrict__ grad_out = static_cast<const T*>(args.grad_out);
  T* __restrict__ grad_depth = static_cast<T*>(args.grad_depth);
  T* __restrict__ grad_feat = static_cast<T*>(args.grad_feat);
  const int64_t pixels = args.images * args.area, channels = args.channels;
  for (int64_t p = blockIdx.x * int64_t(kWarps) + warp; p < pixels; p += int64_t(gridDim.x) * kWarps) {
    const int64_t offset = p / args.area * args.bins * args.area + p % args.area;
    for (int64_t d = lane; d < args.bins; d += kWarp) dots[d] = 0;
    __syncwarp();
    for (int64_t first = lane; first - lane < channels; first += kWarp * kLaneChannels) {
      Real value[kLaneChannels], sum[kLaneChannels] = {};
#pragma unroll
      for (int k = 0; k < kLaneChannels; ++k) {
        const int64_t c = first + k * kWarp;
        value[k] = c < channels ? widen(feat[p * channels + c]) : Real(0);
      }
      for (int64_t d = 0; d < args.bins; ++d) {
        const int64_t i = args.cell[offset + d * args.area];  // the same for the whole warp
        if (i < 0) continue;
        const Real weight = widen(depth[offset + d * args.area]);
        Real dot = 0;
#pragma unroll
        for (int k = 0; k < kLaneChannels; ++k) {
          const int64_t c = first + k * kWarp;
          if (c < channels) {
            const Real grad = widen(grad_out[i * channels + c]);
            sum[k] += weight * grad;
            dot += value[k] * grad;
          }
        }
#pragma unroll
        for (int step = kWarp / 2; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
        if (lane == 0) dots[d] += dot;
      }
#pragma unroll
      for (int k = 0; k < kLaneChannels; ++k) {
        const int64_t c = first + k * kWarp;
        if (c < channels) grad_feat[p * channels + c] = narrow<T>(sum[k]);
      }
    }
    __syncwarp();
    for (int64_t d = lane; d < args.bins; d += kWarp) grad_depth[offset + d * args.area] = narrow<T>(dots[d]);
    __syncwarp();
  }
}

template <typename T>
cudaError_t forward(const BevPoolForward& args, cudaStream_t stream) {
  constexpr int kPack = sizeof(T) == 8 ? 2 : 4;
  const bool packed = args.channels % kPack == 0;
  const int64_t items = args.num_cells * (packed ? args.channels / kPack : args.channels);
  if (items == 0) return cudaSuccess;
  const unsigned blocks = unsigned(blocks_for(items, kThreads));
  if (packed)
    pool_cells<T, kPack><<<blocks, kThreads, 0, stream>>>(args);
  else
    pool_cells<T, 1><<<blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t backward(const BevPoolBackward& args, cudaStream_t stream) {
  const int64_t pixels = args.images * args.area;
  if (pixels == 0) return cudaSuccess;
  const size_t bytes = sizeof(typename Compute<T>::Real) * kWarps * args.bins;
  unpool_pixels<T><<<unsigned(blocks_for(pixels, kWarps)), kWarps * kWarp, bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int bev_pool_forward_cuda(const BevPoolForward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

int bev_pool_backward_cuda(const BevPoolBackward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return backward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
