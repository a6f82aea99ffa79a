// Window attention on the CPU. Queries lie in the lanes of the vectors, keys and channels are walked: largest scores
// and sums are then taken lane by lane, and every product reads its other factor one scalar at a time. A tile of
// queries meets its window a tile of keys after the other, keeping the running maximum and sum of its softmax (Dao et
// al., "FlashAttention", 2022).
#include "fusion3d/window_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "exponential.h"
#include "tile.h"
#include "vector.h"

namespace fusion3d {
namespace {

constexpr int64_t kKeys = 64;       // keys of a tile
constexpr int64_t kQueries = 96;    // queries of a forward task, which packs every tile of keys once
constexpr int64_t kWhole = 384;     // a window up to here has one backward task; that of a longer one is shared out
constexpr int64_t kTaskCost = 512;  // of a task beside its pairs of query and key, in pairs
constexpr int64_t kPartCost = 1 << 13;  // least pairs worth a part
constexpr int64_t kParts = 256;
constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// What is owned by one worker, for each head: the results of places [first, last) of the window [begin, end).
struct Task {
  int64_t begin, end, first, last;
  bool queries, keys;  // backward: gradients to q, and to k and v
};

template <typename Args>
struct Work {
  const Args& args;
  const std::vector<Task>& tasks;
};

// Memory of one worker, zero at first.
template <typename Real>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(size + kAlign), next_(memory_.data()) {
    next_ += (kAlign - reinterpret_cast<uintptr_t>(next_) / sizeof(Real) % kAlign) % kAlign;
  }
  Real* take(int64_t size) {
    Real* taken = next_;
    next_ += size;
    return taken;
  }

 private:
  static constexpr int64_t kAlign = 64 / sizeof(Real);
  std::vector<Real> memory_;
  Real* next_;
};

// Where one head's part of the rows of some places begins.
template <typename T>
FUSION3D_INLINE void locate(
    const WindowInput& in, T* base, int64_t stride, int64_t head, int64_t first, int64_t count, T** rows) {
  base += head * in.dim;
  for (int64_t i = 0; i < count; ++i) rows[i] = base + (in.order ? in.order[first + i] : first + i) * stride;
}

int64_t padded(int64_t dim, int64_t lanes) { return (dim + lanes - 1) / lanes * lanes; }

// ---- forward

template <typename Real>
struct Queries {
  Real* q;      // [D][tile] times scale * log2(e): softmax is computed with 2^x
  Real* out;    // [D][tile] not yet divided by the sum
  Real* peak;   // [tile] largest score
  Real* total;  // [tile] sum of 2^(score - peak)
};

// A tile of queries and a tile of keys. What is computed with them does not know how tensors are stored.
template <typename Real>
struct Meeting {
  const Queries<Real>& tile;
  int64_t dim, width;
  const Real *k, *v;  // [j][width]
  Real* score;        // [j][tile]
};

template <int N, typename Real>
FUSION3D_INLINE void meet_vectors(const Meeting<Real>& at, int64_t keys) {
  typedef typename Compute<Real>::Vector Vector;
  constexpr int64_t kRow = kTile<Real>, kWide = kLanes<Real>;
  const Queries<Real>& tile = at.tile;
  Real* score = at.score;
  multiply<false, N, Vector>(keys, at.dim, at.k, at.width, int64_t(1), tile.q, kRow, score, kRow);
  Vector old[N], peak[N], total[N], shrink[N];
#pragma GCC unroll 3
  for (int n = 0; n < N; ++n) {
    old[n] = peak[n] = load(tile.peak + n * kWide);
    total[n] = Vector();
  }
  for (int64_t j = 0; j < keys; ++j)
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      const Vector x = load(score + j * kRow + n * kWide);
      peak[n] = x > peak[n] ? x : peak[n];
    }
  for (int64_t j = 0; j < keys; ++j)
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      const Vector p = exp2(load(score + j * kRow + n * kWide) - peak[n]);
      store(score + j * kRow + n * kWide, p);
      total[n] += p;
    }
#pragma GCC unroll 3
  for (int n = 0; n < N; ++n) {
    shrink[n] = exp2(old[n] - peak[n]);
    store(tile.peak + n * kWide, peak[n]);
    store(tile.total + n * kWide, load(tile.total + n * kWide) * shrink[n] + total[n]);
  }
  for (int64_t c = 0; c < at.dim; ++c)
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      Real* out = tile.out + c * kRow + n * kWide;
      store(out, load(out) * shrink[n]);
    }
  multiply<true, N, Vector>(at.dim, keys, at.v, int64_t(1), at.width, score, kRow, tile.out, kRow);
}

