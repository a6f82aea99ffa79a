// Points to voxels: which voxel each point is in, how many points each voxel keeps, and the mean of their features.
//
// The rule is that of the classic voxelizers: points are taken in order; the first max_voxels voxels of a sample that are
// met are kept, and of each the first max_points points. On the CPU points are dealt to lists by a hash of their voxel and
// each list has one owner; on CUDA they are sorted by voxel. Nothing is atomic; results do not depend on the threads.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"
#include "fusion3d/portable.h"

namespace fusion3d {

struct VoxelGrid {
  float low[3];      // x, y, z
  float size[3];
  int32_t cells[3];  // each below 2^24, so exact in float; their product is below 2^32 - 1
};

struct Voxelize {
  Dtype dtype;               // of the points
  int64_t rows;              // P, below 2^31
  int64_t stride;            // elements from one point to the next, of which the first three are x, y, z
  const void* points;
  int64_t samples;           // B
  const int64_t* batch_ptr;  // [B + 1] points of each sample; null: one sample has them all
  VoxelGrid grid;
  int64_t max_points;  // of a voxel
  int64_t max_voxels;  // of a sample
  bool by_key;          // list the voxels by sample and cell; else by sample and first point
  int64_t capacity;     // V: rows of the outputs; those past the number of voxels are padding
  int32_t* coords;      // [V, 4] sample, z, y, x; padding -1
  int32_t* counts;      // [V] points that are kept; padding 0
  int32_t* voxel;       // [P] of each point, -1 where it is not kept
  int32_t* rank;        // [P] among the points of its voxel, -1 where it is not kept
  int32_t* num_voxels;  // [1]
  Dtype feature_dtype;
  int64_t channels;      // C
  const void* features;  // [P, C]; null: no means
  void* means;           // [V, C]; padding 0
};

// The cell z, y, x as one number of a point, by division in float as the classic voxelizers do it: the reciprocal would
// put points on a border elsewhere. For t >= 0 truncation is floor; comparisons in float keep NaN and infinity out.
FUSION3D_SHARED bool cell_of(const VoxelGrid& grid, float x, float y, float z, uint32_t* cell) {
  const float tx = (x - grid.low[0]) / grid.size[0], ty = (y - grid.low[1]) / grid.size[1],
              tz = (z - grid.low[2]) / grid.size[2];
  const bool inside = tx >= 0 && tx < float(grid.cells[0]) && ty >= 0 && ty < float(grid.cells[1]) && tz >= 0 &&
                      tz < float(grid.cells[2]);
  if (inside)
    *cell = (uint32_t(int32_t(tz)) * uint32_t(grid.cells[1]) + uint32_t(int32_t(ty))) * uint32_t(grid.cells[0]) +
            uint32_t(int32_t(tx));
  return inside;
}

FUSION3D_SHARED uint64_t num_cells(const VoxelGrid& grid) {
  return uint64_t(grid.cells[0]) * uint64_t(grid.cells[1]) * uint64_t(grid.cells[2]);
}

// sample, z, y, x of a cell
FUSION3D_SHARED void write_coords(const VoxelGrid& grid, int64_t sample, uint32_t cell, int32_t* coords) {
  const uint32_t row = cell / uint32_t(grid.cells[0]), layer = row / uint32_t(grid.cells[1]);
  coords[0] = int32_t(sample);
  coords[1] = int32_t(layer);
  coords[2] = int32_t(row - layer * uint32_t(grid.cells[1]));
  coords[3] = int32_t(cell - row * uint32_t(grid.cells[0]));
}

// The sample of a point: the last that begins at or before it. -1 where the point is of none.
FUSION3D_SHARED int64_t sample_of(const int64_t* batch_ptr, int64_t samples, int64_t row) {
  if (!batch_ptr) return samples > 0 ? 0 : -1;
  int64_t low = 0, high = samples;  // batch_ptr[low] <= row < batch_ptr[high], if the row is of any sample
  if (samples == 0 || row < batch_ptr[0] || row >= batch_ptr[samples]) return -1;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (batch_ptr[middle] <= row ? low : high) = middle;
  }
  return low;
}

// Rows of points put where their voxels keep them: out[voxel[i], rank[i]] = values[i], 0 where no point is.
struct VoxelGather {
  Dtype dtype;
  int64_t rows;      // P
  int64_t channels;  // C
  int64_t voxels;    // V
  int64_t max_points;
  const void* values;    // [P, C]
  const int32_t* voxel;  // [P]
  const int32_t* rank;   // [P]
  void* out;             // [V, max_points, C]
};

// The row of `out` that point i goes to, -1 where it goes to none. No two points go to one.
FUSION3D_SHARED int64_t slot_of(const VoxelGather& args, int64_t i) {
  const int64_t voxel = args.voxel[i], rank = args.rank[i];
  const bool kept = (voxel >= 0) & (voxel < args.voxels) & (rank >= 0) & (rank < args.max_points);
  return kept ? voxel * args.max_points + rank : -1;
}

// CPU. The batch pointer must ascend from 0 to the number of rows.
void voxelize_cpu(const Voxelize& args, const ParallelFor& parallel_for);
void voxel_gather_cpu(const VoxelGather& args, const ParallelFor& parallel_for);

// CUDA, on device pointers and the given stream, without synchronisation; with scratch null, only says how many bytes it
// needs. Returns a cudaError_t.
int voxelize_cuda(const Voxelize& args, void* scratch, size_t* bytes, cudaStream_t stream);
int voxel_gather_cuda(const VoxelGather& args, cudaStream_t stream);

}  // namespace fusion3d
