// Which voxel a sparse convolution reads where: neighbour tables.
//
// table[k][m] is the input row that output row m reads through tap k (taps counted z, y, x, x fastest), or -1;
// transposed[k][n] is the output row that reads input row n through tap k, or -1: at most one does. For a submanifold
// convolution, whose outputs are its inputs, transposed[k] is table[taps - 1 - k] and is not stored. Every entry is written
// by one owner and outputs come in ascending order of cells, so tables are the same for any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"
#include "fusion3d/sparse_index.h"

namespace fusion3d {

struct SparseRulebook {
  SparseGeometry geometry;
  int64_t num_in;
  int64_t num_out;
  const int32_t* coords;  // [num_in, 4] batch, z, y, x
  int32_t* out_coords;    // [num_out, 4]; not of a submanifold convolution
  int32_t* table;         // [taps, num_out]
  int32_t* transposed;    // [taps, num_in]; not of a submanifold convolution
};

// An index in memory of the CPU, with the voxels it holds.
struct VoxelIndexStorage {
  std::vector<uint64_t> top, words;
  std::vector<int32_t> top_rank, word_rank;
  int64_t num_voxels = 0;

  VoxelIndex view() { return {top.data(), top_rank.data(), words.data(), word_rank.data()}; }
};

// CPU. The first row that is outside of the grid, or -1.
int64_t sparse_outside_cpu(const SparseRulebook& args);
// Fills the table of a submanifold convolution. False if two rows have one cell; the table is then of no use.
bool sparse_submanifold_cpu(const SparseRulebook& args, const ParallelFor& parallel_for);
// The outputs of a strided convolution, of which there are index.num_voxels; then its tables, from the same index.
// False if two rows have one cell.
bool sparse_outputs_cpu(const SparseRulebook& args, VoxelIndexStorage& index, const ParallelFor& parallel_for);
void sparse_strided_cpu(const SparseRulebook& args, VoxelIndexStorage& index, const ParallelFor& parallel_for);

// CUDA, on device pointers and the given stream; each returns a cudaError_t. `scratch` has the bytes asked for and holds the
// index between sparse_outputs_cuda, which waits for the number of outputs, and sparse_strided_cuda; nothing else waits.
// Rows outside of the grid have no neighbours; of rows with one cell the first is found.
int64_t sparse_scratch_cuda(const SparseRulebook& args, bool submanifold);
int sparse_submanifold_cuda(const SparseRulebook& args, void* scratch, cudaStream_t stream);
int sparse_outputs_cuda(const SparseRulebook& args, void* scratch, int64_t* num_out, cudaStream_t stream);
int sparse_strided_cuda(const SparseRulebook& args, void* scratch, cudaStream_t stream);

}  // namespace fusion3d
