// Overlap of oriented rectangles on CUDA. Of all pairs, few are near each other: a block lists those of its tile, then its
// threads share them out, so that none waits for the overlap of another.
#include "fusion3d/box_iou.h"

#include <cstdint>

#include "rectangles.cuh"

namespace fusion3d {
namespace {

constexpr int kRows = 32, kColumns = 64;  // pairs of a tile
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) iou_pairs(BoxIou args, int64_t column_tiles, int64_t tiles) {
  __shared__ Rectangle a[kRows], b[kColumns];
  __shared__ double radius_a[kRows], radius_b[kColumns];
  __shared__ uint16_t near[kRows * kColumns];
  __shared__ int count;
  const int thread = threadIdx.x;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile / column_tiles * kRows, first_column = tile % column_tiles * kColumns;
    if (thread == 0) count = 0;
    if (thread < kRows) {
      const int64_t i = first_row + thread;
      if (i < args.rows) a[thread] = load_rectangle(args.a, args.dtype, i, false);
      else a[thread].x = NAN;
      radius_a[thread] = radius_of(a[thread]);
    } else if (thread < kRows + kColumns) {
      const int n = thread - kRows;
      const int64_t i = first_column + n;
      if (i < args.columns) b[n] = load_rectangle(args.b, args.dtype, i, false);
      else b[n].x = NAN;
      radius_b[n] = radius_of(b[n]);
    }
    __syncthreads();
    for (int pair = thread; pair < kRows * kColumns; pair += kThreads) {
      const int row = pair / kColumns, column = pair % kColumns;
      if (first_row + row >= args.rows || first_column + column >= args.columns) continue;
      const double reach = radius_a[row] + radius_b[column];
      if (squared_distance(a[row], b[column]) < reach * reach)
        near[atomicAdd(&count, 1)] = uint16_t(pair);  // in any order: each has its own place in the output
      else
        store_any<double>(args.dtype, args.out, (first_row + row) * args.columns + first_column + column, 0);
    }
    __syncthreads();
    for (int n = thread; n < count; n += kThreads) {
      const int row = near[n] / kColumns, column = near[n] % kColumns;
      store_any<double>(
          args.dtype, args.out, (first_row + row) * args.columns + first_column + column, box_iou(a[row], b[column]));
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) iou_rows(BoxIouAligned args) {
  for (int64_t i = first_thread(); i < args.rows; i += all_threads()) {
    const Rectangle a = load_rectangle(args.a, args.dtype, i, false), b = load_rectangle(args.b, args.dtype, i, false);
    store_any<double>(args.dtype, args.out, i, box_iou(a, b));
  }
}

__global__ void __launch_bounds__(kThreads) iou_rows_backward(BoxIouAligned args) {
  for (int64_t i = first_thread(); i < args.rows; i += all_threads()) {
    const Rectangle a = load_rectangle(args.a, args.dtype, i, false), b = load_rectangle(args.b, args.dtype, i, false);
    double grad_a[5], grad_b[5];
    iou_gradient(a, b, load_any<double>(args.dtype, args.grad, i), grad_a, grad_b);
#pragma unroll
    for (int n = 0; n < 5; ++n) {
      store_any<double>(args.dtype, args.grad_a, 5 * i + n, grad_a[n]);
      store_any<double>(args.dtype, args.grad_b, 5 * i + n, grad_b[n]);
    }
  }
}

}  // namespace

int box_iou_cuda(const BoxIou& args, cudaStream_t stream) {
  if (args.rows == 0 || args.columns == 0) return cudaSuccess;
  const int64_t column_tiles = (args.columns + kColumns - 1) / kColumns;
  const int64_t tiles = (args.rows + kRows - 1) / kRows * column_tiles;
  iou_pairs<<<unsigned(blocks_for(tiles, 1)), kThreads, 0, stream>>>(args, column_tiles, tiles);
  return cudaGetLastError();
}

int box_iou_aligned_cuda(const BoxIouAligned& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  iou_rows<<<unsigned(blocks_for(args.rows, kThreads)), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

int box_iou_aligned_backward_cuda(const BoxIouAligned& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  iou_rows_backward<<<unsigned(blocks_for(args.rows, kThreads)), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fusion3d
