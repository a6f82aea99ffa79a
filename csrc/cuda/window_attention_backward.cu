// Window attention on CUDA, backward. A block owns one tile of one window for one head, of queries for their gradient, of
// keys for theirs, and meets the window's other rows a tile after the other; computed as the forward pass is.
#include "window_tiles.cuh"

namespace fusion3d {
namespace {

// ---- tensor cores

// A gradient of the owned rows of one side (kKeys: k and v, else q) from all rows of the other. With the sides swapped,
// scores and weights come out transposed, and both cases are one: owned rows in a, others in b.
template <typename T, int kDim, bool kKeys>
__global__ void __launch_bounds__(kThreads) unattend_mma(WindowBackward args) {
  constexpr int kLine = kDim + kPad, kTurned = kSide + kPad;
  extern __shared__ __align__(16) unsigned char memory[];
  T* a1 = reinterpret_cast<T*>(memory);  // owned q, or k
  T* a2 = a1 + kRowsOfBlock * kLine;     // owned grad_out, or v
  T* b1 = a2 + kRowsOfBlock * kLine;     // other k, or q
  T* b2 = b1 + kSide * kLine;            // other v, or grad_out
  T* b1t = b2 + kSide * kLine;           // the same, columns first
  T* b2t = b1t + kDim * kTurned;         // of grad_out only
  __shared__ float lse[kSide], delta[kSide];
  const WindowInput& in = args.in;
  const WindowTile tile = window_tile(in.cu_seqlens, in.windows, in.listed, kRowsOfBlock, blockIdx.x);
  if (tile.first >= tile.end) return;
  const int head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int owned = int(tile.end - tile.first < kRowsOfBlock ? tile.end - tile.first : kRowsOfBlock);
  const bool idle = warp * 16 >= owned;
  const int64_t grad_stride = in.heads * in.dim;
  const float* all_lse = static_cast<const float*>(args.lse);
  const float* all_delta = static_cast<const float*>(args.delta);
  load_rows<T, kDim>(
      in, kKeys ? in.k : in.q, kKeys ? in.k_stride : in.q_stride, head, tile.first, owned, kRowsOfBlock, a1, nullptr);
  load_rows<T, kDim>(
      in, kKeys ? in.v : args.grad_out, kKeys ? in.v_stride : grad_stride, head, tile.first, owned, kRowsOfBlock, a2,
      nullptr);
  float grad1[kDim / 8][4] = {}, grad2[kKeys ? kDim / 8 : 1][4] = {};  // of q or k, and of v
  float own_lse[2] = {}, own_delta[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = warp * 16 + half * 8 + g;
    const int64_t row = !kKeys && i < owned ? row_of(in, tile.first + i) : -1;
    if (row < 0) continue;
    const int64_t at = row * in.heads + head;
    own_lse[half] = all_lse[at] * float(kLog2e);
    own_delta[half] = all_delta[at];
  }
  const float factor = float(in.scale * kLog2e);
  for (int64_t j = tile.begin; j < tile.end; j += kSide) {
    const int others = int(tile.end - j < kSide ? tile.end - j : kSide);
    __syncthreads();
    load_rows<T, kDim>(
        in, kKeys ? in.q : in.k, kKeys ? in.q_stride : in.k_stride, head, j, others, kSide, b1, b1t);
    load_rows<T, kDim>(
        in, kKeys ? args.grad_out : in.v, kKeys ? grad_stride : in.v_stride, head, j, others, kSide, b2,
        kKeys ? b2t : nullptr);
    if (kKeys && threadIdx.x < kSide) {
      const int64_t row = int(threadIdx.x) < others ? row_of(in, j + threadIdx.x) : -1, at = row * in.heads + head;
      lse[threadIdx.x] = row >= 0 ? all_lse[at] * float(kLog2e) : 0.0f;
      delta[threadIdx.x] = row >= 0 ? all_delta[at] : 0.0f;
    }
    __syncthreads();
    if (idle) continue;
    float p[4][4] = {}, grad_p[4][4] = {};
    multiply_rows<T, kDim>(a1 + warp * 16 * kLine, b1, p);
    multiply_rows<T, kDim>(a2 + warp * 16 * kLine, b2, grad_p);
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int other = n * 8 + t * 2 + e % 2;
        const float l = kKeys ? lse[other] : own_lse[e / 2], d = kKeys ? delta[other] : own_delta[e / 2];
        p[n][e] = other < others ? exp2f(p[n][e] * factor - l) : 0.0f;
        grad_p[n][e] = other < others ? p[n][e] * (grad_p[n][e] - d) : 0.0f;
      }
    multiply_weights<T, kDim>(grad_p, b1t, grad1);
    if constexpr (kKeys) multiply_weights<T, kDim>(p, b2t, grad2);
  }
  if (idle) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = warp * 16 + half * 8 + g;
    const int64_t row = i < owned ? row_of(in, tile.first + i) : -1;
    if (row < 0) continue;
    store_row<T, kDim>(in, kKeys ? args.grad_k : args.grad_q, row, head, t, half, float(in.scale), grad1);
    if constexpr (kKeys) store_row<T, kDim>(in, args.grad_v, row, head, t, half, 1.0f, grad2);
  }
}

