// Deformable attention on the CPU, backward, in two passes over the points. First, a unit of queries owns the gradients of
// their references, offsets and logits, and keeps each softmax's largest logit and sum. Then one level of one head of one
// map owns its gradient of value: it walks the queries of the map in order and adds what they give to its pixels, in float.
// There are maps * heads * levels such owners, and the walk of each is equally long.
#include "deform_samples.h"
#include "pages.h"

namespace fusion3d {
namespace {

constexpr int64_t kUnit = 1024;   // queries of a unit of work of the first pass
constexpr int64_t kBlock = 8;    // queries that are located together, as in the forward pass
constexpr int64_t kRun = 32;     // the same in the second pass, where a query has the points of one level only

struct Points {
  const DeformAttnBackward& args;
  const void* rows;
  void* norms;  // [queries, heads, 2] largest logit, sum of exponentials
};

struct Pixels {
  const DeformAttnBackward& args;
  const void* norms;
  const int64_t* order;  // queries, those of one map side by side
  const int64_t* ptr;    // [maps + 1]
};

// The sums of four vectors.
FUSION3D_INLINE void sums_of(const Floats* v, float* out0, float* out1, float* out2, float* out3) {
  const Floats ab = __builtin_shuffle(v[0], v[1], Words{0, 8, 2, 10, 4, 12, 6, 14}) +
                    __builtin_shuffle(v[0], v[1], Words{1, 9, 3, 11, 5, 13, 7, 15});
  const Floats cd = __builtin_shuffle(v[2], v[3], Words{0, 8, 2, 10, 4, 12, 6, 14}) +
                    __builtin_shuffle(v[2], v[3], Words{1, 9, 3, 11, 5, 13, 7, 15});
  const Floats halves = __builtin_shuffle(ab, cd, Words{0, 1, 8, 9, 4, 5, 12, 13}) +
                        __builtin_shuffle(ab, cd, Words{2, 3, 10, 11, 6, 7, 14, 15});
  *out0 += halves[0] + halves[4];
  *out1 += halves[1] + halves[5];
  *out2 += halves[2] + halves[6];
  *out3 += halves[3] + halves[7];
}
FUSION3D_INLINE void sums_of(const Doubles* v, double* out0, double* out1, double* out2, double* out3) {
  *out0 += sum(v[0]), *out1 += sum(v[1]), *out2 += sum(v[2]), *out3 += sum(v[3]);
}

// Adds to `dots` what channels [c, c + N * lanes) of each corner have in common with the gradient.
template <int N, typename Real>
FUSION3D_INLINE void compare(
    const Samples<Real>& samples, int64_t first, int64_t count, const Real* rows, int64_t width, int64_t c,
    const Real* grad, Real* dots) {
  typedef typename Lanes<Real>::Vector Vector;
  constexpr int64_t kWide = kLanes<Real>;
  Vector g[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) g[n] = load(grad + c + n * kWide);
  for (int64_t s = 0; s < count; ++s) {
    if (samples.pixel[0][first + s] < 0) continue;
    Vector dot[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Real* row = rows + samples.pixel[k][first + s] * width + c;
      dot[k] = g[0] * load(row);
#pragma GCC unroll 4
      for (int n = 1; n < N; ++n) dot[k] += g[n] * load(row + n * kWide);
    }
    Real* to = dots + s;
    sums_of(dot, to, to + samples.stride, to + 2 * samples.stride, to + 3 * samples.stride);
  }
}

// From the dots of one query and head: what its attentions, columns and rows get, left in the samples' own arrays (the
// weights are not needed any more): weight[0] the logit, weight[1] x, weight[2] y.
template <typename Real>
FUSION3D_INLINE void differentiate(
    const PointLevels<Real>& levels, const Samples<Real>& samples, int64_t first, const Real* dots) {
  typedef typename Lanes<Real>::Vector Vector;
  constexpr int64_t kWide = kLanes<Real>;
  const int64_t stride = samples.stride;
  const Vector zero = {};
  Vector total = {};
  for (int64_t s = 0; s < stride; s += kWide) {
    const int64_t i = first + s;
    const Corners<Real> c = corners_of<Real>(samples.x + i, samples.y + i, &levels.cols[s], &levels.rows[s]);
    const Vector dot0 = c.inside & c.left & c.top ? load(dots + s) : zero;
    const Vector dot1 = c.inside & c.right & c.top ? load(dots + stride + s) : zero;
    const Vector dot2 = c.inside & c.left & c.bottom ? load(dots + 2 * stride + s) : zero;
    const Vector dot3 = c.inside & c.right & c.bottom ? load(dots + 3 * stride + s) : zero;
    const Vector a = load(samples.attention + i);
    const Vector across_top = dot1 - dot0, across_bottom = dot3 - dot2;
    const Vector top = dot0 + c.fx * across_top, bottom = dot2 + c.fx * across_bottom;
    const Vector read = top + c.fy * (bottom - top);
    store(samples.weight[0] + i, read);
    store(samples.weight[1] + i, a * (across_top + c.fy * (across_bottom - across_top)));
    store(samples.weight[2] + i, a * (bottom - top));
    total += a * read;
  }
  const Real mean = sum(total);
  for (int64_t i = first; i < first + stride; i += kWide)
    store(samples.weight[0] + i, load(samples.attention + i) * (load(samples.weight[0] + i) - mean));
}

template <typename T>
FUSION3D_INLINE void own_points(const Points& points, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kWide = kLanes<Real>;
  const DeformAttnBackward& args = points.args;
  const DeformAttn& in = args.in;
  const int64_t width = padded<Real>(in.channels), references = 2 * in.reference_levels * in.anchors;
  const Rows<Real> rows = {static_cast<const Real*>(points.rows), width, in.area, in.heads};
  PointLevels<Real> levels(in, 0, in.num_levels);
  Samples<Real> samples(kBlock, levels.count);
  const int64_t count = levels.count, stride = samples.stride;
  std::vector<Real> reference(references), moved(kUnit * references);
  Lines<Real> grad(width), dots(4 * stride);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kUnit, last = std::min(first + kUnit, in.queries);
    std::fill(moved.begin(), moved.end(), Real(0));
    foresee_queries(in, first, last, count);
    for (int64_t h = 0; h < in.heads; ++h) {
      for (int64_t block = first; block < last; block += kBlock) {
        const int64_t size = std::min(kBlock, last - block);
        for (int64_t k = 0; k < size; ++k) {
          Real* norm = static_cast<Real*>(points.norms) + ((block + k) * in.heads + h) * 2;
          foresee_points(in, block + k + kBlock, h, count);
          foresee(in.dtype, args.grad_out, (std::min(block + k + kBlock, in.queries - 1) * in.heads + h) * in.channels,
                  in.channels);
          widen(in.reference_dtype, in.reference, (block + k) * references, references, reference.data());
          locate(in, levels, block + k, h, reference.data(), k, samples, norm, norm + 1);
        }
        for (int64_t k = 0; k < size; ++k) {
          const int64_t q = block + k, map = deform_map(in, q), row = q * in.heads + h, i = k * stride;
          std::fill(dots.begin(), dots.end(), Real(0));
          if (map >= 0) {
            const Real* from = rows.of(map, h);
            widen(in.dtype, args.grad_out, row * in.channels, in.channels, grad.data());
            int64_t c = 0;
            for (; c + 4 * kWide <= width; c += 4 * kWide)
              compare<4>(samples, i, count, from, width, c, grad.data(), dots.data());
            for (; c < width; c += kWide) compare<1>(samples, i, count, from, width, c, grad.data(), dots.data());
          }
          differentiate(levels, samples, i, dots.data());
          narrow(in.logit_dtype, samples.weight[0] + i, count, args.grad_logits, row * count);
          Real* offsets = levels.reals.data();
          Real* shift = moved.data() + (q - first) * references;
          for (int64_t s = 0; s < count; ++s) {
            offsets[2 * s] = samples.weight[1][i + s];
            offsets[2 * s + 1] = samples.weight[2][i + s];
          }
          for (int64_t s = 0; s < count; ++s) {
            shift[2 * levels.reference[s]] += offsets[2 * s] * levels.cols[s];
            shift[2 * levels.reference[s] + 1] += offsets[2 * s + 1] * levels.rows[s];
          }
          narrow(in.offset_dtype, offsets, 2 * count, args.grad_offsets, 2 * row * count);
        }
      }
    }
    narrow(in.reference_dtype, moved.data(), (last - first) * references, args.grad_reference, first * references);
  }
}

// Adds the gradient of one query, channels [c, c + N * lanes), to the corners of its points.
template <int N, typename Real>
FUSION3D_INLINE void scatter(
    const Samples<Real>& samples, int64_t first, int64_t count, Real* rows, int64_t width, int64_t c, const Real* grad) {
  typedef typename Lanes<Real>::Vector Vector;
  constexpr int64_t kWide = kLanes<Real>;
  Vector g[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) g[n] = load(grad + c + n * kWide);
  for (int64_t i = first; i < first + count; ++i) {
    if (samples.pixel[0][i] < 0) continue;
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      Real* row = rows + samples.pixel[k][i] * width + c;
      const Real w = samples.weight[k][i];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(row + n * kWide, load(row + n * kWide) + w * g[n]);
    }
  }
}

