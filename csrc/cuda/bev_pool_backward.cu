// BEV pooling on CUDA, backward. A warp owns a pixel: nothing is atomic, and the order of every sum is fixed by the shapes.
#include "fusion3d/bev_pool.h"

#include <algorithm>
#include <cstdint>

#include "rows.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPatch = 4;         // rows and columns of the patch of pixels that a block owns; a warp each
constexpr int kBins = 32;         // depth bins of the patch that are staged at once
constexpr int kMostRounds = 4;    // packs of a row that a lane can hold
constexpr int kLaneChannels = 8;  // channels that a lane holds in registers where rows are not whole packs
static_assert(kBins == kWarp, "each lane holds one staged bin of its warp's pixel");

// A block stages the cells and depths of a patch of pixels, kBins at a time; then each warp works on its own pixel, and
// neighbours meet in the same rows of grad_out. R is how many packs of a row a lane holds.
template <typename T, int N, int R>
__global__ void __launch_bounds__(kPatch* kPatch* kWarp, R == 1 ? 2 : 1) unpool_patches(BevPoolBackward args) {
  typedef typename Compute<T>::Real Real;
  constexpr int kPixels = kPatch * kPatch;
  __shared__ int32_t cells[kBins][kPixels + 1];  // one more column: a warp reads down a column without bank conflicts
  __shared__ Real weights[kBins][kPixels + 1];   // depth, then its gradient
  const int lane = threadIdx.x % kWarp, own = threadIdx.x / kWarp;
  const int64_t packs = args.channels / N, area = args.rows * args.cols, patches = num_patches(args, kPatch, kPatch);
  const RowLanes lanes = lanes_for(packs);
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  T* __restrict__ grad_depth = static_cast<T*>(args.grad_depth);
  const Pack<T, N>* __restrict__ grad_out = static_cast<const Pack<T, N>*>(args.grad_out);
  for (int64_t i = blockIdx.x; i < patches; i += gridDim.x) {
    const PixelPatch patch = pixel_patch(args, i, kPatch, kPatch);
    const bool inside = own / kPatch < patch.rows && own % kPatch < patch.cols;
    const int64_t corner = patch.row * args.cols + patch.col;
    const int64_t row = (patch.image * area + corner + own / kPatch * args.cols + own % kPatch) * packs;
    Pack<T, N> value[R];
    Real sum[R][N];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t pack = lanes.pack + r * kWarp;
      value[r] = Pack<T, N>();
      if (inside && lanes.used && pack < packs) value[r] = static_cast<const Pack<T, N>*>(args.feat)[row + pack];
#pragma unroll
      for (int n = 0; n < N; ++n) sum[r][n] = 0;
    }
    for (int64_t first = 0; first < args.bins; first += kBins) {
      const int64_t base = (patch.image * args.bins + first) * area + corner;
      const int staged = int(args.bins - first < kBins ? args.bins - first : kBins);
      for (int t = threadIdx.x; t < kBins * kPixels; t += kPixels * kWarp) {
        const int d = t / kPixels, p = t % kPixels, y = p / kPatch, x = p % kPatch;
        const bool there = d < staged && y < patch.rows && x < patch.cols;
        const int64_t at = base + d * area + y * args.cols + x;
        const int32_t cell = there ? args.cell[at] : -1;
        cells[d][p] = cell;
        weights[d][p] = cell >= 0 ? widen(depth[at]) : Real(0);
      }
      __syncthreads();
      const int32_t cell = cells[lane][own];
      const Real weight = weights[lane][own];
      Real slope = 0;  // gradient of this lane's bin
      const unsigned hits = __ballot_sync(kAll, cell >= 0);
      const int count = __popc(hits);
      __syncwarp();
      if (cell >= 0) cells[__popc(hits & ((1u << lane) - 1))][own] = lane;  // only this warp reads its pixel's column
      __syncwarp();
      const int nth = lane < count ? cells[lane][own] : 0;  // the bin of the hit that has this lane's number
      for (int j0 = 0; j0 < count; j0 += lanes.slots * 2) {  // the same for the whole warp; two rows a slot on their way
        Real dot[2] = {0, 0};
        int bin[2];
        Pack<T, N> grad[2][R];
        Real scale[2];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int j = j0 + u * lanes.slots + lanes.slot;
          const bool used = lanes.used && j < count;
          bin[u] = __shfl_sync(kAll, nth, j % kWarp);
          const int64_t from = __shfl_sync(kAll, cell, bin[u]) * packs;
          scale[u] = __shfl_sync(kAll, weight, bin[u]);
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int64_t pack = lanes.pack + r * kWarp;
            grad[u][r] = Pack<T, N>();
            if (used && pack < packs) grad[u][r] = grad_out[from + pack];
          }
          if (!used) bin[u] = -1, scale[u] = 0;
        }
#pragma unroll
        for (int u = 0; u < 2; ++u) {
#pragma unroll
          for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < N; ++n) {
              const Real g = widen(grad[u][r].value[n]);
              sum[r][n] += scale[u] * g;
              dot[u] += widen(value[r].value[n]) * g;
            }
#pragma unroll
          for (int step = kWarp / 2; step > 0; step /= 2) {  // over the lanes of the slot
            const Real other = __shfl_down_sync(kAll, dot[u], step);
            if (lanes.pack + step < lanes.width) dot[u] += other;
          }
          for (int slot = 0; slot < lanes.slots; ++slot) {  // to the lane of the bin
            const int to = __shfl_sync(kAll, bin[u], slot * lanes.width);
            const Real found = __shfl_sync(kAll, dot[u], slot * lanes.width);
            if (lane == to) slope = found;
          }
        }
      }
      weights[lane][own] = slope;
      __syncthreads();
      for (int t = threadIdx.x; t < kBins * kPixels; t += kPixels * kWarp) {
        const int d = t / kPixels, p = t % kPixels, y = p / kPatch, x = p % kPatch;
        if (d < staged && y < patch.rows && x < patch.cols)
          grad_depth[base + d * area + y * args.cols + x] = narrow<T>(weights[d][p]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t pack = lanes.pack + r * kWarp;
      join_slots(lanes, sum[r]);
      if (inside && lanes.slot == 0 && pack < packs)
        write_row<T, N>(static_cast<Pack<T, N>*>(args.grad_feat) + row + pack, sum[r]);
    }
  }
}

