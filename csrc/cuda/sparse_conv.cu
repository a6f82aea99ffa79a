// Sparse convolution on CUDA as a product of gathered rows and weights. A block has a tile of output rows and a panel of
// output channels; it walks the taps that any of its rows has a neighbour for. 16-bit rows of whole packs go through the
// tensor cores, gathered one step ahead; all else through multiply-add. Sums run tap after tap: no atomics.
#include "fusion3d/sparse_conv.h"

#include <cuda_pipeline.h>
#include <mma.h>

#include <cstdint>
#include <type_traits>

#include "rows.cuh"

namespace fusion3d {
namespace {

constexpr int kTaps = 32;  // taps that a block looks at together

// Reads the table's columns of a tile for up to 32 taps. Returns the taps that a row has a neighbour for, as bits: those of
// the thread's warp in `own`, those of the whole block in the result. kRows threads take part, a row each.
template <int kRows>
__device__ unsigned load_neighbours(
    const SparseConv& args, int64_t first, int64_t tap, int count, int32_t (*neighbour)[kRows], unsigned* warps) {
  const int thread = threadIdx.x;
  if (thread < kRows) {
    const int64_t m = first + thread;
    unsigned own = 0;
    for (int k = 0; k < count; ++k) {
      const int32_t n = m < args.num_out ? args.table[(tap + k) * args.num_out + m] : -1;
      neighbour[k][thread] = n;
      own |= unsigned(__any_sync(kAll, n >= 0)) << k;
    }
    if (thread % kWarp == 0) warps[thread / kWarp] = own;
  }
  __syncthreads();
  unsigned all = 0;
  for (int w = 0; w < kRows / kWarp; ++w) all |= warps[w];
  return all;
}

__device__ int64_t weight_tap(const SparseConv& args, int64_t tap) { return args.flipped ? args.taps - 1 - tap : tap; }

// ---- multiply-add: any dtype and number of channels ----

constexpr int kRowsFma = 64;
constexpr int kDepthFma = 16;  // input channels at once

// Threads are 16 along rows by kPanel / 4 along channels, with 4 x 4 sums each.
template <typename T, int kPanel>
__global__ void __launch_bounds__(4 * kPanel) convolve_fma(SparseConv args) {
  typedef typename Compute<T>::Real Real;
  constexpr int kThreads = 4 * kPanel;
  __shared__ int32_t neighbour[kTaps][kRowsFma];
  __shared__ Real in[kDepthFma][kRowsFma + 4], weight[kDepthFma][kPanel + 4];
  __shared__ unsigned warps[kRowsFma / kWarp];
  const T* __restrict__ from = static_cast<const T*>(args.in);
  const T* __restrict__ weights = static_cast<const T*>(args.weight);
  const int thread = threadIdx.x, row = thread / (kPanel / 4) * 4, column = thread % (kPanel / 4) * 4;
  const int64_t first = blockIdx.x * int64_t(kRowsFma), panel = blockIdx.y * int64_t(kPanel);
  Real sum[4][4] = {};
  for (int64_t tap = 0; tap < args.taps; tap += kTaps) {
    const int count = int(min(int64_t(kTaps), args.taps - tap));
    __syncthreads();
    for (unsigned left = load_neighbours<kRowsFma>(args, first, tap, count, neighbour, warps); left; left &= left - 1) {
      const int k = __ffs(int(left)) - 1;
      const int64_t w = weight_tap(args, tap + k);
      for (int64_t c = 0; c < args.in_channels; c += kDepthFma) {
        for (int i = thread; i < kRowsFma * kDepthFma; i += kThreads) {
          const int r = i / kDepthFma, d = i % kDepthFma;
          const int64_t n = neighbour[k][r];
          in[d][r] = n >= 0 && c + d < args.in_channels ? Real(widen(from[n * args.in_channels + c + d])) : Real(0);
        }
        for (int i = thread; i < kPanel * kDepthFma; i += kThreads) {
          // Neighbouring threads read what lies side by side: output channels if adjoint, else input channels.
          const int d = args.adjoint ? i / kPanel : i % kDepthFma, o = args.adjoint ? i % kPanel : i / kDepthFma;
          const bool valid = c + d < args.in_channels && panel + o < args.out_channels;
          const int64_t at = args.adjoint ? ((c + d) * args.taps + w) * args.out_channels + panel + o
                                          : ((panel + o) * args.taps + w) * args.in_channels + c + d;
          weight[d][o] = valid ? Real(widen(weights[at])) : Real(0);
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < kDepthFma; ++d) {
          Real x[4], y[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            x[i] = in[d][row + i];
            y[i] = weight[d][column + i];
          }
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
        }
        __syncthreads();
      }
    }
  }
  T* __restrict__ out = static_cast<T*>(args.out);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first + row + i < args.num_out && panel + column + j < args.out_channels)
        out[(first + row + i) * args.out_channels + panel + column + j] = narrow<T>(sum[i][j]);
}

// ---- tensor cores: 16-bit storage, channels in packs of 8 ----

constexpr int kRowsMma = 128;  // 4 warps of 32 rows
constexpr int kDepth = 32;     // input channels of a step
constexpr int kPack = 8;       // values of 16 bytes
constexpr int kPad = 8;        // keeps the rows of a tile off each other's banks

template <typename T, int kPanel, bool kAdjoint>
struct alignas(32) MmaTile {
  static constexpr int kWeightRow = (kAdjoint ? kPanel : kDepth) + kPad;
  T in[kRowsMma * (kDepth + kPad)];
  T weight[(kAdjoint ? kDepth : kPanel) * kWeightRow];
};

template <typename T, int kPanel, bool kAdjoint>
__device__ void load_tile(
    const SparseConv& args, const int32_t* neighbour, int64_t tap, int64_t c, int64_t panel,
    MmaTile<T, kPanel, kAdjoint>& tile) {
  constexpr size_t kBytes = kPack * sizeof(T);
  const T* from = static_cast<const T*>(args.in);
  const T* weights = static_cast<const T*>(args.weight);
  const int64_t w = weight_tap(args, tap);
#pragma unroll
  for (int i = threadIdx.x; i < kRowsMma * kDepth / kPack; i += kRowsMma) {
    const int r = i / (kDepth / kPack), d = i % (kDepth / kPack) * kPack;
    const int64_t n = neighbour[r];
    const bool valid = n >= 0 && c + d < args.in_channels;
    const T* at = valid ? from + n * args.in_channels + c + d : from;
    __pipeline_memcpy_async(tile.in + r * (kDepth + kPad) + d, at, kBytes, valid ? 0 : kBytes);
  }
  constexpr int kRowPacks = (kAdjoint ? kPanel : kDepth) / kPack;
  for (int i = threadIdx.x; i < kPanel * kDepth / kPack; i += kRowsMma) {
    const int outer = i / kRowPacks, inner = i % kRowPacks * kPack;
    const int64_t d = c + (kAdjoint ? outer : inner), o = panel + (kAdjoint ? inner : outer);
    const bool valid = d < args.in_channels && o < args.out_channels;
    const int64_t at =
        kAdjoint ? (d * args.taps + w) * args.out_channels + o : (o * args.taps + w) * args.in_channels + d;
    T* to = tile.weight + outer * MmaTile<T, kPanel, kAdjoint>::kWeightRow + inner;
    __pipeline_memcpy_async(to, valid ? weights + at : weights, kBytes, valid ? 0 : kBytes);
  }
  __pipeline_commit();
}

template <typename T, int kPanel, bool kAdjoint>
__global__ void __launch_bounds__(kRowsMma) convolve_mma(SparseConv args) {
  namespace wmma = nvcuda::wmma;
  typedef MmaTile<T, kPanel, kAdjoint> Tile;
  typedef std::conditional_t<kAdjoint, wmma::row_major, wmma::col_major> Layout;
  constexpr int kColumns = kPanel / 16;
  __shared__ Tile tiles[2];
  __shared__ int32_t neighbour[kTaps][kRowsMma];
  __shared__ unsigned warps[kRowsMma / kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t first = blockIdx.x * int64_t(kRowsMma), panel = blockIdx.y * int64_t(kPanel);
  const int64_t chunks = (args.in_channels + kDepth - 1) / kDepth;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[2][kColumns];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) wmma::fill_fragment(sum[i][j], 0.0f);

  for (int64_t tap = 0; tap < args.taps; tap += kTaps) {
    const int count = int(min(int64_t(kTaps), args.taps - tap));
    unsigned ahead = load_neighbours<kRowsMma>(args, first, tap, count, neighbour, warps);
    const unsigned own = warps[warp];
    unsigned now = ahead;
    int64_t chunk_ahead = 0, chunk = 0;
    int stage = 0;
    // Each step is one tap and one chunk of channels; the next step's tile is on its way while this one is multiplied.
    const auto load_ahead = [&](Tile& tile) {
      const int k = __ffs(int(ahead)) - 1;
      load_tile<T, kPanel, kAdjoint>(args, neighbour[k], tap + k, chunk_ahead * kDepth, panel, tile);
      if (++chunk_ahead == chunks) {
        chunk_ahead = 0;
        ahead &= ahead - 1;
      }
    };
    if (ahead) load_ahead(tiles[0]);
    while (now) {
      if (ahead) {
        load_ahead(tiles[stage ^ 1]);
        __pipeline_wait_prior(1);
      } else {
        __pipeline_wait_prior(0);
      }
      __syncthreads();
      if (own & now & (0u - now)) {  // the warp's rows have neighbours through this tap
        const T* in = tiles[stage].in + warp * 32 * (kDepth + kPad);
        const T* weight = tiles[stage].weight;
#pragma unroll
        for (int d = 0; d < kDepth; d += 16) {
          wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a[2];
#pragma unroll
          for (int i = 0; i < 2; ++i)
            wmma::load_matrix_sync(a[i], in + i * 16 * (kDepth + kPad) + d, kDepth + kPad);
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            wmma::fragment<wmma::matrix_b, 16, 16, 16, T, Layout> b;
            const int at = kAdjoint ? d * Tile::kWeightRow + j * 16 : j * 16 * Tile::kWeightRow + d;
            wmma::load_matrix_sync(b, weight + at, Tile::kWeightRow);
#pragma unroll
            for (int i = 0; i < 2; ++i) wmma::mma_sync(sum[i][j], a[i], b, sum[i][j]);
          }
        }
      }
      __syncthreads();
      stage ^= 1;
      if (++chunk == chunks) {
        chunk = 0;
        now &= now - 1;
      }
    }
    __syncthreads();  // before the neighbours are overwritten
  }