// Unit (map * heads + head) * levels + level.
template <typename T>
FUSION3D_INLINE void own_pixels(const Pixels& pixels, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kWide = kLanes<Real>;
  const DeformAttnBackward& args = pixels.args;
  const DeformAttn& in = args.in;
  const int64_t width = padded<Real>(in.channels), references = 2 * in.reference_levels * in.anchors;
  std::vector<Real> reference(references);
  Lines<Real> grad(kRun * width), total;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t map = unit / in.num_levels / in.heads, h = unit / in.num_levels % in.heads, l = unit % in.num_levels;
    const DeformLevel& level = in.levels[l];
    const int64_t area = int64_t(level.rows) * level.cols;
    PointLevels<Real> levels(in, l, l + 1, kRun);
    std::fill(levels.start.begin(), levels.start.end(), 0);
    Samples<Real> samples(1, kRun * in.points);
    total.assign(area * width, Real(0));
    for (int64_t run = pixels.ptr[map]; run < pixels.ptr[map + 1]; run += kRun) {
      const int64_t size = std::min(kRun, pixels.ptr[map + 1] - run);
      for (int64_t k = 0; k < size; ++k) {
        const int64_t q = pixels.order[run + k], row = q * in.heads + h;
        const int64_t first = (row * in.num_levels + l) * in.points;
        const Real* norm = static_cast<const Real*>(pixels.norms) + 2 * row;
        Real *offsets = levels.reals.data(), *attention = samples.attention + k * in.points;
        if (run + k + kRun < pixels.ptr[map + 1]) {
          const int64_t ahead = pixels.order[run + k + kRun] * in.heads + h;
          foresee(in.offset_dtype, in.offsets, 2 * (ahead * in.num_levels + l) * in.points, 2 * in.points);
          foresee(in.logit_dtype, in.logits, (ahead * in.num_levels + l) * in.points, in.points);
          foresee(in.dtype, args.grad_out, ahead * in.channels, in.channels);
        }
        widen(in.reference_dtype, in.reference, q * references, references, reference.data());
        widen(in.offset_dtype, in.offsets, 2 * first, 2 * in.points, offsets);
        widen(in.logit_dtype, in.logits, first, in.points, attention);
        widen(in.dtype, args.grad_out, row * in.channels, in.channels, &grad[k * width]);
        for (int64_t p = 0; p < in.points; ++p) {
          const int64_t i = k * in.points + p;
          const Real* from = &reference[2 * levels.reference[p]];
          samples.x[i] = from[0] * Real(level.cols) - Real(0.5) + offsets[2 * p];
          samples.y[i] = from[1] * Real(level.rows) - Real(0.5) + offsets[2 * p + 1];
          attention[p] -= norm[0];
          samples.weight[0][i] = norm[1];
        }
      }
      for (int64_t i = 0; i < size * in.points; i += kWide) {
        store(samples.attention + i, exp_below_zero(load(samples.attention + i)) / load(samples.weight[0] + i));
        place(levels, i, samples, i);
      }
      for (int64_t k = 0; k < size; ++k) {
        const int64_t i = k * in.points;
        const Real* from = &grad[k * width];
        int64_t c = 0;
        for (; c + 4 * kWide <= width; c += 4 * kWide)
          scatter<4>(samples, i, in.points, total.data(), width, c, from);
        for (; c < width; c += kWide) scatter<1>(samples, i, in.points, total.data(), width, c, from);
      }
    }
    T* to = static_cast<T*>(args.grad_value) + ((map * in.area + level.start) * in.heads + h) * in.channels;
    for (int64_t i = 0; i < area; ++i, to += in.heads * in.channels)
      for (int64_t c = 0; c < in.channels; ++c) store_one(to + c, total[i * width + c]);
  }
}

