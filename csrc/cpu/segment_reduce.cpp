// Reduction of segments on the CPU. Channels are taken in blocks whose results stay in registers; the rows of a segment lie
// anywhere, so those to come are fetched ahead.
#include <algorithm>

#include "dispatch.h"
#include "fusion3d/segments.h"
#include "pages.h"
#include "vector.h"

namespace fusion3d {
namespace {

constexpr int64_t kAhead = 8;  // rows

typedef int32_t Ints __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(32)));

FUSION3D_INLINE void store_rows(int32_t* p, const Ints& v) { std::memcpy(p, &v, sizeof(v)); }
FUSION3D_INLINE void store_rows(int32_t* p, const Longs& v) {
  for (int i = 0; i < 4; ++i) p[i] = int32_t(v[i]);
}

// What vectors of rows look like beside vectors of values.
template <typename Vector>
struct Mask {
  typedef Ints Rows;
};
template <>
struct Mask<Doubles> {
  typedef Longs Rows;
};

template <typename T>
FUSION3D_INLINE void fetch_ahead(const SegmentReduce& args, int64_t r, int64_t last, int64_t c) {
  if (r + kAhead < last)
    __builtin_prefetch(static_cast<const T*>(args.values) + args.order[r + kAhead] * args.channels + c);
}

// Channels [c, c + N * lanes) of one segment, whose rows are order[begin], ..., order[end - 1]; `last` ends all rows.
template <int N, typename T>
FUSION3D_INLINE void sum_block(
    const SegmentReduce& args, int64_t begin, int64_t end, int64_t last, int64_t c, T* out) {
  typedef typename Compute<T>::Vector Vector;
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kWide = kLanes<T>;
  Vector total[N] = {};
  for (int64_t r = begin; r < end; ++r) {
    fetch_ahead<T>(args, r, last, c);
    const T* row = static_cast<const T*>(args.values) + args.order[r] * args.channels + c;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) total[n] += load(row + n * kWide);
  }
  const Real count = args.reduce == Reduce::kMean && end > begin ? Real(end - begin) : Real(1);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(out + c + n * kWide, Vector(total[n] / count));
}

template <int N, typename T>
FUSION3D_INLINE void max_block(
    const SegmentReduce& args, int64_t begin, int64_t end, int64_t last, int64_t c, T* out, int32_t* arg) {
  typedef typename Compute<T>::Vector Vector;
  typedef typename Mask<Vector>::Rows Rows;
  constexpr int64_t kWide = kLanes<T>;
  Vector best[N] = {};
  Rows at[N];
  for (int n = 0; n < N; ++n) at[n] = Rows() - 1;
  for (int64_t r = begin; r < end; ++r) {
    fetch_ahead<T>(args, r, last, c);
    const int32_t index = args.order[r];
    const T* row = static_cast<const T*>(args.values) + index * args.channels + c;
    const Rows first = r == begin ? Rows() - 1 : Rows();
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vector value = load(row + n * kWide);
      const Rows take = first | Rows(value > best[n]) | (Rows(value != value) & Rows(best[n] == best[n]));
      best[n] = take ? value : best[n];
      at[n] = take ? Rows() + index : at[n];
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    store(out + c + n * kWide, best[n]);
    store_rows(arg + c + n * kWide, at[n]);
  }
}

// Channels [c, channels), fewer than a vector.
template <typename T>
FUSION3D_INLINE void sum_rest(
    const SegmentReduce& args, int64_t begin, int64_t end, int64_t last, int64_t c, T* out) {
  typedef typename Compute<T>::Real Real;
  const int64_t rest = args.channels - c;
  Real total[sizeof(Floats) / sizeof(float)] = {};
  for (int64_t r = begin; r < end; ++r) {
    fetch_ahead<T>(args, r, last, c);
    const T* row = static_cast<const T*>(args.values) + args.order[r] * args.channels + c;
    for (int64_t k = 0; k < rest; ++k) total[k] += load_one(row + k);
  }
  const Real count = args.reduce == Reduce::kMean && end > begin ? Real(end - begin) : Real(1);
  for (int64_t k = 0; k < rest; ++k) store_one(out + c + k, total[k] / count);
}

