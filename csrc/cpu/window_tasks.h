// What the forward and the backward pass of window attention on the CPU share: tasks, how they are shared out, and where
// rows lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dispatch.h"
#include "exponential.h"
#include "fusion3d/window_attention.h"
#include "lines.h"
#include "tile.h"
#include "vector.h"

namespace fusion3d {

constexpr int64_t kKeys = 64;       // keys of a tile
constexpr int64_t kQueries = 96;    // queries of a task that owns queries only: it packs every tile of keys once
constexpr int64_t kTaskCost = 512;  // of a task beside its pairs of query and key, in pairs
constexpr int64_t kPartCost = 1 << 13;  // least pairs worth a part
constexpr int64_t kParts = 256;
constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// What is owned by one worker, for each head: the results of places [first, last) of the window [begin, end).
struct WindowTask {
  int64_t begin, end, first, last;
  bool queries, keys;  // backward: gradients to q, and to k and v
};

template <typename Args>
struct WindowWork {
  const Args& args;
  const std::vector<WindowTask>& tasks;
};

// Memory of one worker, zero at first, from the beginning of a cache line on.
template <typename Real>
class WindowScratch {
 public:
  explicit WindowScratch(int64_t size) : memory_(size), next_(memory_.data()) {}
  Real* take(int64_t size) {
    Real* taken = next_;
    next_ += size;
    return taken;
  }

 private:
  Lines<Real> memory_;
  Real* next_;
};

// Where one head's part of the rows of some places begins.
template <typename T>
FUSION3D_INLINE void rows_of(
    const WindowInput& in, T* base, int64_t stride, int64_t head, int64_t first, int64_t count, T** rows) {
  base += head * in.dim;
  for (int64_t i = 0; i < count; ++i) rows[i] = base + (in.order ? in.order[first + i] : first + i) * stride;
}

inline int64_t padded_width(int64_t dim, int64_t lanes) { return (dim + lanes - 1) / lanes * lanes; }

// Shares the tasks of all heads out, in parts of about equal work. Any sharing gives the same bits.
template <typename Args, typename Run>
void share_tasks(const Args& args, const std::vector<WindowTask>& tasks, const ParallelFor& parallel, const Run& run) {
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
  const WindowWork<Args> work = {args, tasks};
  parallel(0, parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin == 0 ? 0 : bound(begin);
    const int64_t last = end == parts ? int64_t(tasks.size()) * heads : bound(end);
    for_dtype(args.in.dtype, [&](auto zero) { run(zero, work, first, last); });
  });
}

// Tasks that own up to `size` places of a window each.
inline void split_window(std::vector<WindowTask>& tasks, int64_t begin, int64_t end, int64_t size, bool queries, bool keys) {
  for (int64_t first = begin; first < end; first += size)
    tasks.push_back({begin, end, first, std::min(first + size, end), queries, keys});
}

}  // namespace fusion3d
