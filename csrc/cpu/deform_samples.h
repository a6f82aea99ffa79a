// What the forward and the backward pass of deformable attention on the CPU share: the points of a few queries, located
// eight at once, as plain arrays of pixels and weights that the loops over channels then follow.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "exponential.h"
#include "fusion3d/deform_attn.h"
#include "lines.h"
#include "vector.h"

namespace fusion3d {

typedef int32_t Integers __attribute__((vector_size(32)));
typedef int64_t LongIntegers __attribute__((vector_size(32)));

// The type of pixel indices that is as wide as Real, one by one and as a vector.
template <typename Real>
struct Lanes {
  typedef Floats Vector;
  typedef int32_t Index;
  typedef Integers Indices;
};
template <>
struct Lanes<double> {
  typedef Doubles Vector;
  typedef int64_t Index;
  typedef LongIntegers Indices;
};

template <typename Real>
constexpr int64_t padded(int64_t count) {
  return (count + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

// out[0 .. count) = what stands in an array of any dtype from `begin` on.
template <typename Real>
FUSION3D_INLINE void widen(Dtype dtype, const void* array, int64_t begin, int64_t count, Real* out) {
  for_dtype(dtype, [&](auto zero) {
    const decltype(zero)* p = static_cast<const decltype(zero)*>(array) + begin;
    for (int64_t i = 0; i < count; ++i) out[i] = Real(load_one(p + i));
  });
}

// The same, where it lies if it is in Real already, else in `room`.
template <typename Real>
FUSION3D_INLINE const Real* widened(Dtype dtype, const void* array, int64_t begin, int64_t count, Real* room) {
  if (dtype == (sizeof(Real) == 8 ? Dtype::kFloat64 : Dtype::kFloat32)) return static_cast<const Real*>(array) + begin;
  widen(dtype, array, begin, count, room);
  return room;
}

template <typename Real>
FUSION3D_INLINE void narrow(Dtype dtype, const Real* values, int64_t count, void* array, int64_t begin) {
  for_dtype(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    T* p = static_cast<T*>(array) + begin;
    for (int64_t i = 0; i < count; ++i) store_one(p + i, typename Compute<T>::Real(values[i]));
  });
}

// Points of `queries` queries and one head, `stride` (a multiple of the lanes) for each query.
// Corners: 0 and 1 left and right above, 2 and 3 below.
template <typename Real>
class Samples {
 public:
  typedef typename Lanes<Real>::Vector Vector;
  typedef typename Lanes<Real>::Index Index;
  typedef typename Lanes<Real>::Indices Indices;

  Samples(int64_t queries, int64_t points)
      : stride(padded<Real>(points)), reals_(queries * stride * 7), indices_(queries * stride * 4) {
    const int64_t size = queries * stride;
    x = reals_.data(), y = x + size, attention = y + size;
    for (int c = 0; c < 4; ++c) weight[c] = attention + (c + 1) * size, pixel[c] = indices_.data() + c * size;
  }

  const int64_t stride;
  Real *x, *y, *attention;  // in pixels, of the level; what its logit makes of the point
  Real* weight[4];          // attention times the bilinear weight
  Index* pixel[4];          // in the map, of pixels in the level; -1 in the first where the point is outside

 private:
  Lines<Real> reals_;
  Lines<Index> indices_;
};

// The level of every point of one query, as arrays that can be loaded as vectors.
template <typename Real>
struct PointLevels {
  typedef typename Lanes<Real>::Index Index;

  // Levels [first, last), point by point.
  PointLevels(const DeformAttn& in, int64_t first, int64_t last, int64_t repeat = 1)
      : count((last - first) * in.points * repeat), cols(padded<Real>(count), 1), rows(cols), start(cols.size()),
        reference(cols.size()), reals(2 * cols.size()) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t l = first + i / in.points % (last - first);
      cols[i] = Real(in.levels[l].cols), rows[i] = Real(in.levels[l].rows), start[i] = Index(in.levels[l].start);
      reference[i] = deform_reference(in, 0, l, i % in.points);
    }
  }

