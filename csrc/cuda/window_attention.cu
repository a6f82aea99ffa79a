// Window attention on CUDA, forward. A block owns one tile of queries of one window for one head, and meets the window's
// keys a tile after the other. No atomics; the order of every sum is fixed.
//
// 16-bit storage, up to 128 channels: tensor cores (mma.sync m16n8k16), the scores stay in registers. All else: tiles
// in shared memory and plain arithmetic, in float or double.
#include "window_tiles.cuh"

namespace fusion3d {
namespace {

// ---- tensor cores

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) attend_mma(WindowForward args) {
  constexpr int kLine = kDim + kPad;
  __shared__ __align__(16) T q[kRowsOfBlock * kLine], k[kSide * kLine], vt[kDim * (kSide + kPad)];
  const WindowInput& in = args.in;
  const WindowTile tile = window_tile(in.cu_seqlens, in.windows, in.listed, kRowsOfBlock, blockIdx.x);
  if (tile.first >= tile.end) return;
  const int head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int owned = int(tile.end - tile.first < kRowsOfBlock ? tile.end - tile.first : kRowsOfBlock);
  const bool idle = warp * 16 >= owned;  // its rows are beyond the window
  load_rows<T, kDim>(in, in.q, in.q_stride, head, tile.first, owned, kRowsOfBlock, q, nullptr);
  float out[kDim / 8][4] = {}, peak[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const float factor = float(in.scale * kLog2e);
  for (int64_t j = tile.begin; j < tile.end; j += kSide) {
    const int keys = int(tile.end - j < kSide ? tile.end - j : kSide);
    __syncthreads();
    load_rows<T, kDim>(in, in.k, in.k_stride, head, j, keys, kSide, k, nullptr);
    load_rows<T, kDim>(in, in.v, in.v_stride, head, j, keys, kSide, nullptr, vt);
    __syncthreads();
    if (idle) continue;
    float score[4][4] = {};
    multiply_rows<T, kDim>(q + warp * 16 * kLine, k, score);
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // rows g and g + 8
      float largest = peak[half];
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[n][half * 2 + e];
          s = n * 8 + t * 2 + e < keys ? s * factor : -INFINITY;
          largest = fmaxf(largest, s);  // a NaN shows up in the sum
        }
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 2));
      const float shrink = exp2f(peak[half] - largest);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[n][half * 2 + e];
          s = exp2f(s - largest);
          sum += s;
        }
      total[half] = total[half] * shrink + sum;  // of this lane's keys; those of the row are added up at the end
      peak[half] = largest;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        out[n][half * 2] *= shrink;
        out[n][half * 2 + 1] *= shrink;
      }
    }
    multiply_weights<T, kDim>(score, vt, out);
  }
  if (idle) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = total[half];
    sum += __shfl_xor_sync(kAll, sum, 1);
    sum += __shfl_xor_sync(kAll, sum, 2);
    const int i = warp * 16 + half * 8 + g;
    const int64_t row = i < owned ? row_of(in, tile.first + i) : -1;
    if (row < 0) continue;
    store_row<T, kDim>(in, args.out, row, head, t, half, 1 / sum, out);
    if (t == 0) static_cast<float*>(args.lse)[row * in.heads + head] = peak[half] * float(kLn2) + logf(sum);
  }
}

// ---- plain arithmetic

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads) attend_plain(WindowForward args) {
  typedef typename Compute<T>::Real Real;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Real peak[kRows], total[kRows], shrink[kRows];
  const WindowInput& in = args.in;
  const WindowTile tile = window_tile(in.cu_seqlens, in.windows, in.listed, kRows, blockIdx.x);
  if (tile.first >= tile.end) return;
  const int width = plain_width(int(in.dim)), line = width + 1, lane = threadIdx.x % kWarp, head = blockIdx.y;
  Real* q = reinterpret_cast<Real*>(memory);
  Real *k = q + kRows * line, *v = k + kRows * line, *out = v + kRows * line, *p = out + kRows * line;
  const int owned = int(tile.end - tile.first < kRows ? tile.end - tile.first : kRows);
  load_plain<T>(in, in.q, in.q_stride, head, tile.first, owned, kRows, width, Real(in.scale), q);
  for (int i = threadIdx.x; i < kRows * line; i += kThreads) out[i] = 0;
  if (threadIdx.x < kRows) {
    peak[threadIdx.x] = -INFINITY;
    total[threadIdx.x] = 0;
  }
  for (int64_t j = tile.begin; j < tile.end; j += kRows) {
    const int keys = int(tile.end - j < kRows ? tile.end - j : kRows);
    __syncthreads();
    load_plain<T>(in, in.k, in.k_stride, head, j, keys, kRows, width, Real(1), k);
    load_plain<T>(in, in.v, in.v_stride, head, j, keys, kRows, width, Real(1), v);
    __syncthreads();
    multiply_plain<Real>(kRows, kRows, width, q, line, 1, k, 1, line, p, kRows + 1, nullptr, false);
    __syncthreads();
    for (int i = threadIdx.x / kWarp; i < kRows; i += kThreads / kWarp) {  // a warp has a row, its lanes are keys
      Real s = lane < keys ? p[i * (kRows + 1) + lane] * Real(kLog2e) : Real(-INFINITY);
      const Real old = peak[i];
      const Real largest = warp_max(s > old ? s : old);
      s = lane < keys ? power(s - largest) : Real(0);
      const Real sum = group_sum(s, kWarp);
      if (lane < kRows) p[i * (kRows + 1) + lane] = s;
      __syncwarp();
      if (lane == 0) {
        shrink[i] = power(old - largest);
        total[i] = total[i] * shrink[i] + sum;
        peak[i] = largest;
      }
    }
    __syncthreads();
    multiply_plain<Real>(kRows, width, keys, p, kRows + 1, 1, v, line, 1, out, line, shrink, true);
  }
  __syncthreads();
  if (threadIdx.x < kRows) {
    shrink[threadIdx.x] = 1 / total[threadIdx.x];
    const int64_t row = int(threadIdx.x) < owned ? row_of(in, tile.first + threadIdx.x) : -1;
    if (row >= 0)
      static_cast<Real*>(args.lse)[row * in.heads + head] =
          peak[threadIdx.x] * Real(kLn2) + log(total[threadIdx.x]);
  }
  __syncthreads();
  store_plain<T>(in, args.out, head, tile.first, owned, line, Real(1), shrink, out);
}

// ---- launches

template <typename T, int kDim>
cudaError_t forward_mma(const WindowForward& args, cudaStream_t stream) {
  return launch(attend_mma<T, kDim>, args, kRowsOfBlock, 0, stream);
}

template <typename T>
cudaError_t forward(const WindowForward& args, cudaStream_t stream) {
  typedef typename Compute<T>::Real Real;
  if (args.in.listed == 0 || args.in.windows == 0 || args.in.heads == 0) return cudaSuccess;
  if constexpr (sizeof(T) == 2) {
    if (args.in.dim <= 16) return forward_mma<T, 16>(args, stream);
    if (args.in.dim <= 32) return forward_mma<T, 32>(args, stream);
    if (args.in.dim <= 64) return forward_mma<T, 64>(args, stream);
    if (args.in.dim <= 128) return forward_mma<T, 128>(args, stream);
  }
  return with_rows<T>(args.in, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    return launch(attend_plain<T, kRows>, args, kRows, plain_bytes<Real>(args.in, kRows), stream);
  });
}

}  // namespace

int window_attention_forward_cuda(const WindowForward& args, cudaStream_t stream) {
  return for_dtype(args.in.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
