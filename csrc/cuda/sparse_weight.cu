// Gradient of a sparse convolution's weights on CUDA. A block has one tap, one part of the output rows and one tile of the
// product; it lists the pairs of a window of rows and adds their outer products. Parts depend on the sizes alone and are
// added in their order by a second kernel, so nothing is atomic.
#include <mma.h>

#include <cstdint>
#include <type_traits>

#include "fusion3d/sparse_conv.h"
#include "rows.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 128;
constexpr int kWindow = 512;          // output rows whose pairs are listed at once
constexpr int kPairs = 32;            // pairs multiplied at once
constexpr int64_t kPartRows = 4096;   // output rows of a part, at least
constexpr int64_t kParts = 64;        // at most
constexpr int64_t kScratch = 1 << 24; // numbers that parts may take together, if there is more than one
constexpr unsigned kMostTaps = 65535; // of a launch; kernels stride over the rest
constexpr int kPack = 8;              // values of 16 bytes
constexpr int kPad = 8;

int64_t num_parts(const SparseWeightGrad& args) {
  const int64_t size = args.taps * args.in_channels * args.out_channels;
  const int64_t room = size > 0 ? kScratch / size : 1;
  return std::max<int64_t>(1, std::min({args.num_out / kPartRows, kParts, room}));
}

// Pairs of a window, in the order of their rows in packets of 128. All threads get their number.
struct Pairs {
  int32_t out[kWindow], in[kWindow];
  int counts[kThreads / kWarp];
};

__device__ int list_pairs(const int32_t* table, int64_t first, int64_t last, Pairs& pairs) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int total = 0;
  for (int packet = 0; packet < kWindow; packet += kThreads) {
    const int64_t m = first + packet + threadIdx.x;
    const int32_t n = m < last ? table[m] : -1;
    const unsigned found = __ballot_sync(kAll, n >= 0);
    __syncthreads();  // counts of the packet before, and pairs of the window before, have been read
    if (lane == 0) pairs.counts[warp] = __popc(found);
    __syncthreads();
    int at = total + __popc(found & ((1u << lane) - 1));
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) at += pairs.counts[w];
      total += pairs.counts[w];
    }
    if (n >= 0) {
      pairs.out[at] = int32_t(m);
      pairs.in[at] = n;
    }
  }
  __syncthreads();
  return total;
}

struct Place {
  int64_t out_channel, in_channel;  // the first of the tile
  int64_t begin, end;               // rows of the part
};

template <int kTile>
__device__ Place place_of(const SparseWeightGrad& args, int64_t parts) {
  const int64_t across = (args.in_channels + kTile - 1) / kTile;
  const int64_t rows = (args.num_out + parts - 1) / parts;
  Place place;
  place.out_channel = blockIdx.z / across * kTile;
  place.in_channel = blockIdx.z % across * kTile;
  place.begin = blockIdx.x * rows;
  place.end = min(place.begin + rows, args.num_out);
  return place;
}

// ---- multiply-add: any dtype and number of channels; 32 x 32 products, 2 x 4 for a thread ----