  const int64_t count;
  Lines<Real> cols, rows;
  Lines<Index> start;
  std::vector<int64_t> reference;  // of the point, counted from the first one of its query
  std::vector<Real> reals;         // room for what is widened, of `count` points
};

// Where points lie between pixels.
template <typename Real>
struct Corners {
  typedef typename Lanes<Real>::Vector Vector;
  typedef typename Lanes<Real>::Indices Indices;
  Indices inside, left, right, top, bottom;  // masks: the point; each column and row of its pixels
  Indices x0, y0;
  Vector fx, fy;
};

template <typename Real>
FUSION3D_INLINE Corners<Real> corners_of(const Real* xs, const Real* ys, const Real* cols, const Real* rows) {
  typedef typename Lanes<Real>::Vector Vector;
  typedef typename Lanes<Real>::Indices Indices;
  Vector x = load(xs), y = load(ys);
  const Vector w = load(cols), h = load(rows);
  Corners<Real> c;
  c.inside = (x > -1) & (x < w) & (y > -1) & (y < h);  // false for NaN
  x = c.inside ? x : Vector();
  y = c.inside ? y : Vector();
  c.x0 = __builtin_convertvector(x, Indices);
  c.y0 = __builtin_convertvector(y, Indices);
  c.x0 += __builtin_convertvector(c.x0, Vector) > x;  // true is -1: towards zero becomes down
  c.y0 += __builtin_convertvector(c.y0, Vector) > y;
  const Vector left = __builtin_convertvector(c.x0, Vector), top = __builtin_convertvector(c.y0, Vector);
  c.fx = x - left;
  c.fy = y - top;
  c.left = left >= 0, c.right = left + 1 < w, c.top = top >= 0, c.bottom = top + 1 < h;
  return c;
}

// Pixels and weights of points [i, i + lanes) of the samples, which stand at [j, j + lanes) of the levels. A corner outside
// of the level has weight 0 and the pixel of a neighbour within: it can be read like the others.
template <typename Real>
FUSION3D_INLINE void place(const PointLevels<Real>& levels, int64_t j, Samples<Real>& samples, int64_t i) {
  typedef typename Lanes<Real>::Vector Vector;
  typedef typename Lanes<Real>::Indices Indices;
  const Corners<Real> c = corners_of<Real>(samples.x + i, samples.y + i, &levels.cols[j], &levels.rows[j]);
  const Vector zero = {}, a = load(samples.attention + i);
  const Vector above = c.top ? a * (1 - c.fy) : zero, below = c.bottom ? a * c.fy : zero;
  const Vector near = c.left ? 1 - c.fx : zero, far = c.right ? c.fx : zero;
  const Vector weight[4] = {above * near, above * far, below * near, below * far};
  const Indices cols = __builtin_convertvector(load(&levels.cols[j]), Indices);
  const Indices upper = load_same<Indices>(&levels.start[j]) + (c.top ? c.y0 : c.y0 + 1) * cols;
  const Indices lower = c.top & c.bottom ? upper + cols : upper;
  const Indices x0 = c.left ? c.x0 : c.x0 + 1, x1 = c.right ? c.x0 + 1 : c.x0;
  const Indices pixel[4] = {c.inside ? upper + x0 : Indices() - 1, upper + x1, lower + x0, lower + x1};
  for (int k = 0; k < 4; ++k) {
    std::memcpy(samples.weight[k] + i, &weight[k], sizeof(Vector));
    std::memcpy(samples.pixel[k] + i, &pixel[k], sizeof(Indices));
  }
}

// Softmax over the padded logits that stand in `values`; returns the largest and the sum.
template <typename Real>
FUSION3D_INLINE void softmax(Real* values, int64_t count, int64_t stride, Real* largest, Real* total) {
  typedef typename Lanes<Real>::Vector Vector;
  constexpr int64_t kWide = kLanes<Real>;
  for (int64_t i = count; i < stride; ++i) values[i] = -std::numeric_limits<Real>::infinity();
  Vector high = load(values), sums = {};
  for (int64_t i = kWide; i < stride; i += kWide) {
    const Vector v = load(values + i);
    high = v > high ? v : high;
  }
  Real peak = high[0];
  for (int64_t i = 1; i < kWide; ++i) peak = high[i] > peak ? high[i] : peak;
  for (int64_t i = 0; i < stride; i += kWide) {
    const Vector e = exp_below_zero(load(values + i) - peak);
    store(values + i, e);
    sums += e;
  }
  *largest = peak;
  *total = sum(sums);
  for (int64_t i = 0; i < stride; i += kWide) store(values + i, load(values + i) / *total);
}