template <typename T>
FUSION3D_INLINE void max_rest(
    const SegmentReduce& args, int64_t begin, int64_t end, int64_t c, T* out, int32_t* arg) {
  typedef typename Compute<T>::Real Real;
  for (; c < args.channels; ++c) {
    Real best = 0;
    int32_t at = -1;
    for (int64_t r = begin; r < end; ++r) {
      const int32_t index = args.order[r];
      const Real value = load_one(static_cast<const T*>(args.values) + index * args.channels + c);
      if (r == begin || exceeds(value, best)) best = value, at = index;
    }
    store_one(out + c, best);
    arg[c] = at;
  }
}

template <typename T>
FUSION3D_INLINE void reduce_segments(const SegmentReduce& args, int64_t first, int64_t last) {
  constexpr int64_t kWide = kLanes<T>;
  const int64_t channels = args.channels, rows = args.ptr[args.segments];
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = args.ptr[i], end = args.ptr[i + 1];
    T* out = static_cast<T*>(args.out) + i * channels;
    int64_t c = 0;
    if (args.reduce == Reduce::kMax) {
      int32_t* arg = args.arg + i * channels;
      for (; c + 4 * kWide <= channels; c += 4 * kWide) max_block<4>(args, begin, end, rows, c, out, arg);
      for (; c + kWide <= channels; c += kWide) max_block<1>(args, begin, end, rows, c, out, arg);
      max_rest(args, begin, end, c, out, arg);
    } else {
      for (; c + 8 * kWide <= channels; c += 8 * kWide) sum_block<8>(args, begin, end, rows, c, out);
      for (; c + 2 * kWide <= channels; c += 2 * kWide) sum_block<2>(args, begin, end, rows, c, out);
      for (; c + kWide <= channels; c += kWide) sum_block<1>(args, begin, end, rows, c, out);
      if (c < channels) sum_rest(args, begin, end, rows, c, out);
    }
  }
}

template <typename T>
FUSION3D_INLINE void spread_rows(const SegmentReduceBackward& args, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  typedef typename Compute<T>::Vector Vector;
  constexpr int64_t kWide = kLanes<T>;
  const int64_t channels = args.channels;
  if (channels == 0) return;
  for (int64_t r = first; r < last; ++r) {
    const int64_t i = args.segment[r];
    T* out = static_cast<T*>(args.grad_values) + r * channels;
    if (r + kAhead < last && args.segment[r + kAhead] >= 0) {
      const int64_t next = args.segment[r + kAhead] * channels;
      __builtin_prefetch(static_cast<const T*>(args.grad_out) + next);
      if (args.reduce == Reduce::kMax) __builtin_prefetch(args.arg + next);
    }
    if (i < 0) {
      std::memset(static_cast<void*>(out), 0, sizeof(T) * channels);
      continue;
    }
    const T* grad = static_cast<const T*>(args.grad_out) + i * channels;
    if (args.reduce == Reduce::kSum) {
      std::memcpy(static_cast<void*>(out), grad, sizeof(T) * channels);
    } else if (args.reduce == Reduce::kMean) {
      const Real rows = Real(args.ptr[i + 1] - args.ptr[i]);  // a product with 1 / rows would round twice
      int64_t c = 0;
      for (; c + kWide <= channels; c += kWide) store(out + c, Vector(load(grad + c) / rows));
      for (; c < channels; ++c) store_one(out + c, load_one(grad + c) / rows);
    } else {
      const int32_t* arg = args.arg + i * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] = arg[c] == r ? grad[c] : T();
    }
  }
}

FUSION3D_DISPATCH(run_reduce, SegmentReduce, reduce_segments)
FUSION3D_DISPATCH(run_backward, SegmentReduceBackward, spread_rows)

}  // namespace

void segment_reduce_backward_prepare_cpu(const SegmentReduceBackward& args) {
  expect_writes(args.grad_values, args.rows * args.channels * size_of(args.dtype));
}

int64_t segment_part(const SegmentReduce& args, int64_t part, int64_t parts) {
  // A segment's work is its rows and one output row; that sum grows with the segment, so the bound is found by bisection.
  const int64_t work = args.ptr[args.segments] + args.segments;
  const int64_t target = work / parts * part + work % parts * part / parts;
  int64_t low = 0, high = args.segments;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (args.ptr[middle] + middle < target)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

void segment_reduce_cpu(const SegmentReduce& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { run_reduce<decltype(zero)>(args, begin, end); });
}

void segment_reduce_backward_cpu(const SegmentReduceBackward& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto zero) { run_backward<decltype(zero)>(args, begin, end); });
}

}  // namespace fusion3d
