// Reduction of segments on CUDA: a warp owns a segment. Its lanes are channels, and where these are few, several rows at
// once, whose results are joined in a fixed order. Backward, neighbouring threads own neighbouring channels of a row.
#include <cstdint>
#include <type_traits>

#include "fusion3d/segments.h"
#include "rows.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;

template <typename T, int N>
__global__ void sum_segments(SegmentReduce args, int lanes) {
  typedef typename Compute<T>::Real Real;
  const Pack<T, N>* __restrict__ values = static_cast<const Pack<T, N>*>(args.values);
  Pack<T, N>* __restrict__ out = static_cast<Pack<T, N>*>(args.out);
  const int lane = threadIdx.x % kWarp, group = lane / lanes, groups = kWarp / lanes;
  const int64_t packs = args.channels / N, warps = int64_t(gridDim.x) * (blockDim.x / kWarp);
  for (int64_t i = first_thread() / kWarp; i < args.segments; i += warps) {
    const int32_t begin = args.ptr[i], end = args.ptr[i + 1];
    for (int64_t first = 0; first < packs; first += lanes) {  // the same turns for the whole warp
      const int64_t pack = first + lane % lanes;
      Real sum[N] = {};
      if (pack < packs)
        for (int64_t r = begin + group; r < end; r += groups) {
          const Pack<T, N> row = values[int64_t(args.order[r]) * packs + pack];
#pragma unroll
          for (int n = 0; n < N; ++n) sum[n] += widen(row.value[n]);
        }
      for (int step = lanes; step < kWarp; step *= 2)
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n] += __shfl_xor_sync(kAll, sum[n], step);
      if (pack >= packs || group != 0) continue;
      const Real count = args.reduce == Reduce::kMean && end > begin ? Real(end - begin) : Real(1);
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] /= count;
      write_row<T, N>(out + i * packs + pack, sum);
    }
  }
}

template <typename T, int N>
__global__ void max_segments(SegmentReduce args, int lanes) {
  typedef typename Compute<T>::Real Real;
  const Pack<T, N>* __restrict__ values = static_cast<const Pack<T, N>*>(args.values);
  Pack<T, N>* __restrict__ out = static_cast<Pack<T, N>*>(args.out);
  Pack<int32_t, N>* __restrict__ arg = reinterpret_cast<Pack<int32_t, N>*>(args.arg);
  const int lane = threadIdx.x % kWarp, group = lane / lanes, groups = kWarp / lanes;
  const int64_t packs = args.channels / N, warps = int64_t(gridDim.x) * (blockDim.x / kWarp);
  for (int64_t i = first_thread() / kWarp; i < args.segments; i += warps) {
    const int32_t begin = args.ptr[i], end = args.ptr[i + 1];
    for (int64_t first = 0; first < packs; first += lanes) {
      const int64_t pack = first + lane % lanes;
      Real best[N] = {};
      int32_t at[N];  // rows of a segment ascend, so the smaller row is the first
#pragma unroll
      for (int n = 0; n < N; ++n) at[n] = -1;
      if (pack < packs)
        for (int64_t r = begin + group; r < end; r += groups) {
          const int32_t index = args.order[r];
          const Pack<T, N> row = values[int64_t(index) * packs + pack];
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const Real value = widen(row.value[n]);
            if (at[n] < 0 || exceeds(value, best[n])) best[n] = value, at[n] = index;
          }
        }
      for (int step = lanes; step < kWarp; step *= 2)
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const Real value = __shfl_xor_sync(kAll, best[n], step);
          const int32_t index = __shfl_xor_sync(kAll, at[n], step);
          // The one that comes first keeps its place unless it is exceeded, whichever lane asks.
          const bool other_first = index < at[n];
          const bool take = index >= 0 && (at[n] < 0 || (other_first ? !exceeds(best[n], value) : exceeds(value, best[n])));
          if (take) best[n] = value, at[n] = index;
        }
      if (pack >= packs || group != 0) continue;
      Pack<int32_t, N> from;
#pragma unroll
      for (int n = 0; n < N; ++n) from.value[n] = at[n];
      write_row<T, N>(out + i * packs + pack, best);
      arg[i * packs + pack] = from;
    }
  }
}

template <typename T, int N>
__global__ void spread_rows(SegmentReduceBackward args) {
  typedef typename Compute<T>::Real Real;
  const Pack<T, N>* __restrict__ grad_out = static_cast<const Pack<T, N>*>(args.grad_out);
  const Pack<int32_t, N>* __restrict__ arg = reinterpret_cast<const Pack<int32_t, N>*>(args.arg);
  Pack<T, N>* __restrict__ grad_values = static_cast<Pack<T, N>*>(args.grad_values);
  const int64_t packs = args.channels / N, total = args.rows * packs;
  for (int64_t t = first_thread(); t < total; t += all_threads()) {
    const int64_t row = t / packs, pack = t % packs, i = args.segment[row];
    Pack<T, N> grad;
    if (i < 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) grad.value[n] = narrow<T>(Real(0));
      grad_values[t] = grad;
      continue;
    }
    grad = grad_out[i * packs + pack];
    if (args.reduce == Reduce::kMean) {
      const Real rows = Real(args.ptr[i + 1] - args.ptr[i]);
#pragma unroll
      for (int n = 0; n < N; ++n) grad.value[n] = narrow<T>(widen(grad.value[n]) / rows);
    } else if (args.reduce == Reduce::kMax) {
      const Pack<int32_t, N> from = arg[i * packs + pack];
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (from.value[n] != row) grad.value[n] = narrow<T>(Real(0));
    }
    grad_values[t] = grad;
  }
}

// run(integral constant) with how many neighbouring channels are moved at once: four, or two doubles, where the number of
// channels and where the arrays begin allow it.
template <typename T, typename Run>
void for_pack(int64_t channels, std::initializer_list<const void*> values, const int32_t* arg, const Run& run) {
  constexpr int kPack = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;
  if (in_packs<kPack, T>(channels, values) && in_packs<kPack, int32_t>(channels, {arg}))
    run(std::integral_constant<int, kPack>());
  else
    run(std::integral_constant<int, 1>());
}

template <typename T>
cudaError_t forward(const SegmentReduce& args, cudaStream_t stream) {
  if (args.segments == 0 || args.channels == 0) return cudaSuccess;
  for_pack<T>(args.channels, {args.values, args.out}, args.arg, [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    int lanes = 1;
    while (lanes < kWarp && lanes < args.channels / N) lanes *= 2;
    const unsigned blocks = unsigned(blocks_for(args.segments, kThreads / kWarp));
    if (args.reduce == Reduce::kMax)
      max_segments<T, N><<<blocks, kThreads, 0, stream>>>(args, lanes);
    else
      sum_segments<T, N><<<blocks, kThreads, 0, stream>>>(args, lanes);
  });
  return cudaGetLastError();
}

template <typename T>
cudaError_t backward(const SegmentReduceBackward& args, cudaStream_t stream) {
  if (args.rows == 0 || args.channels == 0) return cudaSuccess;
  for_pack<T>(args.channels, {args.grad_out, args.grad_values}, args.arg, [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    const unsigned blocks = unsigned(blocks_for(args.rows * (args.channels / N), kThreads));
    spread_rows<T, N><<<blocks, kThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace

int segment_reduce_cuda(const SegmentReduce& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

int segment_reduce_backward_cuda(const SegmentReduceBackward& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto zero) { return backward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
