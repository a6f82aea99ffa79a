// BEV pooling on the CPU. The sums of as many channels as fit stay in registers. Each worker is compiled for the baseline
// and, on x86, for AVX2 with FMA; which one runs is decided when it is called.
#include "fusion3d/bev_pool.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "lines.h"
#include "pages.h"
#include "vector.h"

namespace fusion3d {
namespace {

constexpr int kMostVectors = 12;    // sums held in registers at once: 16 registers, less what is being added
constexpr int kMostOfPixel = 6;     // the same backward, where the pixel's features are held beside them
constexpr int kAhead = 6;           // samples between asking for a row and using it
constexpr int64_t kPatchRows = 8;   // pixels of a patch, backward: a column of them looks into the same cells,
constexpr int64_t kPatchCols = 16;  // and a row of them shares the cache lines of depth

// Calls run(width) with the width as a constant, 1 to kMostVectors.
template <typename Run>
FUSION3D_INLINE void with_width(int64_t width, const Run& run) {
  switch (width) {
#define FUSION3D_WIDTH(N) \
  case N: return run(std::integral_constant<int, N>());
    FUSION3D_WIDTH(1)
    FUSION3D_WIDTH(2)
    FUSION3D_WIDTH(3)
    FUSION3D_WIDTH(4)
    FUSION3D_WIDTH(5)
    FUSION3D_WIDTH(6)
    FUSION3D_WIDTH(7)
    FUSION3D_WIDTH(8)
    FUSION3D_WIDTH(9)
    FUSION3D_WIDTH(10)
    FUSION3D_WIDTH(11)
    FUSION3D_WIDTH(12)
#undef FUSION3D_WIDTH
  }
}

template <typename T>
FUSION3D_INLINE void prefetch_row(const T* row, int64_t values) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < values * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(at + byte);
}

// The channels of N vectors from `c` on, of the cells order[first:last]. The last vector ends with the last channel, and so
// may overlap the one before: what is computed twice is the same twice.
template <int N, typename T>
FUSION3D_INLINE void pool_vectors(const BevPoolForward& args, int64_t first, int64_t last, int64_t c) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int64_t kWide = kLanes<T>;
  const T* depth = static_cast<const T*>(args.depth);
  const T* feat = static_cast<const T*>(args.feat) + c;
  const int64_t channels = args.channels, tail = std::min((N - 1) * kWide, channels - c - kWide);
  for (int64_t i = first; i < last; ++i) {
    const int64_t cell = args.order[i];
    const int64_t begin = args.cell_ptr[cell], end = args.cell_ptr[cell + 1];
    Vector total[N] = {};
    for (int64_t s = begin; s < end; ++s) {
      const auto weight = load_one(depth + args.sample[s]);
      const T* row = feat + args.pixel[s] * channels;
#pragma GCC unroll 12
      for (int n = 0; n < N - 1; ++n) total[n] += weight * load(row + n * kWide);
      total[N - 1] += weight * load(row + tail);
    }
    T* out = static_cast<T*>(args.out) + cell * channels + c;
#pragma GCC unroll 12
    for (int n = 0; n < N - 1; ++n) store(out + n * kWide, total[n]);
    store(out + tail, total[N - 1]);
  }
}

template <typename T>
FUSION3D_INLINE void pool_scalars(const BevPoolForward& args, int64_t first, int64_t last) {
  const T* depth = static_cast<const T*>(args.depth);
  const T* feat = static_cast<const T*>(args.feat);
  for (int64_t i = first; i < last; ++i) {
    const int64_t cell = args.order[i];
    for (int64_t c = 0; c < args.channels; ++c) {
      typename Compute<T>::Real total = 0;
      for (int64_t s = args.cell_ptr[cell]; s < args.cell_ptr[cell + 1]; ++s)
        total += load_one(depth + args.sample[s]) * load_one(feat + args.pixel[s] * args.channels + c);
      store_one(static_cast<T*>(args.out) + cell * args.channels + c, total);
    }
  }
}

template <typename T>
FUSION3D_INLINE void pool_parts(const BevPoolForward& args, int64_t begin, int64_t end) {
  const int64_t vectors = (args.channels + kLanes<T> - 1) / kLanes<T>;
  const int64_t passes = (vectors + kMostVectors - 1) / kMostVectors;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t first = args.part[part], last = args.part[part + 1];
    if (args.channels < kLanes<T>) {
      pool_scalars<T>(args, first, last);
      continue;
    }
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t vector = vectors * pass / passes;
      with_width(vectors * (pass + 1) / passes - vector, [&](auto width) __attribute__((always_inline)) {
        pool_vectors<decltype(width)::value, T>(args, first, last, vector * kLanes<T>);
      });
    }
  }
}

