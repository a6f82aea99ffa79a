// BEV pooling on CUDA, forward. No atomics; the order of every sum is fixed by the plan and the shapes. Indices and depths
// are read once by a warp, 32 samples at a time, and handed round by shuffles.
#include "fusion3d/bev_pool.h"

#include <algorithm>
#include <cstdint>

#include "rows.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kWarpCells = 4;  // cells that a warp takes at once: often one read of 32 samples serves them all
constexpr int kLong = 256;     // samples of a cell from which on the whole block works on it

// Adds U rows in each slot, those of samples from `first` to `end`, all on their way at once.
template <typename T, int N, int U>
__device__ inline void add_some(
    const Pack<T, N>* __restrict__ feat, int64_t packs, const RowLanes& lanes, bool used,
    typename Compute<T>::Real weight, int32_t pixel, int first, int end, typename Compute<T>::Real (&sum)[N]) {
  Pack<T, N> row[U];
  typename Compute<T>::Real scale[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
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
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += scale[u] * widen(row[u].value[n]);
}

// Adds the rows of samples [begin, end) of the 32 whose weight and pixel the lanes hold, in each slot its own share. Many
// cells have few: they do not pay for four rows in each slot.
template <typename T, int N>
__device__ inline void add_rows(
    const Pack<T, N>* __restrict__ feat, int64_t packs, const RowLanes& lanes, bool used,
    typename Compute<T>::Real weight, int32_t pixel, int begin, int end, typename Compute<T>::Real (&sum)[N]) {
  int first = begin;  // the same for the whole warp
  for (; end - first > 2 * lanes.slots; first += 4 * lanes.slots)
    add_some<T, N, 4>(feat, packs, lanes, used, weight, pixel, first, end, sum);
  if (end - first > lanes.slots)
    add_some<T, N, 2>(feat, packs, lanes, used, weight, pixel, first, end, sum);
  else if (end > first)
    add_some<T, N, 1>(feat, packs, lanes, used, weight, pixel, first, end, sum);
}

// A warp's cells one after the other, for the packs of this round. Lanes 0 to kWarpCells - 1 hold the cells: where their
// samples begin, how many they are with all before (`upto`), and which cells they are (-1: none of ours).
template <typename T, int N>
__device__ inline void pool_short(
    const BevPoolForward& args, const RowLanes& lanes, int64_t packs, int64_t pack, int32_t cell, int32_t start,
    int32_t upto) {
  typedef typename Compute<T>::Real Real;
  const int lane = threadIdx.x % kWarp;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const Pack<T, N>* __restrict__ feat = static_cast<const Pack<T, N>*>(args.feat) + pack;
  Pack<T, N>* __restrict__ out = static_cast<Pack<T, N>*>(args.out) + pack;
  const bool used = lanes.used && pack < packs;
  const int32_t total = __shfl_sync(kAll, upto, kWarpCells - 1);
  Real sum[N] = {};
  int32_t done = 0, cell_first = 0, k = 0;  // samples that are added, the first of cell k, the cell
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
      if (stop > cell_first + 1) join_slots(lanes, sum);
      cell_first = stop;
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
    const BevPoolForward& args, const RowLanes& lanes, int64_t packs, int64_t pack, int64_t cell,
    typename Compute<T>::Real (*shares)[kWarp * N]) {
  typedef typename Compute<T>::Real Real;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T* __restrict__ depth = static_cast<const T*>(args.depth);
  const Pack<T, N>* __restrict__ feat = static_cast<const Pack<T, N>*>(args.feat) + pack;
  const bool used = lanes.used && pack < packs;
  const int32_t begin = args.cell_ptr[cell], end = args.cell_ptr[cell + 1];
  Real sum[N] = {};
  for (int64_t base = begin + warp * kWarp; base < end; base += kThreads) {
    Real weight = 0;
    int32_t pixel = 0;
    if (base + lane < end) {
      weight = widen(depth[args.sample[base + lane]]);
      pixel = args.pixel[base + lane];
    }
    add_rows<T, N>(feat, packs, lanes, used, weight, pixel, 0, int(min(int64_t(kWarp), end - base)), sum);
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
  const RowLanes lanes = lanes_for(packs);
  for (int64_t part = blockIdx.x; part < args.parts; part += gridDim.x) {
    const int32_t first = args.part[part], last = args.part[part + 1];
    for (int64_t batch = first; batch < last; batch += kWarp) {  // 32 cells, kWarpCells for each warp; all know of all
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

__global__ void __launch_bounds__(kThreads) find_pixels(BevPoolPixel args) {
  for (int64_t s = first_thread(); s < args.samples; s += all_threads())
    args.pixel[s] = pixel_of(args, args.sample[s]);
}

template <typename T>
cudaError_t forward(const BevPoolForward& args, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  if (args.num_cells * args.channels == 0 || args.parts == 0) return cudaSuccess;
  const unsigned blocks = unsigned(std::min(args.parts, kBlocks));
  if (in_packs<kPack, T>(args.channels, {args.feat, args.out}))
    pool_parts<T, kPack><<<blocks, kThreads, 0, stream>>>(args);
  else
    pool_parts<T, 1><<<blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int bev_pool_forward_cuda(const BevPoolForward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

int bev_pool_pixel_cuda(const BevPoolPixel& args, cudaStream_t stream) {
  if (args.samples == 0) return cudaSuccess;
  find_pixels<<<unsigned(blocks_for(args.samples, kThreads)), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fusion3d
