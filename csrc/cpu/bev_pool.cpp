// BEV pooling on the CPU. Channels are taken in blocks whose sums stay in registers. Each worker is compiled for the
// baseline and, on x86, for AVX2 with FMA; which one runs is decided when it is called.
#include "fusion3d/bev_pool.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "vector.h"

namespace fusion3d {
namespace {

// Channels [c, c + N * lanes) of one cell, for the samples [begin, end).
template <int N, typename T>
FUSION3D_INLINE void pool_block(
    const BevPoolForward& args, int32_t begin, int32_t end, int64_t c, T* out) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int kLanes = sizeof(Vector) / sizeof(typename Compute<T>::Real);
  const T* depth = static_cast<const T*>(args.depth);
  const T* feat = static_cast<const T*>(args.feat) + c;
  Vector total[N] = {};
  for (int32_t s = begin; s < end; ++s) {
    const Vector weight = Vector() + load_one(depth + args.sample[s]);
    const T* row = feat + args.pixel[s] * args.channels;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) total[n] += weight * load(row + n * kLanes);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(out + c + n * kLanes, total[n]);
}

template <typename T>
FUSION3D_INLINE void pool_cells(const BevPoolForward& args, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kLanes = sizeof(typename Compute<T>::Vector) / sizeof(Real);
  const int64_t channels = args.channels;
  for (int64_t i = first; i < last; ++i) {
    const int32_t begin = args.cell_ptr[i], end = args.cell_ptr[i + 1];
    T* out = static_cast<T*>(args.out) + i * channels;
    int64_t c = 0;
    for (; c + 8 * kLanes <= channels; c += 8 * kLanes) pool_block<8>(args, begin, end, c, out);
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes) pool_block<2>(args, begin, end, c, out);
    for (; c + kLanes <= channels; c += kLanes) pool_block<1>(args, begin, end, c, out);
    for (; c < channels; ++c) {
      Real total = 0;
      for (int32_t s = begin; s < end; ++s)
        total += load_one(static_cast<const T*>(args.depth) + args.sample[s]) *
                 load_one(static_cast<const T*>(args.feat) + args.pixel[s] * channels + c);
      store_one(out + c, total);
    }
  }
}

// One pixel's share of the gradients, for channels [c, c + N * lanes); adds its dot products to `dots`.
template <int N, typename T>
FUSION3D_INLINE void unpool_block(
    const BevPoolBackward& args, const T* depth, const int32_t* cell, const T* feat, int64_t c, T* grad_feat,
    typename Compute<T>::Real* dots) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int kLanes = sizeof(Vector) / sizeof(typename Compute<T>::Real);
  Vector value[N], total[N] = {};
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) value[n] = load(feat + c + n * kLanes);
  for (int64_t d = 0; d < args.bins; ++d) {
    const int64_t i = cell[d * args.area];
    if (i < 0) continue;
    const T* grad = static_cast<const T*>(args.grad_out) + i * args.channels + c;
    const Vector weight = Vector() + load_one(depth + d * args.area);
    Vector dot = {};
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vector g = load(grad + n * kLanes);
      total[n] += weight * g;
      dot += value[n] * g;
    }
    dots[d] += sum(dot);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(grad_feat + c + n * kLanes, total[n]);
}

template <typename T>
FUSION3D_INLINE void unpool_pixels(const BevPoolBackward& args, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kLanes = sizeof(typename Compute<T>::Vector) / sizeof(Real);
  const int64_t channels = args.channels;
  std::vector<Real> dots(args.bins);
  for (int64_t p = first; p < last; ++p) {
    const int64_t offset = p / args.area * args.bins * args.area + p % args.area;
    const T* depth = static_cast<const T*>(args.depth) + offset;
    const T* feat = static_cast<const T*>(args.feat) + p * channels;
    const int32_t* cell = args.cell + offset;
    T* grad_feat = static_cast<T*>(args.grad_feat) + p * channels;
    std::fill(dots.begin(), dots.end(), Real(0));
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
      unpool_block<4>(args, depth, cell, feat, c, grad_feat, dots.data());
    for (; c + kLanes <= channels; c += kLanes)
      unpool_block<1>(args, depth, cell, feat, c, grad_feat, dots.data());
    for (; c < channels; ++c) {
      Real total = 0;
      for (int64_t d = 0; d < args.bins; ++d) {
        const int64_t i = cell[d * args.area];
        if (i < 0) continue;
        const Real grad = load_one(static_cast<const T*>(args.grad_out) + i * channels + c);
        total += load_one(depth + d * args.area) * grad;
        dots[d] += load_one(feat + c) * grad;
      }
      store_one(grad_feat + c, total);
    }
    T* grad_depth = static_cast<T*>(args.grad_depth) + offset;
    for (int64_t d = 0; d < args.bins; ++d) store_one(grad_depth + d * args.area, dots[d]);
  }
}

FUSION3D_DISPATCH(run_forward, BevPoolForward, pool_cells)
FUSION3D_DISPATCH(run_backward, BevPoolBackward, unpool_pixels)

}  // namespace

int64_t bev_pool_part(const BevPoolForward& args, int64_t part, int64_t parts) {
  // A cell's work is its samples and one output row; that sum grows with the cell, so the bound is found by bisection.
  const int64_t work = args.cell_ptr[args.num_cells] + args.num_cells;
  const int64_t target = work / parts * part + work % parts * part / parts;
  int64_t low = 0, high = args.num_cells;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (args.cell_ptr[middle] + middle < target)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

void bev_pool_forward_cpu(const BevPoolForward& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { run_forward<decltype(zero)>(args, begin, end); });
}

void bev_pool_backward_cpu(const BevPoolBackward& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { run_backward<decltype(zero)>(args, begin, end); });
}

}  // namespace fusion3d
