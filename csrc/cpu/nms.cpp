// Suppression on the CPU. Boxes are laid out by label and cell of a grid, so that what is near a box of one label lies in a few
// runs of memory; each box that is kept then strikes out the worse ones near it. It is sequential and costs about O(N).
#include "fusion3d/nms.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "rectangles.h"
#include "sort.h"

namespace fusion3d {
namespace {

constexpr double kLarge = 4;  // boxes of more than this many mean radii lie apart, lest all cells be searched for them
constexpr int64_t kMostCells = 64;  // along each side of the grid

// What all boxes are, in order of their scores; boxes that are none are left out.
struct Candidates {
  explicit Candidates(int64_t count) : boxes(count), group(count) {}

  std::vector<int32_t> index;  // in the input
  Rectangles boxes;            // circle: x, y, and half the threshold as radius
  std::vector<int32_t> group;  // labels, numbered
  std::vector<double> threshold;  // of each group
};

// Numbers the labels; those of a narrow range, as classes are, by a table.
void number_labels(const Nms& args, Candidates& all) {
  int64_t low = std::numeric_limits<int64_t>::max(), high = -1;
  for (const int32_t i : all.index) {
    low = std::min(low, args.labels[i]);
    high = std::max(high, args.labels[i]);
  }
  const int64_t count = int64_t(all.index.size());
  std::vector<int64_t> known;
  std::vector<int32_t> number;
  const bool narrow = high < low || high - low < 4 * count + 1024;
  if (narrow) {
    number.assign(high < low ? 0 : high - low + 1, -1);
  } else {
    for (const int32_t i : all.index) known.push_back(args.labels[i]);
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    number.assign(known.size(), -1);
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t label = args.labels[all.index[k]];
    int32_t& group = number[narrow ? label - low : std::lower_bound(known.begin(), known.end(), label) - known.begin()];
    if (group < 0) {
      group = int32_t(all.threshold.size());
      all.threshold.push_back(nms_threshold(args, label));
    }
    all.group[k] = group;
  }
}

template <typename Score>
void order_by_score(const Nms& args, std::vector<int32_t>& index) {
  typedef decltype(nms_key(typename Compute<Score>::Real())) Key;
  typedef std::conditional_t<sizeof(Key) == 4, NarrowRecord, WideRecord> Record;
  std::vector<int32_t> known;
  known.reserve(args.count);
  for (int64_t i = 0; i < args.count; ++i) {
    const double threshold = nms_threshold(args, args.labels[i]);
    if (threshold == threshold) known.push_back(int32_t(i));
  }
  const auto here = [](int64_t begin, int64_t end, int64_t, const Range& range) { range(begin, end); };
  const auto key_of = [&](int64_t k) { return nms_key(load_one(static_cast<const Score*>(args.scores) + known[k])); };
  const int64_t count = int64_t(known.size());
  std::vector<Record> records(2 * count);
  const Record* sorted = records.data() + count;
  sort_rows(here, count, Key(~Key(0)), key_of, records.data(), records.data() + count);
  index.resize(count);
  for (int64_t k = 0; k < count; ++k) index[k] = known[sorted[k].row()];
}

template <typename T>
void load_boxes(const Nms& args, Candidates& all) {
  for (size_t k = 0; k < all.index.size(); ++k) {
    const T* row = static_cast<const T*>(args.boxes) + 5 * int64_t(all.index[k]);
    if (args.metric == NmsMetric::kCircle) {
      const double x = load_one(row), y = load_one(row + 1);
      const bool finite = is_finite(x) && is_finite(y);
      all.boxes.set(k, {finite ? x : NAN, y, 0, 0, 1, 0}, all.threshold[all.group[k]] / 2);
    } else {
      const Rectangle r = load_rectangle(row, args.metric == NmsMetric::kAxis);
      all.boxes.set(k, r, radius_of(r));
    }
  }
}

// Where the boxes of each label and cell lie. After the cells of a label comes one more, for its large boxes.
struct Grid {
  explicit Grid(const Candidates& all) : cell(all.index.size()), slot(all.index.size()), limit(all.threshold.size()) {
    const int64_t count = int64_t(all.index.size()), groups = int64_t(all.threshold.size());
    const double* x = all.boxes.x;
    const double* y = all.boxes.y;
    double x1 = -1e300, y1 = -1e300;
    x0 = y0 = 1e300;
    std::vector<int64_t> members(groups);
    for (int64_t k = 0; k < count; ++k) {
      if (!(x[k] == x[k])) continue;
      x0 = std::min(x0, x[k]), x1 = std::max(x1, x[k]);
      y0 = std::min(y0, y[k]), y1 = std::max(y1, y[k]);
      ++members[all.group[k]];
      limit[all.group[k]] += all.boxes.radius[k];
    }
    for (int64_t g = 0; g < groups; ++g) limit[g] *= kLarge / double(std::max<int64_t>(members[g], 1));
    side = std::min(std::max<int64_t>(int64_t(std::sqrt(double(count) / double(std::max<int64_t>(groups, 1)))), 1), kMostCells);
    per_x = x1 > x0 ? double(side) / (x1 - x0) : 0;
    per_y = y1 > y0 ? double(side) / (y1 - y0) : 0;
    start.assign(groups * (side * side + 1) + 1, 0);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t first = all.group[k] * (side * side + 1);
      const bool large = all.boxes.radius[k] > limit[all.group[k]];
      cell[k] = int32_t(first + (large ? side * side : place(y[k], y0, per_y) * side + place(x[k], x0, per_x)));
      ++start[cell[k] + 1];
    }
    for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
    std::vector<int32_t> next(start.begin(), start.end() - 1);
    for (int64_t k = 0; k < count; ++k) slot[k] = next[cell[k]]++;
  }

