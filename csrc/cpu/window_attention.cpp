// Window attention on the CPU, forward. Queries lie in the lanes of the vectors, keys and channels are walked: largest
// scores and sums are then taken lane by lane, and every product reads its other factor one scalar at a time. A tile of
// queries meets its window a tile of keys after the other, keeping the running maximum and sum of its softmax (Dao et
// al., "FlashAttention", 2022).
#include <cmath>
#include <limits>

#include "window_tasks.h"

namespace fusion3d {
namespace {

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
FUSION3D_INLINE void attend(const WindowWork<WindowForward>& work, int64_t first, int64_t last) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kRow = kTile<T>, kTiles = (kQueries + kRow - 1) / kRow;
  const WindowInput& in = work.args.in;
  const int64_t dim = in.dim, width = padded_width(dim, kLanes<T>);
  WindowScratch<Real> scratch(kTiles * kRow * (2 * dim + 2) + 2 * kKeys * width + kKeys * kRow + kRow);
  Queries<Real> tiles[kTiles];
  for (auto& tile : tiles)
    tile = {scratch.take(dim * kRow), scratch.take(dim * kRow), scratch.take(kRow), scratch.take(kRow)};
  Real *k = scratch.take(kKeys * width), *v = scratch.take(kKeys * width), *score = scratch.take(kKeys * kRow);
  Real* factor = scratch.take(kRow);
  const T* from[kKeys];
  T* to[kRow];
  for (int64_t item = first; item < last; ++item) {
    const WindowTask& task = work.tasks[item / in.heads];
    const int64_t head = item % in.heads, queries = task.last - task.first;
    for (int64_t t = 0, i = 0; i < queries; ++t, i += kRow) {
      const int64_t count = std::min(kRow, queries - i);
      rows_of(in, static_cast<const T*>(in.q), in.q_stride, head, task.first + i, count, from);
      pack_columns<T>(from, count, dim, Real(in.scale * kLog2e), tiles[t].q);
      std::fill_n(tiles[t].out, dim * kRow, Real(0));
      std::fill_n(tiles[t].peak, kRow, -std::numeric_limits<Real>::infinity());
      std::fill_n(tiles[t].total, kRow, Real(0));
    }
    for (int64_t j = task.begin; j < task.end; j += kKeys) {
      const int64_t keys = std::min(kKeys, task.end - j);
      rows_of(in, static_cast<const T*>(in.k), in.k_stride, head, j, keys, from);
      pack_rows<T>(from, keys, dim, width, Real(1), k);
      rows_of(in, static_cast<const T*>(in.v), in.v_stride, head, j, keys, from);
      pack_rows<T>(from, keys, dim, width, Real(1), v);
      for (int64_t t = 0, i = 0; i < queries; ++t, i += kRow)
        run_meet<Real>({tiles[t], dim, width, k, v, score}, keys, std::min(kRow, queries - i));
    }
    for (int64_t t = 0, i = 0; i < queries; ++t, i += kRow) {
      const int64_t count = std::min(kRow, queries - i);
      for (int64_t n = 0; n < count; ++n) factor[n] = 1 / tiles[t].total[n];
      rows_of(in, static_cast<T*>(work.args.out), in.heads * dim, head, task.first + i, count, to);
      unpack_columns<T>(tiles[t].out, factor, count, dim, to);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t place = task.first + i + n, row = in.order ? in.order[place] : place;
        static_cast<Real*>(work.args.lse)[row * in.heads + head] =
            tiles[t].peak[n] * Real(kLn2) + std::log(tiles[t].total[n]);
      }
    }
  }
}

FUSION3D_DISPATCH(run_forward, WindowWork<WindowForward>, attend)

}  // namespace

void window_attention_forward_cpu(const WindowForward& args, const ParallelFor& parallel) {
  std::vector<WindowTask> tasks;
  for (int64_t w = 0; w < args.in.windows; ++w)
    split_window(tasks, args.in.cu_seqlens[w], args.in.cu_seqlens[w + 1], kQueries, true, false);
  share_tasks(args, tasks, parallel, [](auto zero, const WindowWork<WindowForward>& work, int64_t first, int64_t last) {
    run_forward<decltype(zero)>(work, first, last);
  });
}

}  // namespace fusion3d