// Any number of channels: a warp owns a pixel, its lanes are channels.
template <typename T>
__global__ void __launch_bounds__(kThreads) unpool_pixels(BevPoolBackward args) {
  typedef typename Compute<T>::Real Real;
  extern __shared__ __align__(8) unsigned char shared[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  Real* dots = reinterpret_cast<Real*>(shared) + warp * args.bins;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const T* __restrict__ feat = static_cast<const T*>(args.feat);
  const T* __restrict__ grad_out = static_cast<const T*>(args.grad_out);
  T* __restrict__ grad_depth = static_cast<T*>(args.grad_depth);
  T* __restrict__ grad_feat = static_cast<T*>(args.grad_feat);
  const int64_t area = args.rows * args.cols, pixels = args.images * area, channels = args.channels;
  for (int64_t p = blockIdx.x * int64_t(warps) + warp; p < pixels; p += int64_t(gridDim.x) * warps) {
    const int64_t offset = p / area * args.bins * area + p % area;
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
        const int64_t i = args.cell[offset + d * area];  // the same for the whole warp
        if (i < 0) continue;
        const Real weight = widen(depth[offset + d * area]);
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
        dot = group_sum(dot, kWarp);
        if (lane == 0) dots[d] += dot;
      }
#pragma unroll
      for (int k = 0; k < kLaneChannels; ++k) {
        const int64_t c = first + k * kWarp;
        if (c < channels) grad_feat[p * channels + c] = narrow<T>(sum[k]);
      }
    }
    __syncwarp();
    for (int64_t d = lane; d < args.bins; d += kWarp) grad_depth[offset + d * area] = narrow<T>(dots[d]);
    __syncwarp();
  }
}

template <typename T>
cudaError_t backward(const BevPoolBackward& args, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t pixels = args.images * args.rows * args.cols, rounds = patches_along(args.channels / kPack, kWarp);
  if (pixels == 0) return cudaSuccess;
  if (in_packs<kPack, T>(args.channels, {args.feat, args.grad_feat, args.grad_out}) && rounds <= kMostRounds) {
    const unsigned blocks = unsigned(std::min(num_patches(args, kPatch, kPatch), kBlocks));
    constexpr int kBlock = kPatch * kPatch * kWarp;
    if (rounds == 1)
      unpool_patches<T, kPack, 1><<<blocks, kBlock, 0, stream>>>(args);
    else if (rounds == 2)
      unpool_patches<T, kPack, 2><<<blocks, kBlock, 0, stream>>>(args);
    else
      unpool_patches<T, kPack, kMostRounds><<<blocks, kBlock, 0, stream>>>(args);
    return cudaGetLastError();
  }
  const size_t bytes = sizeof(typename Compute<T>::Real) * args.bins;  // for each warp
  const int warps = bytes * kWarps <= 48 * 1024 ? kWarps : 1;
  if (const cudaError_t error = ask_shared(unpool_pixels<T>, bytes * warps); error != cudaSuccess) return error;
  unpool_pixels<T><<<unsigned(blocks_for(pixels, warps)), warps * kWarp, bytes * warps, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int bev_pool_backward_cuda(const BevPoolBackward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return backward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
