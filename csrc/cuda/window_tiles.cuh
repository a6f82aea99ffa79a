// Tiles of window attention on CUDA: rows into shared memory and back, the products of tiles, by tensor cores or plainly,
// and how kernels with a block for each tile are started.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "fusion3d/window_attention.h"
#include "numbers.cuh"
#include "tensor_cores.cuh"

namespace fusion3d {

constexpr int kRowsOfBlock = 64;  // tensor cores: owned rows, 16 of each warp
constexpr int kSide = 32;         // tensor cores: rows of the other side at once
constexpr int kThreads = 128;     // four warps
constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// Elements between the lines of a tile of 16-bit numbers: what a warp reads at once then lies in 32 banks.
constexpr int kPad = 8;

// The row of a place, negative where the list names one that is not there: it is read as zeros, and not written.
__device__ inline int64_t row_of(const WindowInput& in, int64_t place) {
  const int64_t row = in.order == nullptr ? place : in.order[place];
  return row < in.rows ? row : -1;
}

__device__ inline float power(float x) { return exp2f(x); }
__device__ inline double power(double x) { return exp2(x); }

// ---- 16-bit numbers, tensor cores. In a product of 16 x 8, lane 4 g + t holds rows g and g + 8, columns 2 t and 2 t +
// 1.

template <typename T>
__device__ inline uint32_t pair_at(const T* p) {
  return *reinterpret_cast<const uint32_t*>(p);
}

template <typename T>
__device__ inline uint32_t pair_of(float low, float high) {
  Pack<T, 2> pair = {{narrow<T>(low), narrow<T>(high)}};
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// One head of the rows at places [first, first + count) to `rows` ([room][kDim + kPad]), to `turned` ([kDim][room +
// kPad]), or both; 0 beyond `count` and beyond the head's channels. All threads of the block take part.
template <typename T, int kDim>
__device__ inline void load_rows(
    const WindowInput& in, const void* base, int64_t stride, int head, int64_t first, int count, int room, T* rows,
    T* turned) {
  const T* from = static_cast<const T*>(base) + head * in.dim;
  const int dim = int(in.dim);
  const bool packs = dim % 8 == 0 && stride % 8 == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (int i = threadIdx.x; i < room * (kDim / 8); i += blockDim.x) {
    const int r = i / (kDim / 8), c = i % (kDim / 8) * 8;
    Pack<T, 8> pack;
#pragma unroll
    for (int n = 0; n < 8; ++n) pack.value[n] = narrow<T>(0.0f);
    const int64_t row = r < count ? row_of(in, first + r) : -1;
    if (row >= 0) {
      const T* line = from + row * stride + c;
      if (packs) {
        if (c < dim) pack = *reinterpret_cast<const Pack<T, 8>*>(line);
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n)
          if (c + n < dim) pack.value[n] = line[n];
      }
    }
    if (rows != nullptr) *reinterpret_cast<Pack<T, 8>*>(rows + r * (kDim + kPad) + c) = pack;
    if (turned != nullptr) {
#pragma unroll
      for (int n = 0; n < 8; ++n) turned[(c + n) * (room + kPad) + r] = pack.value[n];
    }
  }
}

// score += a b^T: 16 rows of a, 32 rows of b, both [.][kDim + kPad].
template <typename T, int kDim>
__device__ inline void multiply_rows(const T* a, const T* b, float (&score)[4][4]) {
  constexpr int kLine = kDim + kPad;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int c = 0; c < kDim; c += 16) {
    const T* at = a + g * kLine + c + t * 2;
    const uint32_t left[4] = {pair_at(at), pair_at(at + 8 * kLine), pair_at(at + 8), pair_at(at + 8 * kLine + 8)};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const T* other = b + (n * 8 + g) * kLine + c + t * 2;
      mma(score[n], left, pair_at(other), pair_at(other + 8), T());
    }
  }
}

// out += weight b: weights of 16 x 32 as a product left them, b turned, [kDim][32 + kPad].
template <typename T, int kDim>
__device__ inline void multiply_weights(const float (&weight)[4][4], const T* turned, float (&out)[kDim / 8][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float(&w)[4] = weight[2 * k], (&x)[4] = weight[2 * k + 1];
    const uint32_t left[4] = {
        pair_of<T>(w[0], w[1]), pair_of<T>(w[2], w[3]), pair_of<T>(x[0], x[1]), pair_of<T>(x[2], x[3])};
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const T* other = turned + (n * 8 + g) * (32 + kPad) + k * 16 + t * 2;
      mma(out[n], left, pair_at(other), pair_at(other + 8), T());
    }
  }
}

// A lane's share of row g + 8 * half, times a factor, to one head of a row of the output.
template <typename T, int kDim>
__device__ inline void store_row(
    const WindowInput& in, void* base, int64_t row, int head, int t, int half, float factor,
    const float (&value)[kDim / 8][4]) {
  T* to = static_cast<T*>(base) + (row * in.heads + head) * in.dim;
  const int dim = int(in.dim);
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    const int c = n * 8 + t * 2;
    const float low = value[n][half * 2] * factor, high = value[n][half * 2 + 1] * factor;
    if (dim % 2 == 0) {
      if (c < dim) *reinterpret_cast<uint32_t*>(to + c) = pair_of<T>(low, high);
    } else {
      if (c < dim) to[c] = narrow<T>(low);
      if (c + 1 < dim) to[c + 1] = narrow<T>(high);
    }
  }
}