template <typename Real>
FUSION3D_INLINE void meet(const Meeting<Real>& at, int64_t keys, int64_t queries) {
  if (queries > 2 * kLanes<Real>) return meet_vectors<3>(at, keys);
  if (queries > kLanes<Real>) return meet_vectors<2>(at, keys);
  return meet_vectors<1>(at, keys);
}

FUSION3D_DISPATCH(run_meet, Meeting<T>, meet)

template <typename T>
FUSION3D_INLINE void attend(const Work<WindowForward>& work, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kRow = kTile<T>, kTiles = (kQueries + kRow - 1) / kRow;
  const WindowInput& in = work.args.in;
  const int64_t dim = in.dim, width = padded(dim, kLanes<T>);
  Scratch<Real> scratch(kTiles * kRow * (2 * dim + 2) + 2 * kKeys * width + kKeys * kRow + kRow);
  Queries<Real> tiles[kTiles];
  for (auto& tile : tiles)
    tile = {scratch.take(dim * kRow), scratch.take(dim * kRow), scratch.take(kRow), scratch.take(kRow)};
  Real *k = scratch.take(kKeys * width), *v = scratch.take(kKeys * width), *score = scratch.take(kKeys * kRow);
  Real* factor = scratch.take(kRow);
  const T* from[kKeys];
  T* to[kRow];
  for (int64_t item = first; item < last; ++item) {
    const Task& task = work.tasks[item / in.heads];
    const int64_t head = item % in.heads, queries = task.last - task.first;
    for (int64_t t = 0, i = 0; i < queries; ++t, i += kRow) {
      const int64_t count = std::min(kRow, queries - i);
      locate(in, static_cast<const T*>(in.q), in.q_stride, head, task.first + i, count, from);
      pack_columns<T>(from, count, dim, Real(in.scale * kLog2e), tiles[t].q);
      std::fill_n(tiles[t].out, dim * kRow, Real(0));
      std::fill_n(tiles[t].peak, kRow, -std::numeric_limits<Real>::infinity());
      std::fill_n(tiles[t].total, kRow, Real(0));
    }
    for (int64_t j = task.begin; j < task.end; j += kKeys) {
      const int64_t keys = std::min(kKeys, task.end - j);
      locate(in, static_cast<const T*>(in.k), in.k_stride, head, j, keys, from);
      pack_rows<T>(from, keys, dim, width, Real(1), k);
      locate(in, static_cast<const T*>(in.v), in.v_stride, head, j, keys, from);
      pack_rows<T>(from, keys, dim, width, Real(1), v);
      for (int64_t t = 0, i = 0; i < queries; ++t, i += kRow)
        run_meet<Real>({tiles[t], dim, width, k, v, score}, keys, std::min(kRow, queries - i));
    }
    for (int64_t t = 0, i = 0; i < queries; ++t, i += kRow) {
      const int64_t count = std::min(kRow, queries - i);
      for (int64_t n = 0; n < count; ++n) factor[n] = 1 / tiles[t].total[n];
      locate(in, static_cast<T*>(work.args.out), in.heads * dim, head, task.first + i, count, to);
      unpack_columns<T>(tiles[t].out, factor, count, dim, to);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t place = task.first + i + n, row = in.order ? in.order[place] : place;
        static_cast<Real*>(work.args.lse)[row * in.heads + head] =
            tiles[t].peak[n] * Real(kLn2) + std::log(tiles[t].total[n]);
      }
    }
  }
}

// ---- backward

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
  Pieces(Scratch<Real>& scratch, int64_t dim, int64_t width) {
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
  const Task& task;
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
  locate(in, static_cast<const T*>(in.q), in.q_stride, head, first, count, from);
  pack_columns<T>(from, count, in.dim, Real(in.scale * kLog2e), at.q_ci);
  pack_rows<T>(from, count, in.dim, width, Real(in.scale), at.q_ic);
  locate(in, static_cast<const T*>(args.grad_out), in.heads * in.dim, head, first, count, from);
  pack_columns<T>(from, count, in.dim, Real(1), at.grad_ci);
  pack_rows<T>(from, count, in.dim, width, Real(1), at.grad_ic);
  locate(in, static_cast<const T*>(args.out), in.heads * in.dim, head, first, count, out);
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
    locate(in, static_cast<const T*>(in.k), in.k_stride, head, first + j, keys, from);
    pack_rows<T>(from, keys, in.dim, width, Real(1), at.k + j * width);
    locate(in, static_cast<const T*>(in.v), in.v_stride, head, first + j, keys, from);
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
    locate(in, static_cast<T*>(args.grad_k), in.heads * in.dim, head, first + j, keys, to);
    unpack_rows<T>(at.grad_k + j * width, keys, in.dim, width, to);
    locate(in, static_cast<T*>(args.grad_v), in.heads * in.dim, head, first + j, keys, to);
    unpack_rows<T>(at.grad_v + j * width, keys, in.dim, width, to);
  }
}

