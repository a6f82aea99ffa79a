// What the forward and the backward pass of deformable attention on CUDA share. A group of lanes of a warp owns one query
// and head: each lane has some neighbouring channels, and locates every so-manieth point for the others, which read it
// from the group's slots in shared memory. Warps never wait for one another.
#pragma once

#include "fusion3d/deform_attn.h"
#include "rows.cuh"

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

// A thread's place: so many neighbouring lanes are a group, which has one query of the block's head at a time.
template <typename Real>
struct DeformGroup {
  int lanes, group, lane;
  DeformSlot<Real>* slots;
};

template <typename Real>
inline __host__ __device__ size_t deform_group_bytes() {  // 16 more keep the groups off each other's banks
  return kDeformSlots * sizeof(DeformSlot<Real>) + 16;
}

template <typename Real>
__device__ inline DeformGroup<Real> deform_group(unsigned char* shared, int lanes) {
  const int group = threadIdx.x / lanes;
  return {lanes, group, int(threadIdx.x % lanes),
          reinterpret_cast<DeformSlot<Real>*>(shared + group * deform_group_bytes<Real>())};
}

// A group's query. A warp stays together: groups past the end work on the last query, own nothing and write nothing.
template <typename Real>
struct DeformQuery {
  bool owned;
  int64_t q, map, row;  // row: query * heads + head
  Real largest, total;  // of the softmax
};

template <typename Real>
__device__ inline DeformQuery<Real> deform_query(
    const DeformAttn& in, const DeformGroup<Real>& group, int64_t number, int64_t h) {
  DeformQuery<Real> query;
  query.owned = number < in.queries;
  query.q = query.owned ? number : in.queries - 1;
  query.map = deform_map(in, query.q);
  query.row = query.q * in.heads + h;
  group_softmax(in, query.row, group.lane, group.lanes, &query.largest, &query.total);
  return query;
}

// Pack c of one head in the pixels of one map; of the first map where a query has none, and then not read.
template <typename T, int N>
struct DeformPixels {
  const char* first;
  uint32_t stride;  // in bytes: an address is one multiply-add of 32-bit numbers

  __device__ DeformPixels(const DeformAttn& in, int64_t map, int64_t h, int64_t c)
      : first(
            static_cast<const char*>(in.value) +
            ((((map < 0 ? 0 : map) * in.area * in.heads + h) * in.channels) + c * N) * sizeof(T)),
        stride(uint32_t(in.heads * in.channels * sizeof(T))) {}

  __device__ Pack<T, N> operator[](int32_t pixel) const {
    return *reinterpret_cast<const Pack<T, N>*>(first + uint64_t(uint32_t(pixel)) * stride);
  }
};

inline int deform_lanes(int64_t channels, int pack) {  // of a group: a power of two
  int lanes = 1;
  while (lanes < kWarp && lanes * pack < channels) lanes *= 2;
  return lanes;
}

// Starts a kernel with a group for each query and a row of blocks for each head, on (args, more..., lanes).
template <typename Real, typename Kernel, typename Args, typename... More>
cudaError_t deform_launch(
    Kernel kernel, const DeformAttn& in, int lanes, cudaStream_t stream, const Args& args, const More&... more) {
  constexpr int kThreads = kDeformWarps * kWarp;
  const size_t bytes = kThreads / lanes * deform_group_bytes<Real>();
  if (in.heads * in.channels * size_of(in.dtype) >> 32) return cudaErrorInvalidValue;
  if (const cudaError_t error = ask_shared(kernel, bytes); error != cudaSuccess) return error;
  const dim3 blocks(unsigned(blocks_for(in.queries, kThreads / lanes)), unsigned(in.heads));
  kernel<<<blocks, kThreads, bytes, stream>>>(args, more..., lanes);
  return cudaGetLastError();
}

}  // namespace fusion3d