// ---- any numbers, plain arithmetic in shared memory

// Channels of a tile: whole quads. Lines are one longer, so that the lanes of a warp meet different banks in a column
// too.
inline __host__ __device__ int plain_width(int dim) { return (dim + 3) / 4 * 4; }

template <typename Real>
__device__ inline Real warp_max(Real v) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Real other = __shfl_xor_sync(kAll, v, step);
    v = other > v ? other : v;
  }
  return v;
}

// One head of some rows, times a factor, to [room][width + 1]; 0 beyond them and beyond the channels.
template <typename T, typename Real>
__device__ inline void load_plain(
    const WindowInput& in, const void* base, int64_t stride, int head, int64_t first, int count, int room, int width,
    Real factor, Real* to) {
  const T* from = static_cast<const T*>(base) + head * in.dim;
  for (int i = threadIdx.x; i < room * width; i += blockDim.x) {
    const int r = i / width, c = i % width;
    const int64_t row = r < count && c < in.dim ? row_of(in, first + r) : -1;
    to[r * (width + 1) + c] = row >= 0 ? widen(from[row * stride + c]) * factor : Real(0);
  }
}

// Lines of a tile, times a factor and a factor of each row, to one head of some rows.
template <typename T, typename Real>
__device__ inline void store_plain(
    const WindowInput& in, void* base, int head, int64_t first, int count, int line, Real factor,
    const typename Compute<T>::Real* of_row, const Real* from) {
  T* to = static_cast<T*>(base);
  const int dim = int(in.dim);
  for (int i = threadIdx.x; i < count * dim; i += blockDim.x) {
    const int r = i / dim, c = i % dim;
    const int64_t row = row_of(in, first + r);
    if (row < 0) continue;
    const Real value = from[r * line + c] * (of_row == nullptr ? factor : factor * of_row[r]);
    to[(row * in.heads + head) * in.dim + c] = narrow<T>(value);
  }
}

// c[r][n] = (add: c[r][n] * shrink[r]) + sum over k of a[r][k] * b[k][n]. A thread owns two rows and four columns, a
// quarter of the columns apart; `rows` is even, `columns` a multiple of four. The owner of an element is the same in
// every call.
template <typename Real>
__device__ inline void multiply_plain(
    int rows, int columns, int depth, const Real* a, int a_row, int a_step, const Real* b, int b_step, int b_column,
    Real* c, int line, const Real* shrink, bool add) {
  const int quarter = columns / 4;
  for (int i = threadIdx.x; i < rows / 2 * quarter; i += blockDim.x) {
    const int r = i / quarter * 2, n = i % quarter;
    Real sum[2][4] = {};
    if (add) {
#pragma unroll
      for (int x = 0; x < 2; ++x)
#pragma unroll
        for (int y = 0; y < 4; ++y)
          sum[x][y] = c[(r + x) * line + n + y * quarter] * (shrink == nullptr ? Real(1) : shrink[r + x]);
    }
    for (int k = 0; k < depth; ++k) {
      const Real low = a[r * a_row + k * a_step], high = a[(r + 1) * a_row + k * a_step];
#pragma unroll
      for (int y = 0; y < 4; ++y) {
        const Real factor = b[k * b_step + (n + y * quarter) * b_column];
        sum[0][y] += low * factor;
        sum[1][y] += high * factor;
      }
    }
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int y = 0; y < 4; ++y) c[(r + x) * line + n + y * quarter] = sum[x][y];
  }
}

// ---- launches

inline dim3 grid_of(const WindowInput& in, int64_t size) {
  return dim3(unsigned(window_tile_count(in.listed, in.windows, size)), unsigned(in.heads));
}

inline bool grid_fits(const WindowInput& in, int64_t size) {
  return window_tile_count(in.listed, in.windows, size) < int64_t(1) << 31 && in.heads < 65536;
}

// Starts a kernel with a block for each tile and head.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), const Args& args, int64_t size, size_t bytes, cudaStream_t stream) {
  if (!grid_fits(args.in, size)) return cudaErrorInvalidValue;
  if (const cudaError_t error = ask_shared(kernel, bytes); error != cudaSuccess) return error;
  kernel<<<grid_of(args.in, size), kThreads, bytes, stream>>>(args);
  return cudaGetLastError();
}

// Six tiles of rows and two of scores: as many rows as fit 48 KiB; 4 always fit what a kernel may ask for.
template <typename Real>
size_t plain_bytes(const WindowInput& in, int rows) {
  return sizeof(Real) * (6 * size_t(rows) * (plain_width(int(in.dim)) + 1) + 2 * size_t(rows) * (rows + 1));
}

template <typename T, typename Run>
cudaError_t with_rows(const WindowInput& in, const Run& run) {
  typedef typename Compute<T>::Real Real;
  constexpr size_t kMost = 46 * 1024;  // the rest is for the statistics of the rows
  if constexpr (sizeof(T) == 4) {
    if (plain_bytes<Real>(in, 32) <= kMost) return run(std::integral_constant<int, 32>());
    if (plain_bytes<Real>(in, 8) <= kMost && plain_bytes<Real>(in, 16) > kMost)
      return run(std::integral_constant<int, 8>());
  }
  if constexpr (sizeof(T) > 2)
    if (plain_bytes<Real>(in, 16) <= kMost) return run(std::integral_constant<int, 16>());
  return run(std::integral_constant<int, 4>());  // wide heads
}

}  // namespace fusion3d