// ---- plain arithmetic

template <typename T, int kRows, bool kKeys>
__global__ void __launch_bounds__(kThreads) unattend_plain(WindowBackward args) {
  typedef typename Compute<T>::Real Real;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Real lse[kRows], delta[kRows];
  const WindowInput& in = args.in;
  const WindowTile tile = window_tile(in.cu_seqlens, in.windows, in.listed, kRows, blockIdx.x);
  if (tile.first >= tile.end) return;
  const int width = plain_width(int(in.dim)), line = width + 1, head = blockIdx.y;
  Real* q = reinterpret_cast<Real*>(memory);
  Real *grad = q + kRows * line, *k = grad + kRows * line, *v = k + kRows * line, *grad1 = v + kRows * line;
  Real *grad2 = grad1 + kRows * line, *p = grad2 + kRows * line, *grad_p = p + kRows * (kRows + 1);
  const int owned = int(tile.end - tile.first < kRows ? tile.end - tile.first : kRows);
  for (int i = threadIdx.x; i < 2 * kRows * line; i += kThreads) grad1[i] = 0;  // grad2 lies behind it
  for (int64_t j = tile.begin; j < tile.end; j += kRows) {
    const int others = int(tile.end - j < kRows ? tile.end - j : kRows);
    const int64_t query = kKeys ? j : tile.first, key = kKeys ? tile.first : j;
    const int queries = kKeys ? others : owned, keys = kKeys ? owned : others;
    __syncthreads();
    if (kKeys || j == tile.begin) {
      load_plain<T>(in, in.q, in.q_stride, head, query, queries, kRows, width, Real(in.scale), q);
      load_plain<T>(in, args.grad_out, in.heads * in.dim, head, query, queries, kRows, width, Real(1), grad);
      if (int(threadIdx.x) < kRows) {
        const int64_t row = int(threadIdx.x) < queries ? row_of(in, query + threadIdx.x) : -1;
        const int64_t at = row * in.heads + head;
        lse[threadIdx.x] = row >= 0 ? static_cast<const Real*>(args.lse)[at] * Real(kLog2e) : Real(0);
        delta[threadIdx.x] = row >= 0 ? static_cast<const Real*>(args.delta)[at] : Real(0);
      }
    }
    if (!kKeys || j == tile.begin) {
      load_plain<T>(in, in.k, in.k_stride, head, key, keys, kRows, width, Real(1), k);
      load_plain<T>(in, in.v, in.v_stride, head, key, keys, kRows, width, Real(1), v);
    }
    __syncthreads();
    multiply_plain<Real>(kRows, kRows, width, q, line, 1, k, 1, line, p, kRows + 1, nullptr, false);
    multiply_plain<Real>(kRows, kRows, width, grad, line, 1, v, 1, line, grad_p, kRows + 1, nullptr, false);
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kRows; i += kThreads) {
      const int r = i / kRows, c = i % kRows, at = r * (kRows + 1) + c;
      const bool real = r < queries && c < keys;
      p[at] = real ? power(p[at] * Real(kLog2e) - lse[r]) : Real(0);
      grad_p[at] = real ? p[at] * (grad_p[at] - delta[r]) : Real(0);
    }
    __syncthreads();
    if (kKeys) {  // sums over queries
      multiply_plain<Real>(kRows, width, queries, grad_p, 1, kRows + 1, q, line, 1, grad1, line, nullptr, true);
      multiply_plain<Real>(kRows, width, queries, p, 1, kRows + 1, grad, line, 1, grad2, line, nullptr, true);
    } else {
      multiply_plain<Real>(kRows, width, keys, grad_p, kRows + 1, 1, k, line, 1, grad1, line, nullptr, true);
    }
  }
  __syncthreads();
  store_plain<T>(
      in, kKeys ? args.grad_k : args.grad_q, head, tile.first, owned, line, kKeys ? Real(1) : Real(in.scale), nullptr,
      grad1);
  if (kKeys) store_plain<T>(in, args.grad_v, head, tile.first, owned, line, Real(1), nullptr, grad2);
}

