// What the forward and the backward pass of deformable attention on CUDA share. A group of lanes of a warp owns one query
// and head: each lane has some neighbouring channels, and locates every so-manieth point for the others, which read it
// from the group's slots in shared memory. Warps never wait for one another.
#pragma once

#include "fusion3d/deform_attn.h"
#include "numbers.cuh"

namespace fusion3d {

constexpr int kDeformWarps = 4;   // of a block; its queries are neighbours, of one head, and share what they read in L1
constexpr int kDeformSlots = 8;   // points that a group has located at once

// A located point: pixels of the map and their weights; a corner outside of the level has weight 0 and the pixel of a
// neighbour within, and a point outside has -1 for its first pixel.
template <typename Real>
struct alignas(16) DeformSlot {
  Real weight[4];
  int32_t pixel[4];
};

__device__ inline float exponential(float x) { return __expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// Softmax of row `row` (query * heads + head), for a whole group: the largest logit, and the sum of exponentials.
template <typename Real>
__device__ void group_softmax(const DeformAttn& in, int64_t row, int lane, int lanes, Real* largest, Real* total) {
  const int count = int(in.num_levels * in.points);
  Real high = -Real(INFINITY), sum = 0;
  for (int s = lane; s < count; s += lanes) {
    const Real logit = load_any<Real>(in.logit_dtype, in.logits, row * count + s);
    high = logit > high ? logit : high;
  }
  for (int step = lanes / 2; step > 0; step /= 2) {
    const Real other = __shfl_xor_sync(kAll, high, step);
    high = other > high ? other : high;
  }
  for (int s = lane; s < count; s += lanes)
    sum += exponential(load_any<Real>(in.logit_dtype, in.logits, row * count + s) - high);
  *largest = high;
  *total = group_sum(sum, lanes);
}

// Point s of query q, head h; its level to *l.
template <typename Real>
__device__ DeformPoint<Real> locate(const DeformAttn& in, int64_t q, int64_t h, int s, int* l) {
  const int points = int(in.points), p = s % points;
  *l = s / points;
  const DeformLevel& level = in.levels[*l];
  const int64_t from = 2 * deform_reference(in, q, *l, p);
  const int64_t to = 2 * (((q * in.heads + h) * in.num_levels + *l) * in.points + p);
  const Real x = load_any<Real>(in.reference_dtype, in.reference, from) * Real(level.cols) - Real(0.5) +
                 load_any<Real>(in.offset_dtype, in.offsets, to);
  const Real y = load_any<Real>(in.reference_dtype, in.reference, from + 1) * Real(level.rows) - Real(0.5) +
                 load_any<Real>(in.offset_dtype, in.offsets, to + 1);
  return deform_point(level, x, y);
}

template <typename Real>
__device__ DeformSlot<Real> slot_of(const DeformLevel& level, const DeformPoint<Real>& point, Real attention) {
  DeformSlot<Real> slot;
  const bool left = point.x0 >= 0, right = point.x0 + 1 < level.cols;
  const bool top = point.y0 >= 0, bottom = point.y0 + 1 < level.rows;
  const Real above = top ? attention * (1 - point.fy) : Real(0), below = bottom ? attention * point.fy : Real(0);
  const Real near = left ? 1 - point.fx : Real(0), far = right ? point.fx : Real(0);
  slot.weight[0] = above * near, slot.weight[1] = above * far;
  slot.weight[2] = below * near, slot.weight[3] = below * far;
  const int32_t start = int32_t(level.start);
  const int32_t upper = start + (top ? point.y0 : 0) * level.cols;
  const int32_t lower = top && bottom ? upper + level.cols : upper;
  const int32_t x0 = left ? point.x0 : 0, x1 = right ? point.x0 + 1 : point.x0;
  slot.pixel[0] = point.inside ? upper + x0 : -1, slot.pixel[1] = upper + x1;
  slot.pixel[2] = lower + x0, slot.pixel[3] = lower + x1;
  return slot;
}

// How channels lie on lanes: packs of N channels, as many as 16 bytes hold where all rows are so aligned.
inline bool deform_packed(const DeformAttn& in, const void* a, const void* b, const void* c, int pack, int size) {
  const auto aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % (pack * size) == 0; };
  return in.channels % pack == 0 && aligned(a) && aligned(b) && aligned(c);
}

inline int deform_lanes(int64_t channels, int pack) {  // of a group: a power of two
  int lanes = 1;
  while (lanes < kWarp && lanes * pack < channels) lanes *= 2;
  return lanes;
}

}  // namespace fusion3d