  // Through shared memory, 16 x 16 at a time for each warp: a lane has half a row, eight channels.
  constexpr int kPatchRow = 20;
  static_assert(sizeof(tiles) >= 4 * 16 * kPatchRow * sizeof(float), "room for a patch of each warp");
  float* patch = reinterpret_cast<float*>(tiles) + warp * 16 * kPatchRow;
  T* out = static_cast<T*>(args.out);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      wmma::store_matrix_sync(patch, sum[i][j], kPatchRow, wmma::mem_row_major);
      __syncwarp();
      const int64_t m = first + warp * 32 + i * 16 + lane / 2, o = panel + j * 16 + lane % 2 * kPack;
      if (m < args.num_out && o < args.out_channels) {
        Pack<T, kPack> values;
#pragma unroll
        for (int n = 0; n < kPack; ++n) values.value[n] = narrow<T>(patch[lane / 2 * kPatchRow + lane % 2 * kPack + n]);
        *reinterpret_cast<Pack<T, kPack>*>(out + m * args.out_channels + o) = values;
      }
      __syncwarp();
    }
}

template <typename T, int kPanel>
void launch_fma(const SparseConv& args, cudaStream_t stream) {
  const dim3 grid(
      unsigned((args.num_out + kRowsFma - 1) / kRowsFma), unsigned((args.out_channels + kPanel - 1) / kPanel));
  convolve_fma<T, kPanel><<<grid, 4 * kPanel, 0, stream>>>(args);
}