FUSION3D_INLINE int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

FUSION3D_INLINE void foresee(Dtype dtype, const void* array, int64_t begin, int64_t count) {
  const int64_t size = bytes_of(dtype);
  const char* bytes = static_cast<const char*>(array) + begin * size;
  for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(bytes + i);
}

// Asks for what `locate` reads of query q and head h. One head's share of a query is too short for the processor to foresee
// where the next one lies.
FUSION3D_INLINE void foresee_points(const DeformAttn& in, int64_t q, int64_t h, int64_t count) {
  if (q >= in.queries) return;
  const int64_t row = (q * in.heads + h) * count;
  foresee(in.offset_dtype, in.offsets, 2 * row, 2 * count);
  foresee(in.logit_dtype, in.logits, row, count);
}

// The same of queries [first, last), all heads, in the order of memory: asked for far ahead, before one head after the other
// picks its shares.
FUSION3D_INLINE void foresee_queries(const DeformAttn& in, int64_t first, int64_t last, int64_t count) {
  const int64_t row = first * in.heads * count, size = (last - first) * in.heads * count;
  foresee(in.offset_dtype, in.offsets, 2 * row, 2 * size);
  foresee(in.logit_dtype, in.logits, row, size);
}

// All points of query q and head h, located, as the samples of the block's query k.
template <typename Real>
FUSION3D_INLINE void locate(
    const DeformAttn& in, PointLevels<Real>& levels, int64_t q, int64_t h, const Real* reference, int64_t k,
    Samples<Real>& samples, Real* largest, Real* total) {
  const int64_t count = levels.count, stride = samples.stride, i = k * stride;
  const int64_t row = (q * in.heads + h) * count;
  const Real* offsets = widened(in.offset_dtype, in.offsets, 2 * row, 2 * count, levels.reals.data());
  widen(in.logit_dtype, in.logits, row, count, samples.attention + i);
  softmax(samples.attention + i, count, stride, largest, total);
  Real *__restrict__ x = samples.x + i, *__restrict__ y = samples.y + i;
  if (in.reference_levels * in.anchors == 1) {
    const Real reference_x = reference[0], reference_y = reference[1];
    const Real *cols = levels.cols.data(), *rows = levels.rows.data();
    for (int64_t s = 0; s < count; ++s) {
      x[s] = reference_x * cols[s] - Real(0.5) + offsets[2 * s];
      y[s] = reference_y * rows[s] - Real(0.5) + offsets[2 * s + 1];
    }
  } else {
    for (int64_t s = 0; s < count; ++s) {
      const Real* from = reference + 2 * levels.reference[s];
      x[s] = from[0] * levels.cols[s] - Real(0.5) + offsets[2 * s];
      y[s] = from[1] * levels.rows[s] - Real(0.5) + offsets[2 * s + 1];
    }
  }
  for (int64_t s = 0; s < stride; s += kLanes<Real>) place(levels, s, samples, i + s);
}

// Value as the loops read it: one map and head after the other, [area, width], in Real; width is channels, padded with zeros.
template <typename Real>
struct Rows {
  const Real* base;
  int64_t width, area, heads;

  FUSION3D_INLINE const Real* of(int64_t map, int64_t head) const { return base + (map * heads + head) * area * width; }
};

constexpr int64_t kDeformPackPixels = 256;  // of a unit of work

// Fills those rows: units [begin, end) of maps * (area / kDeformPackPixels, rounded up).
void deform_pack_cpu(const DeformAttn& in, void* rows, int64_t begin, int64_t end);
int64_t deform_pack_units(const DeformAttn& in);
int64_t deform_pack_bytes(const DeformAttn& in);

}  // namespace fusion3d
