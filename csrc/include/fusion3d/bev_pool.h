// BEV pooling: out[cell] = sum over the samples s of the cell of depth[s] * feat[pixel[s]].
//
// A sample is one depth bin of one pixel of one image. Arrays are contiguous; depth, feat, out and their gradients share
// one dtype; sums are in float, or in double for double. Every output element is written, and by one owner: a cell forward,
// a pixel backward. So nothing is atomic and results are the same to the bit for any number of threads.
//
// The cells are walked tile by tile: neighbours in both directions are seen by the same pixels, whose features then stay in
// the nearest cache. `order` is that walk, and `part` cuts it into parts of about equal work.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/portable.h"

namespace fusion3d {

struct BevPoolForward {
  Dtype dtype;
  int64_t num_cells;
  int64_t channels;
  int64_t parts;
  const void* depth;        // [M, D, H, W]
  const void* feat;         // [M, H, W, C]
  const int32_t* sample;    // [S] index in depth, ordered by cell
  const int32_t* pixel;     // [S] index in [M, H, W]
  const int32_t* cell_ptr;  // [cells + 1] the samples of cell i are [cell_ptr[i], cell_ptr[i + 1])
  const int32_t* order;     // [cells] every cell once
  const int32_t* part;      // [parts + 1] the cells of part i are order[part[i]:part[i + 1]]
  void* out;                // [cells, C]
};

struct BevPoolBackward {
  Dtype dtype;
  int64_t images;
  int64_t bins;  // D
  int64_t rows;  // H
  int64_t cols;  // W
  int64_t channels;
  const void* grad_out;  // [cells, C]
  const void* depth;     // [M, D, H, W]
  const void* feat;      // [M, H, W, C]
  const int32_t* cell;   // [M, D, H, W] cell of each sample, -1 outside of the grid
  void* grad_depth;      // [M, D, H, W]
  void* grad_feat;       // [M, H, W, C]
};

// Division by a number that stays the same, as a product: exact for 0 <= n < 2^31 and 0 < divisor < 2^31.
struct Divider {
  uint64_t factor;
  int shift;
};

inline Divider divider(int64_t divisor) {
  int bits = 0;
  while ((int64_t(1) << bits) < divisor) ++bits;
  return {((uint64_t(1) << (31 + bits)) + uint64_t(divisor) - 1) / uint64_t(divisor), 31 + bits};
}

FUSION3D_SHARED int64_t divide(int64_t n, const Divider& by) { return int64_t(uint64_t(n) * by.factor >> by.shift); }

// The pixel in [M, H, W] of a sample in [M, D, H, W].
struct BevPoolPixel {
  const int32_t* sample;
  int64_t samples;
  int64_t area;  // H * W
  Divider by_area, by_bins;
  int32_t* pixel;
};

FUSION3D_SHARED int32_t pixel_of(const BevPoolPixel& args, int32_t sample) {
  const int64_t row = divide(sample, args.by_area);  // of [M * D] rows of pixels
  return int32_t(sample - (row - divide(row, args.by_bins)) * args.area);
}

// A patch of neighbouring pixels, and where it lies: pixels that look the same way meet in the same cells.
struct PixelPatch {
  int64_t image, row, col;
  int64_t rows, cols;  // smaller at the edges of the image
};

FUSION3D_SHARED int64_t patches_along(int64_t pixels, int64_t size) { return (pixels + size - 1) / size; }

FUSION3D_SHARED int64_t num_patches(const BevPoolBackward& args, int64_t rows, int64_t cols) {
  return args.images * patches_along(args.rows, rows) * patches_along(args.cols, cols);
}

// Patch `index` of `num_patches(args, rows, cols)`, of at most this many rows and columns.
FUSION3D_SHARED PixelPatch pixel_patch(const BevPoolBackward& args, int64_t index, int64_t rows, int64_t cols) {
  const int64_t across = patches_along(args.cols, cols), down = patches_along(args.rows, rows);
  const int64_t row = index / across % down * rows, col = index % across * cols;
  return {index / across / down, row, col, args.rows - row < rows ? args.rows - row : rows,
          args.cols - col < cols ? args.cols - col : cols};
}

// CPU: parts [begin, end), once the output is prepared; and patches [begin, end) of bev_pool_patches_cpu.
void bev_pool_prepare_cpu(const BevPoolForward& args);
void bev_pool_forward_cpu(const BevPoolForward& args, int64_t begin, int64_t end);
int64_t bev_pool_patches_cpu(const BevPoolBackward& args);
void bev_pool_backward_cpu(const BevPoolBackward& args, int64_t begin, int64_t end);
void bev_pool_pixel_cpu(const BevPoolPixel& args, int64_t begin, int64_t end);  // of the samples

// CUDA, on device pointers and the given stream, without synchronisation. Returns a cudaError_t.
int bev_pool_forward_cuda(const BevPoolForward& args, cudaStream_t stream);
int bev_pool_backward_cuda(const BevPoolBackward& args, cudaStream_t stream);
int bev_pool_pixel_cuda(const BevPoolPixel& args, cudaStream_t stream);

}  // namespace fusion3d
