// The voxels of a sparse grid, findable by cell: a bitmap of two levels with ranks, shared by the CPU and the CUDA kernels.
//
// Cells are counted (batch, z, y, x), x fastest. A word holds the bits of 64 neighbouring cells; only words with a voxel are
// kept, in order. `top` has one bit for each word of the grid and so says which are kept: one bit for 64 cells, 170 kB for
// 1440 x 1440 x 41. The rank of a voxel, its place in ascending order of cells, is counted from the bits. So nothing is
// hashed or sorted, and what is found does not depend on the order in which voxels came.
#pragma once

#include <cstdint>

#include "fusion3d/portable.h"

namespace fusion3d {

// Inlined without fail: what counts bits is compiled for each of the CPU's instruction sets.
#define FUSION3D_SPARSE_INLINE FUSION3D_SHARED __attribute__((always_inline))

struct VoxelIndex {
  uint64_t* top;       // [tops] bit w % 64 of top[w / 64]: word w is kept
  int32_t* top_rank;   // [tops] kept words before those of top[i]
  uint64_t* words;     // [kept] bit c % 64: cell c holds a voxel
  int32_t* word_rank;  // [kept] voxels before those of words[i]
};

// A convolution's geometry; axes are z, y, x. Tap k of an axis reads input i = o * stride - padding + k * dilation.
struct SparseGeometry {
  int32_t batch;
  int32_t in_shape[3], out_shape[3];
  int32_t kernel[3], stride[3], padding[3], dilation[3];
};

FUSION3D_SHARED int64_t num_cells(int32_t batch, const int32_t* shape) {
  return int64_t(batch) * shape[0] * shape[1] * shape[2];
}
FUSION3D_SHARED int64_t num_words(int64_t cells) { return (cells + 63) / 64; }
FUSION3D_SHARED int64_t num_tops(int64_t cells) { return (num_words(cells) + 63) / 64; }

FUSION3D_SPARSE_INLINE int64_t cell_at(const int32_t* shape, int32_t b, int32_t z, int32_t y, int32_t x) {
  return ((int64_t(b) * shape[0] + z) * shape[1] + y) * shape[2] + x;
}

FUSION3D_SHARED bool is_inside(int32_t batch, const int32_t* shape, const int32_t* bzyx) {
  return uint32_t(bzyx[0]) < uint32_t(batch) && uint32_t(bzyx[1]) < uint32_t(shape[0]) &&
         uint32_t(bzyx[2]) < uint32_t(shape[1]) && uint32_t(bzyx[3]) < uint32_t(shape[2]);
}

FUSION3D_SPARSE_INLINE int count_bits(uint64_t bits) {
#ifdef __CUDA_ARCH__
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

FUSION3D_SPARSE_INLINE uint64_t bit_of(int64_t i) { return uint64_t(1) << (i & 63); }

// Place of a word among those kept, -1 if it is not.
FUSION3D_SPARSE_INLINE int32_t find_word(const VoxelIndex& index, int64_t word) {
  const uint64_t kept = index.top[word >> 6];
  if (!(kept & bit_of(word))) return -1;
  return index.top_rank[word >> 6] + count_bits(kept & (bit_of(word) - 1));
}

// Rank of the voxel in a cell, -1 if there is none.
FUSION3D_SPARSE_INLINE int32_t find_voxel(const VoxelIndex& index, int64_t cell) {
  const int32_t i = find_word(index, cell >> 6);
  if (i < 0) return -1;
  const uint64_t bits = index.words[i];
  if (!(bits & bit_of(cell))) return -1;
  return index.word_rank[i] + count_bits(bits & (bit_of(cell) - 1));
}

// The output that reads input i through tap k of an axis, -1 if none does.
FUSION3D_SPARSE_INLINE int32_t output_through(const SparseGeometry& g, int axis, int32_t i, int32_t k) {
  const int32_t shifted = i + g.padding[axis] - k * g.dilation[axis];
  if (shifted < 0 || shifted % g.stride[axis]) return -1;
  const int32_t o = shifted / g.stride[axis];
  return o < g.out_shape[axis] ? o : -1;
}

// Most outputs that read one input: of an axis' taps, those that are whole strides apart.
FUSION3D_SHARED int64_t most_outputs(const SparseGeometry& g) {
  int64_t count = 1;
  for (int axis = 0; axis < 3; ++axis) {
    int32_t a = g.stride[axis], b = g.dilation[axis];
    while (b) {
      const int32_t rest = a % b;
      a = b;
      b = rest;
    }
    const int32_t period = g.stride[axis] / a;
    count *= (g.kernel[axis] + period - 1) / period;
  }
  return count;
}

// Coordinates of a cell.
FUSION3D_SHARED void coords_of(const int32_t* shape, int64_t cell, int32_t* bzyx) {
  bzyx[3] = int32_t(cell % shape[2]);
  cell /= shape[2];
  bzyx[2] = int32_t(cell % shape[1]);
  cell /= shape[1];
  bzyx[1] = int32_t(cell % shape[0]);
  bzyx[0] = int32_t(cell / shape[0]);
}

}  // namespace fusion3d