// What a patch of pixels keeps at hand: for each pixel its samples inside the grid, one after the other.
template <typename T>
struct Patch {
  typedef typename Compute<T>::Real Real;

  explicit Patch(const BevPoolBackward& args)
      : cell(kPatchRows * kPatchCols * args.bins),
        bin(cell.size()),
        weight(cell.size()),
        slope(args.bins * kPatchCols),
        dots(args.bins * kLanes<T>),
        feat(patches_along(args.channels, kLanes<T>) * kLanes<T>) {}

  std::vector<int32_t> cell, bin;
  std::vector<Real> weight;   // their depth; then its gradient
  std::vector<Real> slope;    // [D, columns of the patch] gradient of depth in one row of pixels
  Lines<Real> dots;           // of one pixel, not yet summed over lanes
  Lines<Real> feat;           // of one pixel; what the last vector shares with the one before is 0 in it
};

// Adds up what N vectors of channels from `c` on say of a pixel's samples.
template <int N, typename T>
FUSION3D_INLINE void unpool_vectors(
    const BevPoolBackward& args, const int32_t* cell, const typename Compute<T>::Real* weight, int64_t count, int64_t c,
    const typename Compute<T>::Real* feat, typename Compute<T>::Real* dots, T* grad_feat) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int64_t kWide = kLanes<T>;
  const T* grad_out = static_cast<const T*>(args.grad_out) + c;
  const int64_t channels = args.channels, tail = std::min((N - 1) * kWide, channels - c - kWide);
  Vector total[N] = {}, own[N];
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) own[n] = load(feat + n * kWide);
  for (int64_t j = 0; j < count; ++j) {
    const T* row = grad_out + cell[j] * channels;
    if (j + kAhead < count) prefetch_row(grad_out + cell[j + kAhead] * channels, N * kWide);
    const auto scale = weight[j];
    Vector dot = c == 0 ? Vector() : load(dots + j * kWide);
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) {
      const Vector g = load(row + (n < N - 1 ? n * kWide : tail));
      total[n] += scale * g;
      dot += own[n] * g;
    }
    store(dots + j * kWide, dot);
  }
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) store(grad_feat + c + (n < N - 1 ? n * kWide : tail), total[n]);
}

// The features of one pixel, as they are computed in.
template <typename T>
FUSION3D_INLINE void spread_feat(const T* feat, int64_t channels, typename Compute<T>::Real* spread) {
  constexpr int64_t kWide = kLanes<T>;
  const int64_t whole = channels / kWide * kWide, rest = channels - whole;
  for (int64_t c = 0; c < whole; c += kWide) store(spread + c, load(feat + c));
  if (rest == 0) return;
  std::fill_n(spread + whole, kWide - rest, 0);
  for (int64_t c = 0; c < rest; ++c) spread[whole + kWide - rest + c] = load_one(feat + whole + c);
}

// One pixel: gradient of its features; and in `dots` of its samples' depth, spread over lanes.
template <typename T>
FUSION3D_INLINE void unpool_pixel(
    const BevPoolBackward& args, const int32_t* cell, const typename Compute<T>::Real* weight, int64_t count,
    int64_t pixel, Patch<T>& patch) {
  const int64_t channels = args.channels, vectors = patches_along(channels, kLanes<T>);
  const int64_t passes = (vectors + kMostOfPixel - 1) / kMostOfPixel;
  const T* feat = static_cast<const T*>(args.feat) + pixel * channels;
  T* grad_feat = static_cast<T*>(args.grad_feat) + pixel * channels;
  if (channels < kLanes<T>) {
    std::fill_n(patch.dots.begin(), count * kLanes<T>, 0);
    for (int64_t c = 0; c < channels; ++c) {
      typename Compute<T>::Real total = 0;
      for (int64_t j = 0; j < count; ++j) {
        const auto grad = load_one(static_cast<const T*>(args.grad_out) + cell[j] * channels + c);
        total += weight[j] * grad;
        patch.dots[j * kLanes<T> + c] = load_one(feat + c) * grad;
      }
      store_one(grad_feat + c, total);
    }
    return;
  }
  spread_feat(feat, channels, patch.feat.data());
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t vector = vectors * pass / passes;
    with_width(vectors * (pass + 1) / passes - vector, [&](auto width) __attribute__((always_inline)) {
      unpool_vectors<decltype(width)::value, T>(
          args, cell, weight, count, vector * kLanes<T>, patch.feat.data() + vector * kLanes<T>, patch.dots.data(), grad_feat);
    });
  }
}