// delta = sum over the channels of grad_out * out: a warp for each row and head.
template <typename T>
__global__ void __launch_bounds__(kThreads) row_delta(WindowBackward args) {
  typedef typename Compute<T>::Real Real;
  const int64_t items = args.in.rows * args.in.heads, dim = args.in.dim;
  const T *out = static_cast<const T*>(args.out), *grad = static_cast<const T*>(args.grad_out);
  const int lane = threadIdx.x % kWarp, warps = kThreads / kWarp;
  for (int64_t i = blockIdx.x * int64_t(warps) + threadIdx.x / kWarp; i < items; i += int64_t(gridDim.x) * warps) {
    Real sum = 0;
    for (int64_t c = lane; c < dim; c += kWarp) sum += widen(out[i * dim + c]) * widen(grad[i * dim + c]);
    sum = group_sum(sum, kWarp);
    if (lane == 0) static_cast<Real*>(args.delta)[i] = sum;
  }
}

// ---- launches

template <typename T, int kDim>
cudaError_t backward_mma(const WindowBackward& args, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(T) * ((2 * kRowsOfBlock + 2 * kSide) * (kDim + kPad) + 2 * kDim * (kSide + kPad));
  const cudaError_t error = launch(unattend_mma<T, kDim, false>, args, kRowsOfBlock, kBytes, stream);
  return error == cudaSuccess ? launch(unattend_mma<T, kDim, true>, args, kRowsOfBlock, kBytes, stream) : error;
}

template <typename T>
cudaError_t backward(const WindowBackward& args, cudaStream_t stream) {
  typedef typename Compute<T>::Real Real;
  if (args.in.listed == 0 || args.in.windows == 0 || args.in.heads == 0) return cudaSuccess;
  const int64_t blocks = blocks_for(args.in.rows * args.in.heads, kThreads / kWarp);
  row_delta<T><<<unsigned(blocks), kThreads, 0, stream>>>(args);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  if constexpr (sizeof(T) == 2) {
    if (args.in.dim <= 16) return backward_mma<T, 16>(args, stream);
    if (args.in.dim <= 32) return backward_mma<T, 32>(args, stream);
    if (args.in.dim <= 64) return backward_mma<T, 64>(args, stream);
    if (args.in.dim <= 128) return backward_mma<T, 128>(args, stream);
  }
  return with_rows<T>(args.in, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const size_t bytes = plain_bytes<Real>(args.in, kRows);
    const cudaError_t first = launch(unattend_plain<T, kRows, false>, args, kRows, bytes, stream);
    return first == cudaSuccess ? launch(unattend_plain<T, kRows, true>, args, kRows, bytes, stream) : first;
  });
}

}  // namespace

int window_attention_backward_cuda(const WindowBackward& args, cudaStream_t stream) {
  return for_dtype(args.in.dtype, [&](auto zero) { return backward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
