// Sparse convolution over a neighbour table, and its gradient to the weights.
//
// out[m] = sum over taps k with table[k][m] >= 0 of weight[:, k, :] in[table[k][m]]. The gradient to the input is the same
// sum over the transposed table with transposed weights ("adjoint"). Features, weights and results share one dtype; sums are
// in float, or in double for double, tap after tap, channel after channel. An output row has one owner; the gradient of the
// weights is summed in parts whose number depends on the sizes alone, then over the parts in their order.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"

namespace fusion3d {

struct SparseConv {
  Dtype dtype;
  int64_t num_out;
  int64_t taps;
  int64_t in_channels;   // of a row of `in`
  int64_t out_channels;  // of a row of `out`
  bool adjoint;          // weight is [in_channels, taps, out_channels] instead of [out_channels, taps, in_channels]
  bool flipped;          // the table's row taps - 1 - k belongs to tap k of the weight
  const void* in;        // [rows, in_channels]
  const void* weight;
  const int32_t* table;  // [taps, num_out]
  void* out;             // [num_out, out_channels]
};

struct SparseWeightGrad {
  Dtype dtype;
  int64_t num_out;
  int64_t taps;
  int64_t in_channels;
  int64_t out_channels;
  const void* grad;      // [num_out, out_channels]
  const void* in;        // [rows, in_channels]
  const int32_t* table;  // [taps, num_out]
  void* out;             // [out_channels, taps, in_channels]
};

void sparse_conv_cpu(const SparseConv& args, const ParallelFor& parallel_for);
void sparse_weight_grad_cpu(const SparseWeightGrad& args, const ParallelFor& parallel_for);

// CUDA, on device pointers and the given stream, without synchronisation. Returns a cudaError_t.
int sparse_conv_cuda(const SparseConv& args, cudaStream_t stream);
int64_t sparse_weight_grad_scratch_cuda(const SparseWeightGrad& args);
int sparse_weight_grad_cuda(const SparseWeightGrad& args, void* scratch, cudaStream_t stream);

}  // namespace fusion3d
