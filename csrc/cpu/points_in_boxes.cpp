// Points in boxes on the CPU. A grid seen from above says which boxes reach into each cell; most cells have none, and most
// points are done when their cell is known.
#include "fusion3d/points_in_boxes.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "vector.h"

namespace fusion3d {
namespace {

constexpr int64_t kSide = 128;   // cells along each side of the grid
constexpr int64_t kParts = 64;   // of the points; each counts for itself
constexpr int64_t kPartPoints = 4096;  // fewest points worth a part
constexpr int64_t kMostListed = 1 << 24;  // in all cells; boxes that cover one another more than that share one cell

struct Grid {
  float x0 = INFINITY, y0 = INFINITY, x1 = -INFINITY, y1 = -INFINITY;  // around all boxes, a little more than exact
  float per_x = 0, per_y = 0;
  std::vector<Cuboid> boxes;
  std::vector<int32_t> start = std::vector<int32_t>(kSide * kSide + 1), list;  // the boxes of each cell, ascending

  // It never falls as v grows, so a point of a box lies in a cell between those of the box's ends.
  static int64_t place(float v, float low, float per) {
    const float at = (v - low) * per;
    return at > 0 ? (at < float(kSide - 1) ? int64_t(at) : kSide - 1) : 0;
  }
};

struct Extent {
  float x0, y0, x1, y1;
};

// The box's extent, rounded outwards; empty (x0 > x1) where nothing can be inside.
Extent extent_of(const Cuboid& b) {
  const bool placed = b.x == b.x && b.y == b.y && b.cos == b.cos;
  if (!(placed && b.half_length >= 0 && b.half_width >= 0 && b.half_height >= 0)) return {1, 1, 0, 0};
  const double rx = std::fabs(b.cos) * b.half_length + std::fabs(b.sin) * b.half_width;
  const double ry = std::fabs(b.sin) * b.half_length + std::fabs(b.cos) * b.half_width;
  if (!(std::fabs(b.x) + std::fabs(b.y) + rx + ry < 1e30)) return {-INFINITY, -INFINITY, INFINITY, INFINITY};
  const double more = 1e-6 * (std::fabs(b.x) + std::fabs(b.y) + rx + ry) + 1e-30;
  return {float(b.x - rx - more), float(b.y - ry - more), float(b.x + rx + more), float(b.y + ry + more)};
}

template <typename T>
void build(const PointsInBoxes& args, Grid& grid) {
  std::vector<Extent> extents(args.num_boxes);
  grid.boxes.resize(args.num_boxes);
  for (int64_t i = 0; i < args.num_boxes; ++i) {
    double v[7];
    for (int n = 0; n < 7; ++n) v[n] = load_one(static_cast<const T*>(args.boxes) + 7 * i + n);
    grid.boxes[i] = cuboid_of(v[0], v[1], v[2], v[3], v[4], v[5], v[6], args.margin);
    const Extent e = extents[i] = extent_of(grid.boxes[i]);
    if (e.x0 > e.x1) continue;
    grid.x0 = std::min(grid.x0, e.x0), grid.x1 = std::max(grid.x1, e.x1);
    grid.y0 = std::min(grid.y0, e.y0), grid.y1 = std::max(grid.y1, e.y1);
  }
  if (grid.x0 > grid.x1) return;
  grid.per_x = float(kSide / std::max(double(grid.x1) - grid.x0, 1e-30));
  grid.per_y = float(kSide / std::max(double(grid.y1) - grid.y0, 1e-30));
  const auto each_row = [&](int64_t i, const auto& visit) {  // visit(first cell, number of cells)
    const Extent& e = extents[i];
    if (e.x0 > e.x1) return;
    const int64_t left = Grid::place(e.x0, grid.x0, grid.per_x), right = Grid::place(e.x1, grid.x0, grid.per_x);
    const int64_t low = Grid::place(e.y0, grid.y0, grid.per_y), high = Grid::place(e.y1, grid.y0, grid.per_y);
    for (int64_t row = low; row <= high; ++row) visit(row * kSide + left, right - left + 1);
  };
  const auto each_cell = [&](int64_t i, const auto& visit) {
    each_row(i, [&](int64_t first, int64_t cells) {
      for (int64_t cell = first; cell < first + cells; ++cell) visit(cell);
    });
  };
  int64_t listed = 0;
  for (int64_t i = 0; i < args.num_boxes; ++i) each_row(i, [&](int64_t, int64_t cells) { listed += cells; });
  if (listed > kMostListed) grid.per_x = grid.per_y = 0;
  for (int64_t i = 0; i < args.num_boxes; ++i) each_cell(i, [&](int64_t cell) { ++grid.start[cell + 1]; });
  for (int64_t cell = 0; cell < kSide * kSide; ++cell) grid.start[cell + 1] += grid.start[cell];
  grid.list.resize(grid.start.back());
  std::vector<int32_t> next(grid.start.begin(), grid.start.end() - 1);
  for (int64_t i = 0; i < args.num_boxes; ++i)
    each_cell(i, [&](int64_t cell) { grid.list[next[cell]++] = int32_t(i); });
}

// Points [begin, end), whose counts are added to `count`.
template <typename T>
void assign(const PointsInBoxes& args, const Grid& grid, int64_t begin, int64_t end, int64_t* count) {
  const T* points = static_cast<const T*>(args.points);
  for (int64_t p = begin; p < end; ++p) {
    const T* row = points + p * args.stride;
    int64_t found = -1;
    const float x = float(load_one(row)), y = float(load_one(row + 1));
    if (x >= grid.x0 && x <= grid.x1 && y >= grid.y0 && y <= grid.y1) {  // a NaN is nowhere
      const int64_t cell = Grid::place(y, grid.y0, grid.per_y) * kSide + Grid::place(x, grid.x0, grid.per_x);
      for (int32_t at = grid.start[cell]; at < grid.start[cell + 1]; ++at) {
        const int32_t i = grid.list[at];
        if (args.point_batch && args.point_batch[p] != args.box_batch[i]) continue;
        if (!holds(grid.boxes[i], load_one(row), load_one(row + 1), load_one(row + 2))) continue;
        ++count[i];
        if (found < 0) found = i;
      }
    }
    args.box[p] = found;
  }
}

template <typename T>
void run(const PointsInBoxes& args, const ParallelFor& parallel) {
  Grid grid;
  build<T>(args, grid);
  const int64_t parts = std::min(std::max<int64_t>(args.num_points / kPartPoints, 1), kParts);
  std::vector<int64_t> counts(parts * args.num_boxes);
  parallel(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      assign<T>(
          args, grid, args.num_points * part / parts, args.num_points * (part + 1) / parts,
          counts.data() + part * args.num_boxes);
  });
  std::fill(args.count, args.count + args.num_boxes, 0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < args.num_boxes; ++i) args.count[i] += counts[part * args.num_boxes + i];
}

}  // namespace

void points_in_boxes_cpu(const PointsInBoxes& args, const ParallelFor& parallel) {
  for_dtype(args.dtype, [&](auto zero) { run<decltype(zero)>(args, parallel); });
}

}  // namespace fusion3d