template <typename T>
FUSION3D_INLINE void unattend(const Work<WindowBackward>& work, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kRow = kTile<T>;
  const WindowInput& in = work.args.in;
  const int64_t dim = in.dim, width = padded(dim, kLanes<T>);
  Scratch<Real> scratch(Pieces<Real>::size(dim, width));
  const Pieces<Real> at(scratch, dim, width);
  T* to[kRow];
  for (int64_t item = first; item < last; ++item) {
    const Task& task = work.tasks[item / in.heads];
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
      locate(in, static_cast<T*>(work.args.grad_q), in.heads * dim, head, i, count, to);
      unpack_columns<T>(at.grad_q, at.factor, count, dim, to);
    }
    if (task.keys) unpack_keys<T>(work.args, at, head, key_begin, key_end - key_begin, width);
  }
}

FUSION3D_DISPATCH(run_forward, Work<WindowForward>, attend)
FUSION3D_DISPATCH(run_backward, Work<WindowBackward>, unattend)

// Shares the tasks of all heads out, in parts of about equal work. Any sharing gives the same bits.
template <typename Args, typename Run>
void share(const Args& args, const std::vector<Task>& tasks, const ParallelFor& parallel, const Run& run) {
  if (tasks.empty() || args.in.heads == 0) return;
  std::vector<int64_t> cost(tasks.size() + 1, 0);
  for (size_t t = 0; t < tasks.size(); ++t)
    cost[t + 1] = cost[t] + (tasks[t].last - tasks[t].first) * (tasks[t].end - tasks[t].begin) + kTaskCost;
  const int64_t heads = args.in.heads;
  const int64_t parts = std::clamp(cost.back() / kPartCost * heads, int64_t(1), kParts);
  // Of task t, the heads up to the one that passes the part's share of the whole.
  const auto bound = [&](int64_t part) -> int64_t {
    const double target = double(cost.back()) * double(part) / double(parts);
    const int64_t t = std::upper_bound(cost.begin(), cost.end() - 1, int64_t(target)) - cost.begin() - 1;
    const double share = (target - double(cost[t])) / double(cost[t + 1] - cost[t]);
    return t * heads + std::clamp(int64_t(share * double(heads)), int64_t(0), heads);
  };
  const Work<Args> work = {args, tasks};
  parallel(0, parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin == 0 ? 0 : bound(begin);
    const int64_t last = end == parts ? int64_t(tasks.size()) * heads : bound(end);
    for_dtype(args.in.dtype, [&](auto zero) { run(zero, work, first, last); });
  });
}

// Tasks that own up to `size` places of a window each.
void split(std::vector<Task>& tasks, int64_t begin, int64_t end, int64_t size, bool queries, bool keys) {
  for (int64_t first = begin; first < end; first += size)
    tasks.push_back({begin, end, first, std::min(first + size, end), queries, keys});
}

}  // namespace

void window_attention_forward_cpu(const WindowForward& args, const ParallelFor& parallel) {
  std::vector<Task> tasks;
  for (int64_t w = 0; w < args.in.windows; ++w)
    split(tasks, args.in.cu_seqlens[w], args.in.cu_seqlens[w + 1], kQueries, true, false);
  share(args, tasks, parallel, [](auto zero, const Work<WindowForward>& work, int64_t first, int64_t last) {
    run_forward<decltype(zero)>(work, first, last);
  });
}

void window_attention_backward_cpu(const WindowBackward& args, const ParallelFor& parallel) {
  std::vector<Task> tasks;
  for (int64_t w = 0; w < args.in.windows; ++w) {
    const int64_t begin = args.in.cu_seqlens[w], end = args.in.cu_seqlens[w + 1];
    const bool whole = end - begin <= kWhole;
    split(tasks, begin, end, whole ? kWhole : kQueries, true, whole);
    if (!whole) split(tasks, begin, end, kQueries, false, true);
  }
  share(args, tasks, parallel, [](auto zero, const Work<WindowBackward>& work, int64_t first, int64_t last) {
    run_backward<decltype(zero)>(work, first, last);
  });
}

}  // namespace fusion3d