// The sum over the lanes of each of `count` vectors.
template <typename Real>
FUSION3D_INLINE void sum_each(const Real* lanes, int64_t count, Real* sums) {
  constexpr int kWide = kLanes<Real>;
  for (int64_t j = 0; j < count; ++j) {
    const Real* at = lanes + j * kWide;
    Real half[kWide / 2];
    for (int i = 0; i < kWide / 2; ++i) half[i] = at[i] + at[i + kWide / 2];
    sums[j] = kWide == 8 ? (half[0] + half[2]) + (half[1] + half[3]) : half[0] + half[1];
  }
}

template <typename T>
FUSION3D_INLINE void unpool_patch(const BevPoolBackward& args, const PixelPatch& at, Patch<T>& patch) {
  const int64_t bins = args.bins, area = args.rows * args.cols;
  const int64_t corner = at.image * bins * area + at.row * args.cols + at.col;
  const T* depth = static_cast<const T*>(args.depth) + corner;
  int64_t count[kPatchRows * kPatchCols] = {};
  for (int64_t r = 0; r < at.rows; ++r)
    for (int64_t w = 0; w < at.cols; ++w) {
      const int64_t p = r * kPatchCols + w, from = r * args.cols + w;
      int64_t to = p * bins;
      for (int64_t d = 0; d < bins; ++d) {
        const int32_t cell = args.cell[corner + from + d * area];
        patch.cell[to] = cell;  // overwritten by the next where it is outside
        patch.bin[to] = int32_t(d);
        patch.weight[to] = load_one(depth + from + d * area);
        to += cell >= 0;
      }
      count[p] = to - p * bins;
    }
  for (int64_t w = 0; w < at.cols; ++w)
    for (int64_t r = 0; r < at.rows; ++r) {  // down a column: the rows of grad_out are still in the nearest cache
      const int64_t p = r * kPatchCols + w, from = p * bins;
      const int64_t pixel = at.image * area + (at.row + r) * args.cols + at.col + w;
      unpool_pixel<T>(args, patch.cell.data() + from, patch.weight.data() + from, count[p], pixel, patch);
      sum_each(patch.dots.data(), count[p], patch.weight.data() + from);
    }
  T* grad_depth = static_cast<T*>(args.grad_depth) + corner;
  for (int64_t r = 0; r < at.rows; ++r) {
    std::fill(patch.slope.begin(), patch.slope.end(), 0);
    for (int64_t w = 0; w < at.cols; ++w) {
      const int64_t p = r * kPatchCols + w, from = p * bins;
      for (int64_t j = 0; j < count[p]; ++j) patch.slope[patch.bin[from + j] * kPatchCols + w] = patch.weight[from + j];
    }
    for (int64_t d = 0; d < bins; ++d)
      for (int64_t w = 0; w < at.cols; ++w)
        store_one(grad_depth + d * area + r * args.cols + w, patch.slope[d * kPatchCols + w]);
  }
}

template <typename T>
FUSION3D_INLINE void unpool_patches(const BevPoolBackward& args, int64_t begin, int64_t end) {
  Patch<T> patch(args);
  for (int64_t i = begin; i < end; ++i) unpool_patch<T>(args, pixel_patch(args, i, kPatchRows, kPatchCols), patch);
}

inline bool is_wide(const BevPoolForward& args) { return args.channels >= 16; }
FUSION3D_DISPATCH_WIDE(run_forward, BevPoolForward, pool_parts)
FUSION3D_DISPATCH(run_backward, BevPoolBackward, unpool_patches)

}  // namespace

void bev_pool_forward_cpu(const BevPoolForward& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { run_forward<decltype(zero)>(args, begin, end); });
}

void bev_pool_prepare_cpu(const BevPoolForward& args) {
  expect_writes(args.out, args.num_cells * args.channels * size_of(args.dtype));
}

int64_t bev_pool_patches_cpu(const BevPoolBackward& args) { return num_patches(args, kPatchRows, kPatchCols); }

void bev_pool_backward_cpu(const BevPoolBackward& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { run_backward<decltype(zero)>(args, begin, end); });
}

void bev_pool_pixel_cpu(const BevPoolPixel& args, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) args.pixel[s] = pixel_of(args, args.sample[s]);
}

}  // namespace fusion3d
