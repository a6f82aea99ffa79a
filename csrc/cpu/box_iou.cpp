// Overlap of oriented rectangles on the CPU. Of all pairs, few are near each other: those are listed first, then computed
// four at a time.
#include "fusion3d/box_iou.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "rectangles.h"

namespace fusion3d {
namespace {

constexpr int64_t kPairGrain = 1 << 16;  // fewest pairs worth a thread

struct Pairs {
  const Rectangles& a;
  const Rectangles& b;
  int64_t columns;
  std::vector<int32_t>& near;
  std::vector<double>& iou;
};

// The near ones of row i: `near` lists them, `iou` says how much each overlaps; returns how many there are.
FUSION3D_INLINE int64_t fill_row(const Pairs& pairs, int64_t i) {
  const Rectangle one = pairs.a.get(i);
  const int64_t count =
      find_near(pairs.b, 0, pairs.columns, one.x, one.y, pairs.a.radius[i], pairs.near.data());
  find_iou(pairs.b, one, pairs.near.data(), count, pairs.iou.data());
  return count;
}

int64_t fill_row_baseline(const Pairs& pairs, int64_t i) { return fill_row(pairs, i); }
#ifdef FUSION3D_AVX2
FUSION3D_AVX2 int64_t fill_row_avx2(const Pairs& pairs, int64_t i) { return fill_row(pairs, i); }
#endif

template <typename T>
void load_all(const void* rows, int64_t count, const ParallelFor& parallel, Rectangles& into) {
  const T* from = static_cast<const T*>(rows);
  parallel(0, count, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Rectangle r = load_rectangle(from + 5 * i, false);
      into.set(i, r, radius_of(r));
    }
  });
}

template <typename T>
void iou_pairs(const BoxIou& args, const ParallelFor& parallel) {
  Rectangles a(args.rows), b(args.columns);
  load_all<T>(args.a, args.rows, parallel, a);
  load_all<T>(args.b, args.columns, parallel, b);
  const int64_t grain = std::max<int64_t>(kPairGrain / std::max<int64_t>(args.columns, 1), 1);
  parallel(0, args.rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> near(args.columns + 16);
    std::vector<double> iou(args.columns + 16);
    const Pairs pairs = {a, b, args.columns, near, iou};
    for (int64_t i = begin; i < end; ++i) {
      T* row = static_cast<T*>(args.out) + i * args.columns;
      std::fill(row, row + args.columns, T());
#ifdef FUSION3D_AVX2
      const int64_t count = has_avx2() ? fill_row_avx2(pairs, i) : fill_row_baseline(pairs, i);
#else
      const int64_t count = fill_row_baseline(pairs, i);
#endif
      for (int64_t n = 0; n < count; ++n) store_one(row + near[n], typename Compute<T>::Real(iou[n]));
    }
  });
}

template <typename T>
void iou_rows(const BoxIouAligned& args, int64_t begin, int64_t end) {
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  for (int64_t i = begin; i < end; ++i) {
    const double iou = box_iou(load_rectangle(a + 5 * i, false), load_rectangle(b + 5 * i, false));
    store_one(static_cast<T*>(args.out) + i, typename Compute<T>::Real(iou));
  }
}

template <typename T>
void iou_rows_backward(const BoxIouAligned& args, int64_t begin, int64_t end) {
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  for (int64_t i = begin; i < end; ++i) {
    double grad_a[5], grad_b[5];
    const double grad = load_one(static_cast<const T*>(args.grad) + i);
    iou_gradient(load_rectangle(a + 5 * i, false), load_rectangle(b + 5 * i, false), grad, grad_a, grad_b);
    for (int n = 0; n < 5; ++n) {
      store_one(static_cast<T*>(args.grad_a) + 5 * i + n, typename Compute<T>::Real(grad_a[n]));
      store_one(static_cast<T*>(args.grad_b) + 5 * i + n, typename Compute<T>::Real(grad_b[n]));
    }
  }
}

}  // namespace

void box_iou_cpu(const BoxIou& args, const ParallelFor& parallel) {
  for_dtype(args.dtype, [&](auto zero) { iou_pairs<decltype(zero)>(args, parallel); });
}

void box_iou_aligned_cpu(const BoxIouAligned& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { iou_rows<decltype(zero)>(args, begin, end); });
}

void box_iou_aligned_backward_cpu(const BoxIouAligned& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { iou_rows_backward<decltype(zero)>(args, begin, end); });
}

}  // namespace fusion3d
