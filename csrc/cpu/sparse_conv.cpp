// Sparse convolution on the CPU. A tile of output rows keeps its sums in the cache. For each tap, the rows of the tile that
// have a neighbour are listed and multiplied with the tap's weights six at a time, in registers.
#include "fusion3d/sparse_conv.h"

#include <algorithm>
#include <vector>

#include "pairs.h"

namespace fusion3d {
namespace {

constexpr int64_t kTile = 256;  // output rows whose sums are kept at once
constexpr int kRows = 6;        // rows of a block in registers: 6 x 2 vectors of sums, 2 of weights and 1 of the input

// A convolution with its weights as the blocks want them: [taps][panels][in_channels][2 vectors], zero where there is no
// output channel.
struct Forward {
  const SparseConv& args;
  const void* packed;  // of Compute<T>::Real
  int64_t panels;
};

template <typename T>
struct Vectors {
  typedef typename Compute<T>::Real Real;
  typedef typename Compute<T>::Vector Vector;
  static constexpr int kLanes = sizeof(Vector) / sizeof(Real);
  static constexpr int kPanel = 2 * kLanes;
};

// sums[r] += in[r] * weights, for R rows and a panel of N vectors.
template <int R, int N, typename T>
FUSION3D_INLINE void multiply_block(
    const typename Compute<T>::Real* const* in, int64_t channels, const typename Compute<T>::Real* weight,
    typename Compute<T>::Real* const* sums) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int kLanes = Vectors<T>::kLanes;
  Vector total[R][N];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) total[r][n] = load(sums[r] + n * kLanes);
  for (int64_t c = 0; c < channels; ++c, weight += Vectors<T>::kPanel) {
    Vector w[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) w[n] = load(weight + n * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const typename Compute<T>::Real x = in[r][c];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) total[r][n] += x * w[n];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(sums[r] + n * kLanes, total[r][n]);
}

template <int N, typename T>
FUSION3D_INLINE void multiply_rows(
    const typename Compute<T>::Real* const* in, int64_t count, int64_t channels,
    const typename Compute<T>::Real* weight, typename Compute<T>::Real* const* sums) {
  int64_t i = 0;
  for (; N == 1 && i + 2 * kRows <= count; i += 2 * kRows)
    multiply_block<2 * kRows, 1, T>(in + i, channels, weight, sums + i);
  for (; i + kRows <= count; i += kRows) multiply_block<kRows, N, T>(in + i, channels, weight, sums + i);
  switch (count - i) {
    case 5: return multiply_block<5, N, T>(in + i, channels, weight, sums + i);
    case 4: return multiply_block<4, N, T>(in + i, channels, weight, sums + i);
    case 3: return multiply_block<3, N, T>(in + i, channels, weight, sums + i);
    case 2: return multiply_block<2, N, T>(in + i, channels, weight, sums + i);
    case 1: return multiply_block<1, N, T>(in + i, channels, weight, sums + i);
    default: return;
  }
}

// A tap's pairs in a tile. Their features are fetched ahead, and the next tile's part of the table.
template <typename T>
FUSION3D_INLINE int64_t list_tap(
    const SparseConv& args, const Features<T>& in, int64_t tile, int64_t k, int32_t* row, int32_t* neighbour) {
  const int64_t first = tile * kTile, rows = std::min(kTile, args.num_out - first);
  const int32_t* table = args.table + k * args.num_out + first;
  const int64_t count = list_pairs(table, rows, 0, row, neighbour);
  for (int64_t r = kTile; r < std::min(2 * kTile, args.num_out - first); r += 16) __builtin_prefetch(table + r);
  in.prefetch(neighbour, count);
  return count;
}

// The tiles [begin, end).
template <typename T>
FUSION3D_INLINE void convolve_tiles(const Forward& forward, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kPanel = Vectors<T>::kPanel, kLanes = Vectors<T>::kLanes;
  const SparseConv& args = forward.args;
  const int64_t channels = args.in_channels, width = forward.panels * kPanel;
  const Features<T> in{static_cast<const T*>(args.in), channels, channels};
  const Real* packed = static_cast<const Real*>(forward.packed);
  std::vector<Real> sums(kTile * width + kLanes), space(in.is_read_in_place() ? 0 : kTile * channels);
  int32_t row[2][kTile], neighbour[2][kTile];
  const Real* rows_in[kTile];
  Real* rows_out[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTile, rows = std::min(kTile, args.num_out - first);
    std::fill(sums.begin(), sums.end(), Real(0));
    int64_t ahead = list_tap(args, in, tile, 0, row[0], neighbour[0]);
    for (int64_t k = 0; k < args.taps; ++k) {
      const int64_t count = ahead;
      const int32_t* to = row[k & 1];
      in.find(neighbour[k & 1], count, space.data(), rows_in);
      if (k + 1 < args.taps) ahead = list_tap(args, in, tile, k + 1, row[(k + 1) & 1], neighbour[(k + 1) & 1]);
      const Real* weight = packed + (args.flipped ? args.taps - 1 - k : k) * width * channels;
      for (int64_t p = 0; p < forward.panels; ++p, weight += kPanel * channels) {
        for (int64_t i = 0; i < count; ++i) rows_out[i] = sums.data() + to[i] * width + p * kPanel;
        if (args.out_channels - p * kPanel <= kLanes)
          multiply_rows<1, T>(rows_in, count, channels, weight, rows_out);
        else
          multiply_rows<2, T>(rows_in, count, channels, weight, rows_out);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* out = static_cast<T*>(args.out) + (first + r) * args.out_channels;
      const Real* sum = sums.data() + r * width;
      int64_t c = 0;
      for (; c + kLanes <= args.out_channels; c += kLanes) store(out + c, load(sum + c));
      for (; c < args.out_channels; ++c) store_one(out + c, sum[c]);
    }
  }
}

FUSION3D_DISPATCH(run_forward, Forward, convolve_tiles)

template <typename T>
void pack_taps(const SparseConv& args, typename Compute<T>::Real* packed, int64_t panels, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = Vectors<T>::kPanel;
  const T* weight = static_cast<const T*>(args.weight);
  const int64_t in = args.in_channels, out = args.out_channels, taps = args.taps;
  for (int64_t k = begin; k < end; ++k) {
    typename Compute<T>::Real* to = packed + k * panels * kPanel * in;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t c = 0; c < in; ++c)
        for (int64_t o = p * kPanel; o < (p + 1) * kPanel; ++o)
          *to++ = o >= out ? 0 : load_one(weight + (args.adjoint ? (c * taps + k) * out + o : (o * taps + k) * in + c));
  }
}

}  // namespace

void sparse_conv_cpu(const SparseConv& args, const ParallelFor& parallel_for) {
  for_dtype(args.dtype, [&](auto zero) {
    typedef decltype(zero) T;
    constexpr int64_t kPanel = Vectors<T>::kPanel;
    const int64_t panels = (args.out_channels + kPanel - 1) / kPanel;
    std::vector<typename Compute<T>::Real> packed(args.taps * panels * kPanel * args.in_channels);
    parallel_for(0, args.taps, 4, [&](int64_t begin, int64_t end) {
      pack_taps<T>(args, packed.data(), panels, begin, end);
    });
    const Forward forward{args, packed.data(), panels};
    parallel_for(0, (args.num_out + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
      run_forward<T>(forward, begin, end);
    });
  });
}

}  // namespace fusion3d
