// Geometry of oriented rectangles, shared by the kernels of both devices and tested on the CPU.
//
// The overlap of two rectangles is computed in the frame of one of them, which is then the region |x| <= hx, |y| <= hy.
// There the length of a column's overlap is its upper edge's height limited to [-hy, hy], less its lower edge's; so the area
// is the sum over the other's four edges of the integral of that limited height. Every step is continuous: rectangles that
// are equal, touch, share edges or contain one another need no tolerance, and nothing is sorted or listed.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FUSION3D_GEOMETRY __host__ __device__ __forceinline__
#else
#define FUSION3D_GEOMETRY inline __attribute__((always_inline))
#endif

namespace fusion3d {

// Half sizes, and the direction of the length. One that has no area or is not finite has x = NaN, and overlaps nothing.
struct Rectangle {
  double x, y, half_length, half_width, cos, sin;
};

// Sizes and places past 1e100 m count as infinite, so that areas are finite.
FUSION3D_GEOMETRY bool is_finite(double v) { return fabs(v) <= 1e100; }

FUSION3D_GEOMETRY bool exists(const Rectangle& r) { return r.x == r.x; }

// Of a row x, y, length, width, yaw. `snap` turns it to the nearest right angle.
FUSION3D_GEOMETRY Rectangle rectangle_of(double x, double y, double length, double width, double yaw, bool snap) {
  const bool finite = is_finite(x) && is_finite(y) && is_finite(length) && is_finite(width) && is_finite(yaw);
  if (!(finite && length > 0 && width > 0)) return {NAN, NAN, 0, 0, 1, 0};
  Rectangle r = {x, y, length / 2, width / 2, cos(yaw), sin(yaw)};
  if (snap) {
    if (fabs(r.sin) > fabs(r.cos) + 1e-9) {  // at 45 degrees, where rounding would choose, it keeps its length along x
      const double half = r.half_length;
      r.half_length = r.half_width;
      r.half_width = half;
    }
    r.cos = 1;
    r.sin = 0;
  }
  return r;
}

// Of the circle around it, a little more than exact.
FUSION3D_GEOMETRY double radius_of(const Rectangle& r) {
  return sqrt(r.half_length * r.half_length + r.half_width * r.half_width) * (1 + 1e-12);
}

// The functions below take V = double, or a vector of doubles, one pair of rectangles in each lane.
// A comparison with NaN is false, so `lesser` and `greater` return their second argument for it.
template <typename V>
FUSION3D_GEOMETRY V lesser(const V& a, const V& b) { return a < b ? a : b; }
template <typename V>
FUSION3D_GEOMETRY V greater(const V& a, const V& b) { return a > b ? a : b; }
template <typename V>
FUSION3D_GEOMETRY V limited(const V& v, const V& low, const V& high) { return greater(lesser(v, high), low); }

// Integral of y limited to [-hy, hy] along the edge from (x0, y0) to (x0 + dx, y0 + dy), over its part in |x| <= hx.
template <typename V>
FUSION3D_GEOMETRY V edge_integral(const V& x0, const V& y0, const V& dx, const V& dy, const V& hx, const V& hy) {
  const V zero = V(), one = V() + 1.0;
  const V per_x = one / (dx == zero ? one : dx);
  const V u0 = limited<V>(x0, -hx, hx), u1 = limited<V>(x0 + dx, -hx, hx);
  const V v0 = y0 + limited<V>((u0 - x0) * per_x, zero, one) * dy;
  const V v1 = y0 + limited<V>((u1 - x0) * per_x, zero, one) * dy;
  const V w0 = limited<V>(v0, -hy, hy), w1 = limited<V>(v1, -hy, hy);
  const V dv = v1 - v0, per_v = one / (dv == zero ? one : dv);
  // Shares of the part in which the height is held at its first and at its last limit.
  const V first = limited<V>((w0 - v0) * per_v, zero, one), last = limited<V>((v1 - w1) * per_v, zero, one);
  return (u1 - u0) * 0.5 * (w0 + w1 + (first - last) * (w0 - w1));
}

// Area in which rectangle b (half sizes bl, bw) overlaps rectangle a (half sizes hx, hy); (x, y) leads from a's centre to b's.
template <typename V>
FUSION3D_GEOMETRY V overlap_area(
    const V& x, const V& y, const V& hx, const V& hy, const V& cos_a, const V& sin_a, const V& bl, const V& bw,
    const V& cos_b, const V& sin_b) {
  const V cx = cos_a * x + sin_a * y, cy = cos_a * y - sin_a * x;
  const V c = cos_a * cos_b + sin_a * sin_b, s = cos_a * sin_b - sin_a * cos_b;
  const V ux = bl * c, uy = bl * s, vx = -bw * s, vy = bw * c;
  const V sum = edge_integral<V>(cx + ux + vx, cy + uy + vy, -2.0 * ux, -2.0 * uy, hx, hy) +
                edge_integral<V>(cx - ux + vx, cy - uy + vy, -2.0 * vx, -2.0 * vy, hx, hy) +
                edge_integral<V>(cx - ux - vx, cy - uy - vy, 2.0 * ux, 2.0 * uy, hx, hy) +
                edge_integral<V>(cx + ux - vx, cy + uy - vy, 2.0 * vx, 2.0 * vy, hx, hy);
  return greater<V>(-sum, V());
}

// Intersection over union of such rectangles from their overlap, in [0, 1].
template <typename V>
FUSION3D_GEOMETRY V iou_of(const V& overlap, const V& hx, const V& hy, const V& bl, const V& bw) {
  const V zero = V(), one = V() + 1.0, whole = 4.0 * hx * hy + 4.0 * bl * bw - overlap;
  return limited<V>(overlap / (whole > zero ? whole : one), zero, one);
}

FUSION3D_GEOMETRY double overlap_area(const Rectangle& a, const Rectangle& b) {
  return overlap_area<double>(
      b.x - a.x, b.y - a.y, a.half_length, a.half_width, a.cos, a.sin, b.half_length, b.half_width, b.cos, b.sin);
}

FUSION3D_GEOMETRY double box_iou(const Rectangle& a, const Rectangle& b) {
  if (!exists(a) || !exists(b)) return 0;
  return iou_of<double>(overlap_area(a, b), a.half_length, a.half_width, b.half_length, b.half_width);
}

// The part [low, high] of a moving point q + d * t in which |q + d * t| <= half; `weight` halves where the whole edge runs on
// the limit itself, where the area has a kink: the mean of its two slopes is taken.
FUSION3D_GEOMETRY void limit_part(double q, double d, double half, double tolerance, double& low, double& high, double& weight) {
  const double reach = fabs(d) * (high > -low ? high : -low);
  if (reach <= tolerance && fabs(fabs(q) - half) <= tolerance) {
    weight = 0.5;
  } else if (d == 0) {
    if (fabs(q) > half) high = low;
  } else {
    const double first = (-half - q) / d, second = (half - q) / d;
    low = greater(low, lesser(first, second));
    high = lesser(high, greater(first, second));
  }
}

// Adds `scale` times the derivative of the overlap with respect to `moving` (x, y, length, width, yaw) to `grad`. Only that
// part of its outline counts which lies in `still`: there the area grows by the speed of the outline along its normal.
FUSION3D_GEOMETRY void add_overlap_gradient(const Rectangle& still, const Rectangle& moving, double scale, double* grad) {
  const double x = moving.x - still.x, y = moving.y - still.y;
  const double cx = still.cos * x + still.sin * y, cy = still.cos * y - still.sin * x;
  const double c = still.cos * moving.cos + still.sin * moving.sin, s = still.cos * moving.sin - still.sin * moving.cos;
  const double tolerance = 1e-9 * (still.half_length + still.half_width + moving.half_length + moving.half_width);
  for (int edge = 0; edge < 4; ++edge) {
    const bool across = edge % 2 != 0;  // the two long sides
    const double sign = edge < 2 ? 1 : -1;
    const double half = across ? moving.half_width : moving.half_length;
    const double reach = across ? moving.half_length : moving.half_width;
    const double nx = sign * (across ? -s : c), ny = sign * (across ? c : s);  // outward normal; the tangent is (-ny, nx)
    double low = -reach, high = reach, weight = 1;
    limit_part(cx + half * nx, -ny, still.half_length, tolerance, low, high, weight);
    limit_part(cy + half * ny, nx, still.half_width, tolerance, low, high, weight);
    if (!(high > low)) continue;
    const double length = scale * weight * (high - low);
    grad[0] += length * sign * (across ? -moving.sin : moving.cos);
    grad[1] += length * sign * (across ? moving.cos : moving.sin);
    grad[across ? 3 : 2] += length / 2;
    grad[4] -= length * (high + low) / 2;
  }
}

// Gradients (x, y, length, width, yaw each) of `scale` times the intersection over union of a and b.
FUSION3D_GEOMETRY void iou_gradient(const Rectangle& a, const Rectangle& b, double scale, double* grad_a, double* grad_b) {
  for (int i = 0; i < 5; ++i) grad_a[i] = grad_b[i] = 0;
  if (!exists(a) || !exists(b)) return;
  const double overlap = overlap_area(a, b);
  const double whole = 4 * a.half_length * a.half_width + 4 * b.half_length * b.half_width - overlap;
  if (!(whole > 0)) return;
  const double share = overlap / whole;
  const double more_overlap = scale * (1 + share) / whole, more_area = -scale * share / whole;
  add_overlap_gradient(b, a, more_overlap, grad_a);
  add_overlap_gradient(a, b, more_overlap, grad_b);
  grad_a[2] += more_area * 2 * a.half_width;
  grad_a[3] += more_area * 2 * a.half_length;
  grad_b[2] += more_area * 2 * b.half_width;
  grad_b[3] += more_area * 2 * b.half_length;
}

}  // namespace fusion3d
