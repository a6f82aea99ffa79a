// Window attention on the CPU, backward, laid out as the forward pass is: weights are computed anew from the saved
// log-sum-exp. A task owns the gradients of a whole window, or, where that is long, of some of its queries or keys.
#include "window_tasks.h"

namespace fusion3d {
namespace {

constexpr int64_t kWhole = 384;  // a window up to here has one task; that of a longer one is shared out

// One worker's packed pieces of one head; "c" is a channel, "i" a query of the tile, "j" a key.
template <typename Real>
struct Pieces {
  Real *k, *v, *grad_k, *grad_v;  // [j][width] of the keys at hand, or of all that are owned
  Real *q_ci, *grad_ci, *grad_q;  // [c][tile]; q times scale * log2(e)
  Real *q_ic, *grad_ic;           // [i][width]; q times scale
  Real *p, *grad_p;               // [j][tile]
  Real *lse, *delta, *factor;     // [tile]; lse in base 2, delta = sum over c of grad_out * out

  static int64_t size(int64_t dim, int64_t width) {
    return 4 * kWhole * width + 3 * dim * kTile<Real> + 2 * kTile<Real> * width + 2 * kKeys * kTile<Real> +
           3 * kTile<Real>;
  }
  Pieces(WindowScratch<Real>& scratch, int64_t dim, int64_t width) {
    for (Real** piece : {&k, &v, &grad_k, &grad_v}) *piece = scratch.take(kWhole * width);
    for (Real** piece : {&p, &grad_p}) *piece = scratch.take(kKeys * kTile<Real>);
    for (Real** piece : {&q_ci, &grad_ci, &grad_q}) *piece = scratch.take(dim * kTile<Real>);
    for (Real** piece : {&lse, &delta, &factor}) *piece = scratch.take(kTile<Real>);
    for (Real** piece : {&q_ic, &grad_ic}) *piece = scratch.take(kTile<Real> * width);
  }
};

template <typename T>
using PiecesOf = Pieces<typename Compute<T>::Real>;

// A tile of queries and a tile of keys that begins at `key` of those packed.
template <typename Real>
struct Unmeeting {
  const Pieces<Real>& at;
  const WindowTask& task;
  int64_t dim, width, key;
};

// Weights again, the gradient of the scores, and from it that of the queries.
template <int N, typename Real>
FUSION3D_INLINE void unmeet_vectors(const Unmeeting<Real>& args, int64_t keys) {
  typedef typename Compute<Real>::Vector Vector;
  constexpr int64_t kRow = kTile<Real>, kWide = kLanes<Real>;
  const Pieces<Real>& at = args.at;
  const Real *k = at.k + args.key * args.width, *v = at.v + args.key * args.width;
  for (int part = 0; part < 2; ++part)
    multiply<false, N, Vector>(
        keys, args.dim, part ? v : k, args.width, int64_t(1), part ? at.grad_ci : at.q_ci, kRow,
        part ? at.grad_p : at.p, kRow);
  Vector lse[N], delta[N];
#pragma GCC unroll 3
  for (int n = 0; n < N; ++n) {
    lse[n] = load(at.lse + n * kWide);
    delta[n] = load(at.delta + n * kWide);
  }
  for (int64_t j = 0; j < keys; ++j)
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      Real* place = at.p + j * kRow + n * kWide;
      Real* grad = at.grad_p + j * kRow + n * kWide;
      const Vector p = exp2(load(place) - lse[n]);
      store(place, p);
      store(grad, p * (load(grad) - delta[n]));
    }
  if (args.task.queries)
    multiply<true, N, Vector>(args.dim, keys, k, int64_t(1), args.width, at.grad_p, kRow, at.grad_q, kRow);
}

template <typename Real>
FUSION3D_INLINE void unmeet(const Unmeeting<Real>& args, int64_t keys, int64_t queries) {
  if (queries > 2 * kLanes<Real>)
    unmeet_vectors<3>(args, keys);
  else if (queries > kLanes<Real>)
    unmeet_vectors<2>(args, keys);
  else
    unmeet_vectors<1>(args, keys);
  if (!args.task.keys) return;
  const Pieces<Real>& at = args.at;
  for (int part = 0; part < 2; ++part)
    multiply_wide<typename Compute<Real>::Vector>(
        keys, queries, part ? at.grad_p : at.p, int64_t(kTile<Real>), int64_t(1), part ? at.q_ic : at.grad_ic,
        (part ? at.grad_k : at.grad_v) + args.key * args.width, args.width);
}

FUSION3D_DISPATCH(run_unmeet, Unmeeting<T>, unmeet)

// Packs a tile of queries, their gradients and statistics.
template <typename T>
FUSION3D_INLINE void pack_queries(
    const WindowBackward& args, const PiecesOf<T>& at, int64_t head, int64_t first, int64_t count, int64_t width) {
  typedef typename Compute<T>::Real Real;
  const WindowInput& in = args.in;
  const T *from[kTile<T>], *out[kTile<T>];
  rows_of(in, static_cast<const T*>(in.q), in.q_stride, head, first, count, from);
  pack_columns<T>(from, count, in.dim, Real(in.scale * kLog2e), at.q_ci);
  pack_rows<T>(from, count, in.dim, width, Real(in.scale), at.q_ic);
  rows_of(in, static_cast<const T*>(args.grad_out), in.heads * in.dim, head, first, count, from);
  pack_columns<T>(from, count, in.dim, Real(1), at.grad_ci);
  pack_rows<T>(from, count, in.dim, width, Real(1), at.grad_ic);
  rows_of(in, static_cast<const T*>(args.out), in.heads * in.dim, head, first, count, out);
  for (int64_t i = 0; i < count; ++i) {
    typename Compute<T>::Vector dots = {};
    int64_t c = 0;
    for (; c + kLanes<T> <= in.dim; c += kLanes<T>) dots += load(out[i] + c) * load(at.grad_ic + i * width + c);
    Real delta = sum(dots);
    for (; c < in.dim; ++c) delta += load_one(out[i] + c) * at.grad_ic[i * width + c];
    const int64_t row = in.order ? in.order[first + i] : first + i;
    at.lse[i] = static_cast<const Real*>(args.lse)[row * in.heads + head] * Real(kLog2e);
    at.delta[i] = delta;
  }
  std::fill(at.lse + count, at.lse + kTile<T>, Real(0));  // lanes without a query must stay finite
  std::fill(at.delta + count, at.delta + kTile<T>, Real(0));
}

// Packs the keys and values of some places.
template <typename T>
FUSION3D_INLINE void pack_keys(
    const WindowInput& in, const PiecesOf<T>& at, int64_t head, int64_t first, int64_t count, int64_t width) {
  typedef typename Compute<T>::Real Real;
  const T* from[kKeys];
  for (int64_t j = 0; j < count; j += kKeys) {
    const int64_t keys = std::min(kKeys, count - j);
    rows_of(in, static_cast<const T*>(in.k), in.k_stride, head, first + j, keys, from);
    pack_rows<T>(from, keys, in.dim, width, Real(1), at.k + j * width);
    rows_of(in, static_cast<const T*>(in.v), in.v_stride, head, first + j, keys, from);
    pack_rows<T>(from, keys, in.dim, width, Real(1), at.v + j * width);
  }
}

template <typename T>
FUSION3D_INLINE void unpack_keys(
    const WindowBackward& args, const PiecesOf<T>& at, int64_t head, int64_t first, int64_t count, int64_t width) {
  const WindowInput& in = args.in;
  T* to[kKeys];
  for (int64_t j = 0; j < count; j += kKeys) {
    const int64_t keys = std::min(kKeys, count - j);
    rows_of(in, static_cast<T*>(args.grad_k), in.heads * in.dim, head, first + j, keys, to);
    unpack_rows<T>(at.grad_k + j * width, keys, in.dim, width, to);
    rows_of(in, static_cast<T*>(args.grad_v), in.heads * in.dim, head, first + j, keys, to);
    unpack_rows<T>(at.grad_v + j * width, keys, in.dim, width, to);
  }
}

template <typename T>
FUSION3D_INLINE void unattend(const WindowWork<WindowBackward>& work, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kRow = kTile<T>;
  const WindowInput& in = work.args.in;
  const int64_t dim = in.dim, width = padded_width(dim, kLanes<T>);
  WindowScratch<Real> scratch(Pieces<Real>::size(dim, width));
  const Pieces<Real> at(scratch, dim, width);
  T* to[kRow];
  for (int64_t item = first; item < last; ++item) {
    const WindowTask& task = work.tasks[item / in.heads];
    const int64_t head = item % in.heads;
    // The keys that are met: those that are owned, or all; the queries likewise. What is owned is at most kWhole long.
    const int64_t key_begin = task.keys ? task.first : task.begin, key_end = task.keys ? task.last : task.end;
    const int64_t query_begin = task.queries ? task.first : task.begin;
    const int64_t query_end = task.queries ? task.last : task.end;
    if (task.keys) {
      pack_keys<T>(in, at, head, key_begin, key_end - key_begin, width);
      std::fill_n(at.grad_k, (key_end - key_begin) * width, Real(0));
      std::fill_n(at.grad_v, (key_end - key_begin) * width, Real(0));
    }
    for (int64_t i = query_begin; i < query_end; i += kRow) {
      const int64_t count = std::min(kRow, query_end - i);
      pack_queries<T>(work.args, at, head, i, count, width);
      std::fill_n(at.grad_q, dim * kRow, Real(0));
      for (int64_t j = key_begin; j < key_end; j += kKeys) {
        const int64_t keys = std::min(kKeys, key_end - j), key = task.keys ? j - key_begin : 0;
        if (!task.keys) pack_keys<T>(in, at, head, j, keys, width);
        run_unmeet<Real>({at, task, dim, width, key}, keys, count);
      }
      if (!task.queries) continue;
      std::fill_n(at.factor, kRow, Real(in.scale));
      rows_of(in, static_cast<T*>(work.args.grad_q), in.heads * dim, head, i, count, to);
      unpack_columns<T>(at.grad_q, at.factor, count, dim, to);
    }
    if (task.keys) unpack_keys<T>(work.args, at, head, key_begin, key_end - key_begin, width);
  }
}

FUSION3D_DISPATCH(run_backward, WindowWork<WindowBackward>, unattend)

}  // namespace

void window_attention_backward_cpu(const WindowBackward& args, const ParallelFor& parallel) {
  std::vector<WindowTask> tasks;
  for (int64_t w = 0; w < args.in.windows; ++w) {
    const int64_t begin = args.in.cu_seqlens[w], end = args.in.cu_seqlens[w + 1];
    const bool whole = end - begin <= kWhole;
    split_window(tasks, begin, end, whole ? kWhole : kQueries, true, whole);
    if (!whole) split_window(tasks, begin, end, kQueries, false, true);
  }
  share_tasks(args, tasks, parallel, [](auto zero, const WindowWork<WindowBackward>& work, int64_t first, int64_t last) {
    run_backward<decltype(zero)>(work, first, last);
  });
}

}  // namespace fusion3d
