// BEV pooling: out[cell] = sum over the samples s of the cell of depth[s] * feat[pixel[s]].
//
// A sample is one depth bin of one pixel of one image. Arrays are contiguous; depth, feat, out and their gradients share
// one dtype; sums are in float, or in double for double. Every output element is written, and by one owner: a cell forward,
// a pixel backward. So nothing is atomic and results are the same to the bit for any number of threads.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"

namespace fusion3d {

struct BevPoolForward {
  Dtype dtype;
  int64_t num_cells;
  int64_t channels;
  const void* depth;        // [M, D, H, W]
  const void* feat;         // [M, H, W, C]
  const int32_t* sample;    // [S] index in depth, ordered by cell
  const int32_t* pixel;     // [S] index in [M, H, W]
  const int32_t* cell_ptr;  // [cells + 1] the samples of cell i are [cell_ptr[i], cell_ptr[i + 1])
  void* out;                // [cells, C]
};

struct BevPoolBackward {
  Dtype dtype;
  int64_t images;
  int64_t bins;  // D
  int64_t area;  // H * W
  int64_t channels;
  const void* grad_out;  // [cells, C]
  const void* depth;     // [M, D, H, W]
  const void* feat;      // [M, H, W, C]
  const int32_t* cell;   // [M, D, H, W] cell of each sample, -1 outside of the grid
  void* grad_depth;      // [M, D, H, W]
  void* grad_feat;       // [M, H, W, C]
};

// The first cell of part `part` of `parts` parts of about equal work.
int64_t bev_pool_part(const BevPoolForward& args, int64_t part, int64_t parts);

// CPU: cells [begin, end), and pixels [begin, end) of images * area.
void bev_pool_forward_cpu(const BevPoolForward& args, int64_t begin, int64_t end);
void bev_pool_backward_cpu(const BevPoolBackward& args, int64_t begin, int64_t end);

// CUDA, on device pointers and the given stream, without synchronisation. Returns a cudaError_t.
int bev_pool_forward_cuda(const BevPoolForward& args, cudaStream_t stream);
int bev_pool_backward_cuda(const BevPoolBackward& args, cudaStream_t stream);

}  // namespace fusion3d
