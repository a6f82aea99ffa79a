// Window attention: out[i] = sum over the rows j of the window of i of softmax_j(scale * q[i] . k[j]) * v[j], for each
// head.
//
// Rows belong to windows through a list: `order` names the rows window by window, or is null where they lie so already.
// q, k and v may be slices of one array, a stride apart; all else is contiguous. Sums are in float, or in double for
// double. Memory beside the tensors does not grow with the windows. Every output element has one owner: nothing is
// atomic, and results are the same to the bit for any number of threads.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"
#include "fusion3d/portable.h"

namespace fusion3d {

struct WindowInput {
  Dtype dtype;
  int64_t rows;     // N, of q, k and v
  int64_t heads;    // H
  int64_t dim;      // D, of one head
  int64_t windows;  // W
  int64_t listed;   // K rows that lie in windows, as the caller knows it: cu_seqlens[W]
  double scale;
  const int32_t* cu_seqlens;  // [W + 1] window w is the list's places [cu_seqlens[w], cu_seqlens[w + 1])
  const int32_t* order;       // [K] row of each place, or null: place i is row i
  const void* q;              // [N, H, D], rows q_stride elements apart
  const void* k;
  const void* v;
  int64_t q_stride, k_stride, v_stride;
};

struct WindowForward {
  WindowInput in;
  void* out;  // [N, H, D]; rows that no window lists are left as they are
  void* lse;  // [N, H] float or double: log of the sum of exp(scale * q . k)
};

struct WindowBackward {
  WindowInput in;
  const void* out;
  const void* lse;
  const void* grad_out;  // [N, H, D]
  void* delta;           // [N, H] float or double: workspace of the CUDA kernels, not used on the CPU
  void* grad_q;          // [N, H, D]; rows that no window lists are left as they are
  void* grad_k;
  void* grad_v;
};

// Places [begin, end) of a window, of which a tile owns those from `first` on. They lie within the list, whatever
// cu_seqlens holds: on the device nobody has read it before.
struct WindowTile {
  int64_t begin, end, first;
};

// Tiles are numbered without a look at the windows' lengths: those of window w begin at number cu_seqlens[w] / size +
// w, which leaves room enough for all. Some numbers are of no tile; they get an empty one (first >= end).
FUSION3D_SHARED int64_t window_tile_count(int64_t listed, int64_t windows, int64_t size) {
  return windows == 0 ? 0 : listed / size + windows;
}

FUSION3D_SHARED int64_t window_bound(int64_t value, int64_t listed) {
  return value < 0 ? 0 : value > listed ? listed : value;
}

FUSION3D_SHARED WindowTile window_tile(
    const int32_t* cu_seqlens, int64_t windows, int64_t listed, int64_t size, int64_t number) {
  int64_t low = 0, high = windows - 1;  // the last window whose tiles begin at `number` or before
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (cu_seqlens[middle] / size + middle <= number)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t begin = window_bound(cu_seqlens[low], listed), end = window_bound(cu_seqlens[low + 1], listed);
  const int64_t before = number - (begin / size + low);  // tiles of the window before this one
  return {begin, end, before < 0 ? end : begin + before * size};
}

// CPU.
void window_attention_forward_cpu(const WindowForward& args, const ParallelFor& parallel);
void window_attention_backward_cpu(const WindowBackward& args, const ParallelFor& parallel);

// CUDA, on device pointers and the given stream, without synchronisation; `dim` up to 256. Returns a cudaError_t.
int window_attention_forward_cuda(const WindowForward& args, cudaStream_t stream);
int window_attention_backward_cuda(const WindowBackward& args, cudaStream_t stream);

}  // namespace fusion3d
