// BEV pooling on CUDA. No atomics; the order of every sum is fixed by the plan and the shapes.
//
// Rows of channels are read in packs of 16 bytes, one a lane; where a row takes fewer lanes than a warp has, the warp reads
// several rows at once, one in each of its slots, and adds the slots up at the end, in order. Indices and depths are read
// once by a warp, 32 samples at a time, and handed round by shuffles.
#include "fusion3d/bev_pool.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "numbers.cuh"

namespace fusion3d {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kWarpCells = 4;  // cells that a warp takes at once, forward: often one read of 32 samples serves them all
constexpr int kLong = 256;     // samples of a cell from which on the whole block works on it
constexpr int kUnroll = 4;     // rows on their way at once, in each slot
constexpr int kPatch = 4;      // rows and columns of the patch of pixels that a block owns, backward; a warp each
constexpr int kBins = 32;      // depth bins of the patch that are staged at once
static_assert(kBins == kWarp, "each lane holds one staged bin of its warp's pixel");
constexpr int kMostRounds = 4;   // packs of a row that a lane can hold, backward
constexpr int kLaneChannels = 8; // channels that a lane holds in registers, backward, where rows are not whole packs

// How a warp lays out over rows of `packs` packs: lane = slot * width + pack, for packs [first, first + width).
struct Lanes {
  int slots, width, slot, pack;
  bool used;
};

__device__ inline Lanes lanes_for(int64_t packs) {
  const int lane = threadIdx.x % kWarp, width = packs < kWarp ? int(packs) : kWarp;
  const int slots = kWarp / width, slot = lane / width;
  return {slots, width, slot, lane % width, slot < slots};
}

// Adds the rows of samples [begin, end) of the 32 whose weight and pixel the lanes hold, in each slot its own share.
template <typename T, int N>
__device__ inline void add_rows(
    const Pack<T, N>* __restrict__ feat, int64_t packs, const Lanes& lanes, bool used, typename Compute<T>::Real weight,
    int32_t pixel, int begin, int end, typename Compute<T>::Real (&sum)[N]) {
  typedef typename Compute<T>::Real Real;
  for (int first = begin; first < end; first += lanes.slots * kUnroll) {  // the same for the whole warp
    Pack<T, N> row[kUnroll];
    Real scale[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = first + u * lanes.slots + lanes.slot;
      scale[u] = __shfl_sync(kAll, weight, j % kWarp);
      const int64_t from = __shfl_sync(kAll, pixel, j % kWarp);
      row[u] = Pack<T, N>();
      if (used && j < end)
        row[u] = feat[from * packs];
      else
        scale[u] = 0;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += scale[u] * widen(row[u].value[n]);
  }
}

// The sum over slots, in order, in the lanes of slot 0.
template <typename Real, int N>
__device__ inline void join_slots(const Lanes& lanes, Real (&sum)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    Real total = sum[n];
    for (int slot = 1; slot < lanes.slots; ++slot) total += __shfl_sync(kAll, sum[n], (lanes.pack + slot * lanes.width) % kWarp);
    sum[n] = total;
  }
}

template <typename T, int N>
__device__ inline void write_row(Pack<T, N>* __restrict__ out, const typename Compute<T>::Real (&sum)[N]) {
  Pack<T, N> row;
#pragma unroll
  for (int n = 0; n < N; ++n) row.value[n] = narrow<T>(sum[n]);
  *out = row;
}

// A warp's cells one after the other, for the packs of this round. Lanes 0 to kWarpCells - 1 hold the cells: where their
// samples begin, how many they are with all before (`upto`), and which cells they are (-1: none of ours).
template <typename T, int N>
__device__ inline void pool_short(
    const BevPoolForward& args, const Lanes& lanes, int64_t packs, int64_t pack, int32_t cell, int32_t start,
    int32_t upto) {
  typedef typename Compute<T>::Real Real;
  const int lane = threadIdx.x % kWarp;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const Pack<T, N>* __restrict__ feat = static_cast<const Pack<T, N>*>(args.feat) + pack;
  Pack<T, N>* __restrict__ out = static_cast<Pack<T, N>*>(args.out) + pack;
  const bool used = lanes.used && pack < packs;
  const int32_t total = __shfl_sync(kAll, upto, kWarpCells - 1);
  Real sum[N] = {};
  int32_t done = 0, k = 0;
  for (int32_t base = 0; k < kWarpCells; base += kWarp) {
    const int32_t limit = min(total, base + kWarp), mine = base + lane;
    int32_t at = -1;  // this lane's sample
#pragma unroll
    for (int i = 0; i < kWarpCells; ++i) {
      const int32_t stop = __shfl_sync(kAll, upto, i), before = i ? __shfl_sync(kAll, upto, max(i - 1, 0)) : 0;
      const int32_t from = __shfl_sync(kAll, start, i);
      if (mine >= before && mine < stop) at = from + mine - before;
    }
    Real weight = 0;
    int32_t pixel = 0;
    if (at >= 0) {
      weight = widen(depth[args.sample[at]]);
      pixel = args.pixel[at];
    }
    while (k < kWarpCells) {
      const int32_t stop = __shfl_sync(kAll, upto, k), until = min(stop, limit);
      add_rows<T, N>(feat, packs, lanes, used, weight, pixel, done - base, until - base, sum);
      done = max(done, until);
      if (stop > limit) break;  // the rest of this cell comes with the next samples
      join_slots(lanes, sum);
      const int64_t row = __shfl_sync(kAll, cell, k);
      if (row >= 0 && used && lanes.slot == 0) write_row<T, N>(out + row * packs, sum);
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] = 0;
      ++k;
    }
  }
}

