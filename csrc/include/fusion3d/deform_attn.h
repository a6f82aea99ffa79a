// Multi-scale deformable attention: out[q, h] = sum over levels l and points p of softmax(logits[q, h])[l, p] times map m,
// head h, level l, read bilinearly at reference[q] + offsets[q, h, l, p] / (cols, rows); zero outside of the level.
//
// A map is what one query reads: all levels, flat, one after the other, row by row. Queries are packed: each names its map.
// Arrays are contiguous. Locations, softmax and sums are in float, or in double where value is double. Every element of
// every result has one owner, which sums in a fixed order: nothing is atomic, and results are the same to the bit for any
// number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"
#include "fusion3d/portable.h"

namespace fusion3d {

constexpr int kMaxDeformLevels = 16;

struct DeformLevel {
  int32_t rows, cols;
  int64_t start;  // of its pixels within a map
};

struct DeformAttn {
  Dtype dtype;                                      // of value, out and their gradients
  Dtype reference_dtype, offset_dtype, logit_dtype;  // of these and their gradients
  int64_t maps, area, heads, channels;              // value is [maps, area, heads, channels]
  int64_t queries, points;
  int64_t num_levels;
  int64_t reference_levels;  // 1, or num_levels
  int64_t anchors;           // point p goes out from reference p % anchors
  DeformLevel levels[kMaxDeformLevels];
  const void* value;
  const void* reference;        // [queries, reference_levels, anchors, 2] x, y in [0, 1] of a level's extent
  const void* offsets;          // [queries, heads, levels, points, 2] x, y in pixels of the level
  const void* logits;           // [queries, heads, levels, points]
  const int32_t* map_of_query;  // [queries], a query outside of [0, maps) reads nothing; or null: queries / maps each
};

struct DeformAttnForward {
  DeformAttn in;
  void* out;  // [queries, heads, channels]
};

struct DeformAttnBackward {
  DeformAttn in;
  const void* grad_out;  // [queries, heads, channels]
  void* grad_value;      // each as its input
  void* grad_reference;
  void* grad_offsets;
  void* grad_logits;
};

// The map that query q reads, -1 for none.
FUSION3D_SHARED int64_t deform_map(const DeformAttn& in, int64_t q) {
  if (in.map_of_query == nullptr) return in.maps == 1 ? 0 : q / (in.queries / in.maps);
  const int64_t map = in.map_of_query[q];
  return map < in.maps ? map : -1;
}

// Where in `reference` (in pairs) query q's point p of level l goes out from.
FUSION3D_SHARED int64_t deform_reference(const DeformAttn& in, int64_t q, int64_t l, int64_t p) {
  const int64_t anchor = in.anchors == 1 ? 0 : p % in.anchors;
  return (q * in.reference_levels + (in.reference_levels == 1 ? 0 : l)) * in.anchors + anchor;
}

// A point between four pixels: column x0 (-1 .. cols - 1) and the next, row y0 likewise, and how far it is past them.
template <typename Real>
struct DeformPoint {
  bool inside;  // any of the four pixels is in the level; if not, the rest means nothing
  int32_t x0, y0;
  Real fx, fy;
};

// x, y: in pixels, 0 at the centre of the first. NaN and infinity are outside.
template <typename Real>
FUSION3D_SHARED DeformPoint<Real> deform_point(const DeformLevel& level, Real x, Real y) {
  DeformPoint<Real> point = {x > -1 && x < level.cols && y > -1 && y < level.rows, 0, 0, 0, 0};
  if (point.inside) {
    point.x0 = int32_t(x) - (x < 0 && Real(int32_t(x)) != x);
    point.y0 = int32_t(y) - (y < 0 && Real(int32_t(y)) != y);
    point.fx = x - Real(point.x0);
    point.fy = y - Real(point.y0);
  }
  return point;
}

// To collect what every pixel gets, points are sorted by their cell: the x0, y0 of a level has (cols + 1) x (rows + 1)
// cells, and all levels, heads and maps have theirs one after the other. Pixel (x, y) gets something from four cells.
FUSION3D_SHARED int64_t deform_level_cells(const DeformLevel& level) {
  return (int64_t(level.rows) + 1) * (int64_t(level.cols) + 1);
}

FUSION3D_SHARED int64_t deform_cells(const DeformAttn& in) {  // of one head of one map
  int64_t cells = 0;
  for (int64_t l = 0; l < in.num_levels; ++l) cells += deform_level_cells(in.levels[l]);
  return cells;
}

// x0, y0 from -1; `first` is the number of cells before this level.
FUSION3D_SHARED int64_t deform_cell(const DeformLevel& level, int64_t first, int32_t x0, int32_t y0) {
  return first + (int64_t(y0) + 1) * (int64_t(level.cols) + 1) + x0 + 1;
}

// CPU. `scratch` has deform_attn_scratch_cpu bytes; backward tells whether it is for the backward pass.
int64_t deform_attn_scratch_cpu(const DeformAttn& in, bool backward);
void deform_attn_forward_cpu(const DeformAttnForward& args, void* scratch, const ParallelFor& parallel_for);
void deform_attn_backward_cpu(const DeformAttnBackward& args, void* scratch, const ParallelFor& parallel_for);

// CUDA, on device pointers and the given stream, without synchronisation. They return a cudaError_t. The backward pass with
// null scratch only writes how many bytes it needs.
int deform_attn_forward_cuda(const DeformAttnForward& args, cudaStream_t stream);
int deform_attn_backward_cuda(
    const DeformAttnBackward& args, void* scratch, size_t* scratch_bytes, cudaStream_t stream);

}  // namespace fusion3d