  // Row or column, and 0 for NaN. It never falls as v grows, so what lies between two places lies between their cells.
  int64_t place(double v, double low, double per) const {
    return int64_t(std::min(std::max(0.0, (v - low) * per), double(side - 1)));
  }

  double x0, y0, per_x, per_y;
  int64_t side;
  std::vector<int32_t> cell, slot;  // of each candidate
  std::vector<int32_t> start;       // of each cell, among the slots
  std::vector<double> limit;        // of each group: larger radii are large
};

struct Search {
  const Grid& grid;
  Rectangles& boxes;     // by slot; x becomes NaN when a box is struck out or kept
  std::vector<int32_t> near;
  std::vector<double> iou;
};

// Strikes out what is too close to the box among the slots [begin, end).
template <bool circle>
FUSION3D_INLINE void strike_run(
    Search& search, int64_t begin, int64_t end, const Rectangle& box, double radius, double threshold) {
  const int64_t count = find_near(search.boxes, begin, end, box.x, box.y, radius, search.near.data());
  if (circle) {
    for (int64_t n = 0; n < count; ++n) search.boxes.x[search.near[n]] = NAN;
    return;
  }
  find_iou(search.boxes, box, search.near.data(), count, search.iou.data());
  for (int64_t n = 0; n < count; ++n)
    if (search.iou[n] > threshold) search.boxes.x[search.near[n]] = NAN;
}

template <bool circle>
FUSION3D_INLINE void strike(Search& search, const Rectangle& box, double radius, int64_t group, double threshold) {
  const Grid& grid = search.grid;
  const int64_t first = group * (grid.side * grid.side + 1), large = first + grid.side * grid.side;
  if (grid.start[large] < grid.start[large + 1])
    strike_run<circle>(search, grid.start[large], grid.start[large + 1], box, radius, threshold);
  // A little more than exact, so that rounding loses none.
  const double reach = (radius + grid.limit[group]) * (1 + 1e-9);
  const double slack_x = reach + std::fabs(box.x) * 1e-9, slack_y = reach + std::fabs(box.y) * 1e-9;
  const int64_t left = grid.place(box.x - slack_x, grid.x0, grid.per_x);
  const int64_t right = grid.place(box.x + slack_x, grid.x0, grid.per_x);
  const int64_t bottom = grid.place(box.y - slack_y, grid.y0, grid.per_y);
  const int64_t top = grid.place(box.y + slack_y, grid.y0, grid.per_y);
  for (int64_t row = bottom; row <= top; ++row) {
    const int64_t cells = first + row * grid.side;
    const int64_t begin = grid.start[cells + left], end = grid.start[cells + right + 1];
    if (begin < end) strike_run<circle>(search, begin, end, box, radius, threshold);
  }
}

typedef void Strike(Search& search, const Rectangle& box, double radius, int64_t group, double threshold);

template <bool circle>
void strike_baseline(Search& search, const Rectangle& box, double radius, int64_t group, double threshold) {
  strike<circle>(search, box, radius, group, threshold);
}
#ifdef FUSION3D_AVX2
template <bool circle>
FUSION3D_AVX2 void strike_avx2(Search& search, const Rectangle& box, double radius, int64_t group, double threshold) {
  strike<circle>(search, box, radius, group, threshold);
}
#endif

Strike* choose_strike(bool circle) {
#ifdef FUSION3D_AVX2
  if (has_avx2()) return circle ? strike_avx2<true> : strike_avx2<false>;
#endif
  return circle ? strike_baseline<true> : strike_baseline<false>;
}

}  // namespace

void nms_cpu(const Nms& args) {
  std::fill(args.keep, args.keep + args.max_out, -1);
  Candidates all(args.count);
  for_dtype(args.score_dtype, [&](auto zero) { order_by_score<decltype(zero)>(args, all.index); });
  number_labels(args, all);
  for_dtype(args.dtype, [&](auto zero) { load_boxes<decltype(zero)>(args, all); });
  const Grid grid(all);
  const int64_t count = int64_t(all.index.size());
  Rectangles by_slot(count);
  for (int64_t k = 0; k < count; ++k) by_slot.set(grid.slot[k], all.boxes.get(k), all.boxes.radius[k]);
  Search search = {grid, by_slot, std::vector<int32_t>(count + 16), std::vector<double>(count + 16)};
  Strike* const run = choose_strike(args.metric == NmsMetric::kCircle);
  int64_t kept = 0;
  for (int64_t k = 0; k < count && kept < args.max_out; ++k) {
    const Rectangle box = all.boxes.get(k);
    if (exists(box)) {
      double& alive = by_slot.x[grid.slot[k]];
      if (!(alive == alive)) continue;
      alive = NAN;
      run(search, box, all.boxes.radius[k], all.group[k], all.threshold[all.group[k]]);
    }
    args.keep[kept++] = all.index[k];
  }
  *args.num_keep = kept;
}

}  // namespace fusion3d