template <typename T, int kPanel>
void launch_mma(const SparseConv& args, cudaStream_t stream) {
  const dim3 grid(
      unsigned((args.num_out + kRowsMma - 1) / kRowsMma), unsigned((args.out_channels + kPanel - 1) / kPanel));
  if (args.adjoint)
    convolve_mma<T, kPanel, true><<<grid, kRowsMma, 0, stream>>>(args);
  else
    convolve_mma<T, kPanel, false><<<grid, kRowsMma, 0, stream>>>(args);
}

template <typename T>
cudaError_t convolve(const SparseConv& args, cudaStream_t stream) {
  if (args.num_out == 0 || args.out_channels == 0) return cudaSuccess;
  if constexpr (sizeof(T) == 2) {
    if (in_packs<kPack, T>(args.in_channels, {args.in, args.weight}) && in_packs<kPack, T>(args.out_channels, {args.out})) {
      if (args.out_channels <= 16)
        launch_mma<T, 16>(args, stream);
      else if (args.out_channels <= 32)
        launch_mma<T, 32>(args, stream);
      else
        launch_mma<T, 64>(args, stream);
      return cudaGetLastError();
    }
  }
  if (args.out_channels <= 16)
    launch_fma<T, 16>(args, stream);
  else if (args.out_channels <= 32)
    launch_fma<T, 32>(args, stream);
  else
    launch_fma<T, 64>(args, stream);
  return cudaGetLastError();
}

}  // namespace

int sparse_conv_cuda(const SparseConv& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return convolve<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