// A cell with many samples: every warp of the block takes its share of them, and the first adds the shares up.
template <typename T, int N>
__device__ inline void pool_long(
    const BevPoolForward& args, const Lanes& lanes, int64_t packs, int64_t pack, int64_t cell,
    typename Compute<T>::Real (*shares)[kWarp * N]) {
  typedef typename Compute<T>::Real Real;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const Pack<T, N>* __restrict__ feat = static_cast<const Pack<T, N>*>(args.feat) + pack;
  const bool used = lanes.used && pack < packs;
  const int32_t begin = args.cell_ptr[cell], end = args.cell_ptr[cell + 1];
  Real sum[N] = {};
  for (int32_t base = begin + warp * kWarp; base < end; base += kThreads) {
    Real weight = 0;
    int32_t pixel = 0;
    if (base + lane < end) {
      weight = widen(depth[args.sample[base + lane]]);
      pixel = args.pixel[base + lane];
    }
    add_rows<T, N>(feat, packs, lanes, used, weight, pixel, 0, min(kWarp, end - base), sum);
  }
  join_slots(lanes, sum);
#pragma unroll
  for (int n = 0; n < N; ++n) shares[warp][n * kWarp + lane] = sum[n];
  __syncthreads();
  if (warp == 0) {
    for (int w = 1; w < kWarps; ++w)
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += shares[w][n * kWarp + lane];
    if (used && lanes.slot == 0) write_row<T, N>(static_cast<Pack<T, N>*>(args.out) + cell * packs + pack, sum);
  }
  __syncthreads();
}

// A block takes one part of the walk: neighbouring cells, so that the rows of features that they share stay in its L1.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, 3) pool_parts(BevPoolForward args) {
  __shared__ typename Compute<T>::Real shares[kWarps][kWarp * N];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t packs = args.channels / N;
  const Lanes lanes = lanes_for(packs);
  for (int64_t part = blockIdx.x; part < args.parts; part += gridDim.x) {
    const int32_t first = args.part[part], last = args.part[part + 1];
    for (int32_t batch = first; batch < last; batch += kWarp) {  // 32 cells, kWarpCells for each warp; all know of all
      int32_t cell = -1, start = 0, count = 0;
      if (batch + lane < last) {
        cell = args.order[batch + lane];
        start = args.cell_ptr[cell];
        count = args.cell_ptr[cell + 1] - start;
      }
      const unsigned many = __ballot_sync(kAll, count >= kLong);
      const int from = (warp * kWarpCells + lane) % kWarp;
      const int32_t my_count = __shfl_sync(kAll, count, from), my_start = __shfl_sync(kAll, start, from);
      int32_t my_cell = __shfl_sync(kAll, cell, from);
      if (my_count >= kLong) my_cell = -1;
      int32_t upto = lane < kWarpCells && my_count < kLong ? my_count : 0;
#pragma unroll
      for (int step = 1; step < kWarpCells; step *= 2) {
        const int32_t before = __shfl_up_sync(kAll, upto, step);
        if (lane >= step) upto += before;
      }
      for (int64_t pack = lanes.pack; pack - lanes.pack < packs; pack += lanes.width) {
        if (batch + warp * kWarpCells < last) pool_short<T, N>(args, lanes, packs, pack, my_cell, my_start, upto);
        for (unsigned left = many; left; left &= left - 1)
          pool_long<T, N>(args, lanes, packs, pack, __shfl_sync(kAll, cell, __ffs(int(left)) - 1), shares);
      }
    }
  }
}

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
  const Lanes lanes = lanes_for(packs);
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
      const int nth = lane < count ? int(__fns(hits, 0, lane + 1)) : 0;  // the bin of the hit that has this lane's number
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
#pragma unroll
        for (int step = kWarp / 2; step > 0; step /= 2) dot += __shfl_xor_sync(kAll, dot, step);
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

__global__ void __launch_bounds__(kThreads) find_pixels(BevPoolPixel args) {
  for (int64_t s = blockIdx.x * int64_t(kThreads) + threadIdx.x; s < args.samples; s += int64_t(gridDim.x) * kThreads)
    args.pixel[s] = pixel_of(args, args.sample[s]);
}

// Can rows of this many channels be read in packs of N from all of these?
template <int N, typename T>
bool packs(int64_t channels, std::initializer_list<const void*> arrays) {
  if (channels == 0 || channels % N) return false;
  return std::all_of(arrays.begin(), arrays.end(), [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(Pack<T, N>) == 0;
  });
}

template <typename T>
cudaError_t forward(const BevPoolForward& args, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  if (args.num_cells * args.channels == 0 || args.parts == 0) return cudaSuccess;
  const unsigned blocks = unsigned(std::min(args.parts, kBlocks));
  if (packs<kPack, T>(args.channels, {args.feat, args.out}))
    pool_parts<T, kPack><<<blocks, kThreads, 0, stream>>>(args);
  else
    pool_parts<T, 1><<<blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t backward(const BevPoolBackward& args, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t pixels = args.images * args.rows * args.cols, rounds = patches_along(args.channels / kPack, kWarp);
  if (pixels == 0) return cudaSuccess;
  if (packs<kPack, T>(args.channels, {args.feat, args.grad_feat, args.grad_out}) && rounds <= kMostRounds) {
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
  unpool_pixels<T><<<unsigned(blocks_for(pixels, warps)), warps * kWarp, bytes * warps, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int bev_pool_forward_cuda(const BevPoolForward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

int bev_pool_backward_cuda(const BevPoolBackward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return backward<decltype(zero)>(args, stream); });
}

int bev_pool_pixel_cuda(const BevPoolPixel& args, cudaStream_t stream) {
  if (args.samples == 0) return cudaSuccess;
  find_pixels<<<unsigned(blocks_for(args.samples, kThreads)), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fusion3d