template <typename T>
__global__ void __launch_bounds__(kThreads) add_fma(SparseWeightGrad args, typename Compute<T>::Real* partial) {
  typedef typename Compute<T>::Real Real;
  constexpr int kTile = 32;
  __shared__ Pairs pairs;
  __shared__ Real grad[kPairs][kTile + 1], in[kPairs][kTile + 1];
  const T* __restrict__ grads = static_cast<const T*>(args.grad);
  const T* __restrict__ ins = static_cast<const T*>(args.in);
  const Place place = place_of<kTile>(args, gridDim.x);
  const int o = threadIdx.x / 8 * 2, c = threadIdx.x % 8;
  for (int64_t tap = blockIdx.y; tap < args.taps; tap += gridDim.y) {
    Real sum[2][4] = {};
    for (int64_t first = place.begin; first < place.end; first += kWindow) {
      const int total = list_pairs(args.table + tap * args.num_out, first, place.end, pairs);
      for (int done = 0; done < total; done += kPairs) {
        for (int i = threadIdx.x; i < kPairs * kTile; i += kThreads) {
          const int p = i / kTile, x = i % kTile;
          const bool valid = done + p < total;
          const int64_t m = valid ? pairs.out[done + p] : 0, n = valid ? pairs.in[done + p] : 0;
          grad[p][x] = valid && place.out_channel + x < args.out_channels
                           ? Real(widen(grads[m * args.out_channels + place.out_channel + x])) : Real(0);
          in[p][x] = valid && place.in_channel + x < args.in_channels
                         ? Real(widen(ins[n * args.in_channels + place.in_channel + x])) : Real(0);
        }
        __syncthreads();
#pragma unroll 8
        for (int p = 0; p < kPairs; ++p)
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] += grad[p][o + i] * in[p][c + 8 * j];
        __syncthreads();
      }
    }
    Real* out = partial + (blockIdx.x * args.taps + tap) * args.out_channels * args.in_channels;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t row = place.out_channel + o + i, column = place.in_channel + c + 8 * j;
        if (row < args.out_channels && column < args.in_channels) out[row * args.in_channels + column] = sum[i][j];
      }
  }
}

// ---- tensor cores: 16-bit storage, channels in packs of 8; a quarter of the tile for each of 4 warps ----

template <typename T, int kTile>
__device__ void load_rows(
    const T* from, const int32_t* rows, int count, int64_t channels, int64_t channel, T (*tile)[kTile + kPad]) {
  for (int i = threadIdx.x; i < kPairs * kTile / kPack; i += kThreads) {
    const int p = i / (kTile / kPack), x = i % (kTile / kPack) * kPack;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (p < count && channel + x < channels)
      value = *reinterpret_cast<const uint4*>(from + int64_t(rows[p]) * channels + channel + x);
    *reinterpret_cast<uint4*>(&tile[p][x]) = value;
  }
}

template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads) add_mma(SparseWeightGrad args, float* partial) {
  namespace wmma = nvcuda::wmma;
  constexpr int kSide = kTile / 2, kBlocks16 = kSide / 16;
  __shared__ Pairs pairs;
  __shared__ __align__(32) T grad[kPairs][kTile + kPad], in[kPairs][kTile + kPad];
  constexpr int kPatchRow = 20;
  __shared__ __align__(32) float patches[kThreads / kWarp][16 * kPatchRow];
  const T* __restrict__ grads = static_cast<const T*>(args.grad);
  const T* __restrict__ ins = static_cast<const T*>(args.in);
  const Place place = place_of<kTile>(args, gridDim.x);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / 2 * kSide, column = warp % 2 * kSide;
  for (int64_t tap = blockIdx.y; tap < args.taps; tap += gridDim.y) {
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[kBlocks16][kBlocks16];
#pragma unroll
    for (int i = 0; i < kBlocks16; ++i)
#pragma unroll
      for (int j = 0; j < kBlocks16; ++j) wmma::fill_fragment(sum[i][j], 0.0f);
    for (int64_t first = place.begin; first < place.end; first += kWindow) {
      const int total = list_pairs(args.table + tap * args.num_out, first, place.end, pairs);
      for (int done = 0; done < total; done += kPairs) {
        load_rows<T, kTile>(grads, pairs.out + done, total - done, args.out_channels, place.out_channel, grad);
        load_rows<T, kTile>(ins, pairs.in + done, total - done, args.in_channels, place.in_channel, in);
        __syncthreads();
#pragma unroll
        for (int p = 0; p < kPairs; p += 16) {
          wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::col_major> a[kBlocks16];
          wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> b;
#pragma unroll
          for (int i = 0; i < kBlocks16; ++i) wmma::load_matrix_sync(a[i], &grad[p][row + i * 16], kTile + kPad);
#pragma unroll
          for (int j = 0; j < kBlocks16; ++j) {
            wmma::load_matrix_sync(b, &in[p][column + j * 16], kTile + kPad);
#pragma unroll
            for (int i = 0; i < kBlocks16; ++i) wmma::mma_sync(sum[i][j], a[i], b, sum[i][j]);
          }
        }
        __syncthreads();
      }
    }
    float* out = partial + (blockIdx.x * args.taps + tap) * args.out_channels * args.in_channels;
#pragma unroll
    for (int i = 0; i < kBlocks16; ++i)
#pragma unroll
      for (int j = 0; j < kBlocks16; ++j) {
        wmma::store_matrix_sync(patches[warp], sum[i][j], kPatchRow, wmma::mem_row_major);
        __syncwarp();
        for (int e = lane; e < 256; e += kWarp) {
          const int64_t r = place.out_channel + row + i * 16 + e / 16;
          const int64_t c = place.in_channel + column + j * 16 + e % 16;
          if (r < args.out_channels && c < args.in_channels)
            out[r * args.in_channels + c] = patches[warp][e / 16 * kPatchRow + e % 16];
        }
        __syncwarp();
      }
  }
}

