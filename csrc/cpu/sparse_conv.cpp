// Sparse convolution on the CPU. A tile of output rows keeps its sums in the cache. Its pairs of an output row and a
// neighbour are listed tap after tap and multiplied with the tap's weights in blocks of six or twelve, in registers.
#include "fusion3d/sparse_conv.h"

#include <algorithm>
#include <vector>

#include "lines.h"
#include "pairs.h"

namespace fusion3d {
namespace {

constexpr int64_t kTile = 512;  // output rows whose sums are kept at once
constexpr int64_t kAhead = 32;  // pairs between one that is multiplied and one whose features are fetched

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

// sums[r] += in[r] * weights, for R rows and N vectors.
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
    for (int n = 0; n < N; ++n) total[r][n] = load_same<Vector>(sums[r] + n * kLanes);
  for (int64_t c = 0; c < channels; ++c, weight += Vectors<T>::kPanel) {
    Vector w[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) w[n] = load_same<Vector>(weight + n * kLanes);
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

// The pairs of a tile, tap after tap. Each tap's are made up to whole blocks of R by pairs that add to a row after the
// tile's, which nobody reads. Beyond the last are kAhead entries without meaning: they are only ever fetched.
template <int R>
struct TilePairs {
  explicit TilePairs(const SparseConv& args)
      : first(args.taps + 1),
        row(args.taps * (std::min(kTile, args.num_out) + R) + kAhead + R),
        neighbour(row.size()) {}

  void list(const SparseConv& args, int64_t begin) {
    const int64_t rows = std::min(kTile, args.num_out - begin), next = std::min(2 * kTile, args.num_out - begin);
    int64_t count = 0;
    for (int64_t k = 0; k < args.taps; ++k) {
      const int32_t* table = args.table + k * args.num_out + begin;
      first[k] = count;
      count += list_pairs(table, rows, 0, row.data() + count, neighbour.data() + count);
      for (int64_t r = kTile; r < next; r += 16) __builtin_prefetch(table + r);
      for (; (count - first[k]) % R; ++count) {
        row[count] = int32_t(kTile);
        neighbour[count] = neighbour[count - 1];
      }
    }
    first[args.taps] = count;
  }

  std::vector<int64_t> first;  // [taps + 1] of the tap's pairs
  std::vector<int32_t> row, neighbour;
};

// The tiles [begin, end), in blocks of R rows by N vectors.
template <int R, int N, typename T>
FUSION3D_INLINE void convolve_blocks(const Forward& forward, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  typedef typename Compute<T>::Vector Vector;
  constexpr int64_t kPanel = Vectors<T>::kPanel, kLanes = Vectors<T>::kLanes;
  const SparseConv& args = forward.args;
  const int64_t channels = args.in_channels;
  // A constant where there is one vector: then no row takes a multiplication to find.
  const int64_t width = N == 1 ? kLanes : (args.out_channels + kLanes - 1) / kLanes * kLanes;
  const int64_t whole = N == 1 ? 0 : width / kPanel;  // panels of two vectors
  const Features<T> in{static_cast<const T*>(args.in), channels, channels};
  Lines<Real> sums((kTile + 1) * width), space(in.is_read_in_place() ? 0 : R * channels);
  TilePairs<R> pairs(args);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTile, rows = std::min(kTile, args.num_out - first);
    std::fill(sums.begin(), sums.end(), Real(0));
    pairs.list(args, first);
    for (int64_t k = 0; k < args.taps; ++k) {
      const int64_t tap = args.flipped ? args.taps - 1 - k : k;
      const Real* weights = static_cast<const Real*>(forward.packed) + tap * forward.panels * kPanel * channels;
      for (int64_t i = pairs.first[k]; i < pairs.first[k + 1]; i += R) {
        const Real* from[R];
        Real* to[R];
        in.prefetch(&pairs.neighbour[i + kAhead], R);
        in.find(&pairs.neighbour[i], R, space.data(), from);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) to[r] = sums.data() + pairs.row[i + r] * width;
        const Real* weight = weights;
        for (int64_t p = 0; p < whole; ++p, weight += kPanel * channels) {
          multiply_block<R, N, T>(from, channels, weight, to);
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) to[r] += kPanel;
        }
        if (whole < forward.panels) multiply_block<R, 1, T>(from, channels, weight, to);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* out = static_cast<T*>(args.out) + (first + r) * args.out_channels;
      const Real* sum = sums.data() + r * width;
      int64_t c = 0;
      for (; c + kLanes <= args.out_channels; c += kLanes) store(out + c, load_same<Vector>(sum + c));
      for (; c < args.out_channels; ++c) store_one(out + c, sum[c]);
    }
  }
}

template <typename T>
FUSION3D_INLINE void convolve_tiles(const Forward& forward, int64_t begin, int64_t end) {
  if (forward.args.out_channels <= Vectors<T>::kLanes)
    convolve_blocks<12, 1, T>(forward, begin, end);
  else
    convolve_blocks<6, 2, T>(forward, begin, end);
}

inline bool is_wide(const SparseConv& args) { return args.out_channels > 8; }
inline bool is_wide(const Forward& forward) { return is_wide(forward.args); }
FUSION3D_DISPATCH_WIDE(run_forward, Forward, convolve_tiles)

// Output channels of a panel, of the code that will run.
template <typename T>
int64_t panel_of(const SparseConv& args) {
  return has_avx512() && is_wide(args) ? Vectors<typename Avx512Type<T>::Type>::kPanel : Vectors<T>::kPanel;
}

template <typename T>
void pack_taps(const SparseConv& args, typename Compute<T>::Real* packed, int64_t panels, int64_t begin, int64_t end) {
  const int64_t panel = panel_of<T>(args);
  const T* weight = static_cast<const T*>(args.weight);
  const int64_t in = args.in_channels, out = args.out_channels, taps = args.taps;
  for (int64_t k = begin; k < end; ++k) {
    typename Compute<T>::Real* to = packed + k * panels * panel * in;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t c = 0; c < in; ++c)
        for (int64_t o = p * panel; o < (p + 1) * panel; ++o)
          *to++ = o >= out ? 0 : load_one(weight + (args.adjoint ? (c * taps + k) * out + o : (o * taps + k) * in + c));
  }
}

}  // namespace

void sparse_conv_cpu(const SparseConv& args, const ParallelFor& parallel_for) {
  for_dtype(args.dtype, [&](auto zero) {
    typedef decltype(zero) T;
    const int64_t panel = panel_of<T>(args), panels = (args.out_channels + panel - 1) / panel;
    Lines<typename Compute<T>::Real> packed(args.taps * panels * panel * args.in_channels);
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
