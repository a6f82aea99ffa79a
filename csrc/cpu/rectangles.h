// Many rectangles side by side, for the CPU kernels: one array for each field, four of them at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch.h"
#include "fusion3d/rectangles.h"
#include "vector.h"

// Compiled twice, for the baseline and for AVX2. Not for FMA: what the twin rounds, these round, on every processor alike.
#if defined(__x86_64__)
#define FUSION3D_AVX2 __attribute__((target("avx2")))
#endif

namespace fusion3d {


struct Rectangles {
  // Some more than `count`, which do not exist, so that whole vectors can be read from any place.
  explicit Rectangles(int64_t count)
      : stride(count + 16), data(7 * stride),
        x(data.data()), y(x + stride), half_length(y + stride), half_width(half_length + stride),
        cos(half_width + stride), sin(cos + stride), radius(sin + stride) {
    for (int64_t i = count; i < stride; ++i) set(i, {NAN, NAN, 0, 0, 1, 0}, 0);
  }
  Rectangles(const Rectangles&) = delete;
  Rectangles& operator=(const Rectangles&) = delete;

  void set(int64_t i, const Rectangle& r, double around) {
    x[i] = r.x, y[i] = r.y, half_length[i] = r.half_length, half_width[i] = r.half_width;
    cos[i] = r.cos, sin[i] = r.sin, radius[i] = around;
  }
  Rectangle get(int64_t i) const { return {x[i], y[i], half_length[i], half_width[i], cos[i], sin[i]}; }

  int64_t stride;
  std::vector<double> data;
  double *x, *y, *half_length, *half_width, *cos, *sin;
  double* radius;  // a pair whose circles are apart does not overlap
};

template <typename T>
FUSION3D_INLINE Rectangle load_rectangle(const T* row, bool snap) {
  return rectangle_of(
      load_one(row), load_one(row + 1), load_one(row + 2), load_one(row + 3), load_one(row + 4), snap);
}

// Writes to `found` those of [begin, end) whose circle meets that of radius `reach` around (x, y); returns how many.
// `found` has room for 16 more than there are.
FUSION3D_INLINE int64_t find_near(
    const Rectangles& all, int64_t begin, int64_t end, double x, double y, double reach, int32_t* found) {
  typedef int64_t Masks __attribute__((vector_size(32)));
  int64_t count = 0;
  for (int64_t first = begin; first < end; first += 4 * kLanes<double>) {
    Masks near[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const int64_t i = first + n * kLanes<double>;
      const Doubles dx = load(all.x + i) - x, dy = load(all.y + i) - y, sum = load(all.radius + i) + reach;
      near[n] = dx * dx + dy * dy < sum * sum;
    }
    const Masks any = near[0] | near[1] | near[2] | near[3];
    if (!((any[0] | any[1]) | (any[2] | any[3]))) continue;
    const int64_t last = end - first < 4 * kLanes<double> ? end - first : 4 * kLanes<double>;
    int64_t bits[4 * kLanes<double>];
    std::memcpy(bits, near, sizeof(bits));
    for (int64_t n = 0; n < last; ++n) {
      found[count] = int32_t(first + n);
      count -= bits[n];
    }
  }
  return count;
}

// Intersection over union of rectangle `one` with those listed. Both lists are read and written in whole vectors.
FUSION3D_INLINE void find_iou(
    const Rectangles& all, const Rectangle& one, const int32_t* list, int64_t count, double* iou) {
  const Doubles x = Doubles() + one.x, y = Doubles() + one.y, hx = Doubles() + one.half_length;
  const Doubles hy = Doubles() + one.half_width, cos = Doubles() + one.cos, sin = Doubles() + one.sin;
  for (int64_t first = 0; first < count; first += kLanes<double>) {
    int64_t at[kLanes<double>];
    for (int64_t n = 0; n < kLanes<double>; ++n) at[n] = list[first + n < count ? first + n : first];
    const auto gather = [&](const double* from) __attribute__((always_inline)) {
      return Doubles{from[at[0]], from[at[1]], from[at[2]], from[at[3]]};
    };
    const Doubles bl = gather(all.half_length), bw = gather(all.half_width);
    const Doubles overlap = overlap_area<Doubles>(
        gather(all.x) - x, gather(all.y) - y, hx, hy, cos, sin, bl, bw, gather(all.cos), gather(all.sin));
    store(iou + first, iou_of<Doubles>(overlap, hx, hy, bl, bw));
  }
}

}  // namespace fusion3d