FUSION3D_DISPATCH(run_points, Points, own_points)
FUSION3D_DISPATCH(run_pixels, Pixels, own_pixels)

int64_t norm_bytes(const DeformAttn& in) {
  return in.queries * in.heads * 2 * (in.dtype == Dtype::kFloat64 ? 8 : 4);
}

}  // namespace

int64_t deform_attn_scratch_cpu(const DeformAttn& in, bool backward) {
  return deform_pack_bytes(in) + (backward ? norm_bytes(in) : 0);
}

void deform_attn_backward_cpu(const DeformAttnBackward& args, void* scratch, const ParallelFor& parallel_for) {
  const DeformAttn& in = args.in;
  void* norms = static_cast<char*>(scratch) + deform_pack_bytes(in);
  const int64_t points = in.queries * in.heads * in.num_levels * in.points;
  expect_writes(scratch, deform_attn_scratch_cpu(in, true));
  expect_writes(args.grad_value, in.maps * in.area * in.heads * in.channels * bytes_of(in.dtype));
  expect_writes(args.grad_offsets, 2 * points * bytes_of(in.offset_dtype));
  expect_writes(args.grad_logits, points * bytes_of(in.logit_dtype));
  parallel_for(0, deform_pack_units(in), 1, [&](int64_t begin, int64_t end) {
    deform_pack_cpu(in, scratch, begin, end);
  });
  parallel_for(0, (in.queries + kUnit - 1) / kUnit, 1, [&](int64_t begin, int64_t end) {
    for_dtype(in.dtype, [&](auto zero) { run_points<decltype(zero)>({args, scratch, norms}, begin, end); });
  });
  // The queries of each map, by counting.
  std::vector<int64_t> ptr(in.maps + 1), order(in.queries);
  for (int64_t q = 0; q < in.queries; ++q)
    if (const int64_t map = deform_map(in, q); map >= 0) ++ptr[map + 1];
  for (int64_t m = 0; m < in.maps; ++m) ptr[m + 1] += ptr[m];
  std::vector<int64_t> next(ptr);
  for (int64_t q = 0; q < in.queries; ++q)
    if (const int64_t map = deform_map(in, q); map >= 0) order[next[map]++] = q;
  parallel_for(0, in.maps * in.heads * in.num_levels, 1, [&](int64_t begin, int64_t end) {
    for_dtype(in.dtype, [&](auto zero) {
      run_pixels<decltype(zero)>({args, norms, order.data(), ptr.data()}, begin, end);
    });
  });
}

}  // namespace fusion3d