template <typename T>
__global__ void add_parts(SparseWeightGrad args, const typename Compute<T>::Real* __restrict__ partial, int64_t parts) {
  const int64_t size = args.taps * args.out_channels * args.in_channels;
  T* __restrict__ out = static_cast<T*>(args.out);
  for (int64_t i = first_thread(); i < size; i += all_threads()) {
    typename Compute<T>::Real sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
    const int64_t c = i % args.in_channels, rest = i / args.in_channels;
    const int64_t o = rest % args.out_channels, tap = rest / args.out_channels;
    out[(o * args.taps + tap) * args.in_channels + c] = narrow<T>(sum);
  }
}

dim3 grid_of(const SparseWeightGrad& args, int64_t parts, int64_t tile) {
  const int64_t tiles = (args.out_channels + tile - 1) / tile * ((args.in_channels + tile - 1) / tile);
  return dim3(unsigned(parts), unsigned(std::min<int64_t>(args.taps, kMostTaps)), unsigned(tiles));
}

template <typename T>
cudaError_t add(const SparseWeightGrad& args, void* scratch, cudaStream_t stream) {
  typedef typename Compute<T>::Real Real;
  const int64_t size = args.taps * args.out_channels * args.in_channels, parts = num_parts(args);
  if (size == 0) return cudaSuccess;
  Real* partial = static_cast<Real*>(scratch);
  bool done = false;
  if constexpr (sizeof(T) == 2) {
    if (in_packs<kPack, T>(args.in_channels, {args.in}) && in_packs<kPack, T>(args.out_channels, {args.grad})) {
      if (std::max(args.in_channels, args.out_channels) <= 32)
        add_mma<T, 32><<<grid_of(args, parts, 32), kThreads, 0, stream>>>(args, partial);
      else
        add_mma<T, 64><<<grid_of(args, parts, 64), kThreads, 0, stream>>>(args, partial);
      done = true;
    }
  }
  if (!done) add_fma<T><<<grid_of(args, parts, 32), kThreads, 0, stream>>>(args, partial);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  add_parts<T><<<unsigned(blocks_for(size, 256)), 256, 0, stream>>>(args, partial, parts);
  return cudaGetLastError();
}

}  // namespace

int64_t sparse_weight_grad_scratch_cuda(const SparseWeightGrad& args) {
  const int64_t bytes = args.dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
  return num_parts(args) * args.taps * args.in_channels * args.out_channels * bytes;
}

int sparse_weight_grad_cuda(const SparseWeightGrad& args, void* scratch, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return add<decltype(zero)>(args, scratch, stream); });
}

}  // namespace fusion3d
