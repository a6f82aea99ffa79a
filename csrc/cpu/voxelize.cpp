// Voxelization on the CPU. Points are dealt to lists by a hash of their voxel, so that each list's hash table stays in the
// cache and has one owner; a voxel's number is how many voxels were first met before it, which is a prefix sum over points.
#include "fusion3d/voxelize.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "sort.h"
#include "vector.h"

namespace fusion3d {
namespace {

constexpr int64_t kBlock = 256;        // points whose cells are computed at once
constexpr int64_t kPieceRows = 8192;   // most points of a piece
constexpr int64_t kListRows = 2048;    // points of a list, about
constexpr int64_t kMostLists = 256;    // of a sample
constexpr int64_t kAhead = 12;         // points whose features are fetched ahead
constexpr uint32_t kNone = 0xffffffffu;

// Memory that is written before it is read.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// Consecutive points of one sample.
struct Piece {
  int64_t begin, end, sample;
};

// A point in its list. First `key` is its cell, then the number of its voxel in the list.
struct Entry {
  uint32_t key, row;
};

// A voxel of a list.
struct Found {
  uint32_t cell, first;  // its first point
};

struct State {
  int64_t lists;  // of each sample, a power of two
  int shift;      // that leaves the list of a hash
  std::vector<Piece> pieces;
  std::vector<int64_t> sample_piece;     // [B + 1] first piece of each sample
  std::vector<uint32_t> places;          // [pieces, lists] where the piece's next entry of each list goes
  std::vector<int64_t> list_begin;       // [B * lists + 1]
  std::vector<int64_t> list_found;       // [B * lists] voxels of each list
  std::unique_ptr<uint32_t[]> cell;      // [P], kNone outside
  std::unique_ptr<Entry[]> entries;      // [P]
  std::unique_ptr<Found[]> found;        // [P] the voxels of each list, from where its entries begin
  std::unique_ptr<uint8_t[]> is_first;   // [P] the point is the first of its voxel
  std::unique_ptr<int32_t[]> number;     // [P] of the voxel whose first point it is, -1 where it is not kept
};

// What the worker that is compiled twice gets.
struct CellPass {
  const Voxelize* args;
  uint32_t* cell;
};

FUSION3D_INLINE uint32_t hash_of(uint32_t cell) { return cell * 2654435769u; }

FUSION3D_INLINE void cells_of_block(const VoxelGrid& grid, const float* x, const float* y, const float* z, uint32_t* out) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const float tx = (x[i] - grid.low[0]) / grid.size[0], ty = (y[i] - grid.low[1]) / grid.size[1],
                tz = (z[i] - grid.low[2]) / grid.size[2];
    // As cell_of, without branches.
    const int32_t inside = -int32_t(
        (tx >= 0) & (tx < float(grid.cells[0])) & (ty >= 0) & (ty < float(grid.cells[1])) & (tz >= 0) &
        (tz < float(grid.cells[2])));
    const auto whole = [&](float t) { return bit_cast<float>(bit_cast<int32_t>(t) & inside); };
    const uint32_t cell =
        (uint32_t(int32_t(whole(tz))) * uint32_t(grid.cells[1]) + uint32_t(int32_t(whole(ty)))) *
            uint32_t(grid.cells[0]) +
        uint32_t(int32_t(whole(tx)));
    out[i] = cell | ~uint32_t(inside);
  }
}

template <typename T>
FUSION3D_INLINE void fill_cells(const CellPass& pass, int64_t begin, int64_t end) {
  const Voxelize& args = *pass.args;
  float x[kBlock] = {}, y[kBlock] = {}, z[kBlock] = {};
  uint32_t cell[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    const T* p = static_cast<const T*>(args.points) + first * args.stride;
    for (int64_t i = 0; i < count; ++i, p += args.stride) {
      x[i] = float(load_one(p));
      y[i] = float(load_one(p + 1));
      z[i] = float(load_one(p + 2));
    }
    cells_of_block(args.grid, x, y, z, cell);
    std::copy(cell, cell + count, pass.cell + first);
  }
}

FUSION3D_DISPATCH(run_cells, CellPass, fill_cells)

void make_pieces(const Voxelize& args, State& state) {
  state.sample_piece.push_back(0);
  for (int64_t b = 0; b < args.samples; ++b) {
    const int64_t begin = args.batch_ptr ? args.batch_ptr[b] : 0, end = args.batch_ptr ? args.batch_ptr[b + 1] : args.rows;
    for (int64_t first = begin; first < end; first += kPieceRows)
      state.pieces.push_back({first, std::min(first + kPieceRows, end), b});
    state.sample_piece.push_back(int64_t(state.pieces.size()));
  }
  const int64_t wanted = args.rows / std::max<int64_t>(args.samples, 1) / kListRows;
  int bits = 0;
  while ((int64_t(1) << bits) < std::min(wanted, kMostLists)) ++bits;
  state.lists = int64_t(1) << bits;
  state.shift = 32 - bits;
}

// Runs work(i) for i in [0, count), side by side.
template <typename Work>
void side_by_side(const ParallelFor& parallel_for, int64_t count, const Work& work) {
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

int64_t list_of(const State& state, uint32_t cell) { return uint64_t(hash_of(cell)) >> state.shift; }

// Points to lists, in their order; those outside are done with.
void deal(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t lists = state.lists, pieces = int64_t(state.pieces.size());
  state.cell = scratch<uint32_t>(args.rows);
  state.places.assign(pieces * lists, 0);
  side_by_side(parallel_for, pieces, [&](int64_t p) {
    const Piece piece = state.pieces[p];
    const CellPass pass = {&args, state.cell.get()};
    for_dtype(args.dtype, [&](auto zero) { run_cells<decltype(zero)>(pass, piece.begin, piece.end); });
    uint32_t* count = state.places.data() + p * lists;
    for (int64_t i = piece.begin; i < piece.end; ++i)
      if (state.cell[i] != kNone) ++count[list_of(state, state.cell[i])];
  });
  state.list_begin.assign(args.samples * lists + 1, 0);
  int64_t place = 0;
  for (int64_t b = 0; b < args.samples; ++b)
    for (int64_t list = 0; list < lists; ++list) {
      state.list_begin[b * lists + list] = place;
      for (int64_t p = state.sample_piece[b]; p < state.sample_piece[b + 1]; ++p) {
        const uint32_t count = state.places[p * lists + list];
        state.places[p * lists + list] = uint32_t(place);
        place += count;
      }
    }
  state.list_begin.back() = place;
  state.entries = scratch<Entry>(place);
  side_by_side(parallel_for, pieces, [&](int64_t p) {
    const Piece piece = state.pieces[p];
    uint32_t* next = state.places.data() + p * lists;
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      const uint32_t cell = state.cell[i];
      if (cell != kNone)
        state.entries[next[list_of(state, cell)]++] = {cell, uint32_t(i)};
      else
        args.voxel[i] = args.rank[i] = -1;
    }
  });
}

// The voxels of a list, numbered as they are met; entries get the number instead of the cell.
int64_t find_voxels(State& state, int64_t list, std::vector<Entry>& table) {
  const int64_t begin = state.list_begin[list], end = state.list_begin[list + 1];
  int bits = 4;
  while ((int64_t(1) << bits) < 2 * (end - begin)) ++bits;
  const uint32_t mask = uint32_t((uint64_t(1) << bits) - 1);
  table.assign(size_t(1) << bits, {kNone, 0});  // cell and number
  Found* found = state.found.get() + begin;
  uint32_t count = 0;
  for (int64_t e = begin; e < end; ++e) {
    Entry& entry = state.entries[e];
    // The high bits of the hash chose the list; those below them choose the place.
    uint32_t at = uint32_t(uint64_t(hash_of(entry.key)) << (32 - state.shift) >> (32 - std::min(bits, 32))) & mask;
    while (table[at].key != entry.key && table[at].key != kNone) at = (at + 1) & mask;
    if (table[at].key == kNone) {
      table[at] = {entry.key, count};
      found[count++] = {entry.key, entry.row};
      state.is_first[entry.row] = 1;
    }
    entry.key = table[at].row;
  }
  return count;
}

// Numbers of the voxels of all samples, in the order in which they are met.
void number_voxels(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t pieces = int64_t(state.pieces.size());
  std::vector<int64_t> start(pieces);
  side_by_side(parallel_for, pieces, [&](int64_t p) {
    int64_t count = 0;
    for (int64_t i = state.pieces[p].begin; i < state.pieces[p].end; ++i) count += state.is_first[i];
    start[p] = count;
  });
  std::vector<int64_t> offset(args.samples);
  int64_t total = 0;
  for (int64_t b = 0; b < args.samples; ++b) {
    int64_t met = 0;
    for (int64_t p = state.sample_piece[b]; p < state.sample_piece[b + 1]; ++p) {
      const int64_t count = start[p];
      start[p] = met;
      met += count;
    }
    offset[b] = total;
    total += std::min(met, args.max_voxels);
  }
  *args.num_voxels = int32_t(total);
  state.number = scratch<int32_t>(args.rows);
  side_by_side(parallel_for, pieces, [&](int64_t p) {
    int64_t met = start[p];
    const int64_t first = offset[state.pieces[p].sample];
    for (int64_t i = state.pieces[p].begin; i < state.pieces[p].end; ++i) {
      state.number[i] = met < args.max_voxels ? int32_t(first + met) : -1;
      met += state.is_first[i];
    }
  });
}

// Numbers by sample and cell instead.
void renumber(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t total = *args.num_voxels, lists = args.samples * state.lists;
  const uint64_t cells = num_cells(args.grid);
  auto key = scratch<uint64_t>(total);
  const auto each = [&](const auto& visit) {
    side_by_side(parallel_for, lists, [&](int64_t list) {
      const Found* found = state.found.get() + state.list_begin[list];
      for (int64_t v = 0; v < state.list_found[list]; ++v) {
        int32_t& number = state.number[found[v].first];
        if (number >= 0) visit(number, uint64_t(list / state.lists) * cells + found[v].cell);
      }
    });
  };
  each([&](int32_t number, uint64_t cell) { key[number] = cell; });
  auto records = scratch<WideRecord>(2 * total);
  const WideRecord* sorted = sort_rows(
      parallel_for, total, uint64_t(args.samples) * cells, [&](int64_t v) { return key[v]; }, records.get(),
      records.get() + total);
  auto place = scratch<int32_t>(total);
  side_by_side(parallel_for, sort_parts(total), [&](int64_t part) {
    const int64_t parts = sort_parts(total);
    for (int64_t i = total * part / parts; i < total * (part + 1) / parts; ++i) place[sorted[i].row()] = int32_t(i);
  });
  each([&](int32_t& number, uint64_t) { number = place[number]; });
}

// What the pass that writes a list's voxels keeps from list to list, so as not to ask for memory each time.
template <typename Real>
struct Sums {
  std::vector<int32_t> count;
  std::vector<Real> sum;
};

template <typename T, typename Real, int C>
FUSION3D_INLINE void add_row(const T* row, Real* sum, int64_t channels) {
  const int64_t count = C ? C : channels;
  for (int64_t c = 0; c < count; ++c) sum[c] += load_one(row + c);
}

template <typename T, int C>
void write_list(const Voxelize& args, State& state, int64_t list, Sums<typename Compute<T>::Real>& sums) {
  typedef typename Compute<T>::Real Real;
  const int64_t begin = state.list_begin[list], end = state.list_begin[list + 1], found_here = state.list_found[list];
  const int64_t channels = C ? C : args.channels;
  const Found* found = state.found.get() + begin;
  const T* features = static_cast<const T*>(args.features);
  sums.count.assign(found_here, 0);
  if (features) sums.sum.assign(found_here * channels, Real(0));
  for (int64_t e = begin; e < end; ++e) {
    const Entry entry = state.entries[e];
    if (features && e + kAhead < end) __builtin_prefetch(features + state.entries[e + kAhead].row * channels);
    int32_t number = state.number[found[entry.key].first], rank = -1;
    if (number < 0 || sums.count[entry.key] == args.max_points) {
      number = -1;
    } else {
      rank = sums.count[entry.key]++;
      if (features)
        add_row<T, Real, C>(features + entry.row * channels, sums.sum.data() + entry.key * channels, channels);
    }
    args.voxel[entry.row] = number;
    args.rank[entry.row] = rank;
  }
  for (int64_t v = 0; v < found_here; ++v) {
    const int64_t number = state.number[found[v].first];
    if (number < 0) continue;
    write_coords(args.grid, list / state.lists, found[v].cell, args.coords + 4 * number);
    args.counts[number] = sums.count[v];
    if (!features) continue;
    T* mean = static_cast<T*>(args.means) + number * channels;
    for (int64_t c = 0; c < channels; ++c)
      store_one(mean + c, sums.sum[v * channels + c] / Real(std::max(sums.count[v], 1)));
  }
}

template <typename T, int C>
void write_voxels(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  parallel_for(0, args.samples * state.lists, 1, [&](int64_t begin, int64_t end) {
    Sums<typename Compute<T>::Real> sums;
    for (int64_t list = begin; list < end; ++list) write_list<T, C>(args, state, list, sums);
  });
  const int64_t total = *args.num_voxels;
  std::fill(args.coords + 4 * total, args.coords + 4 * args.capacity, -1);
  std::fill(args.counts + total, args.counts + args.capacity, 0);
  if (args.features)
    std::memset(
        static_cast<void*>(static_cast<T*>(args.means) + total * args.channels), 0,
        sizeof(T) * (args.capacity - total) * args.channels);
}

}  // namespace

void voxelize_cpu(const Voxelize& args, const ParallelFor& parallel_for) {
  State state;
  make_pieces(args, state);
  deal(args, parallel_for, state);
  state.found = scratch<Found>(args.rows);
  state.is_first.reset(new uint8_t[args.rows]());
  const int64_t lists = args.samples * state.lists;
  state.list_found.assign(lists, 0);
  parallel_for(0, lists, 1, [&](int64_t begin, int64_t end) {
    std::vector<Entry> table;
    for (int64_t list = begin; list < end; ++list) state.list_found[list] = find_voxels(state, list, table);
  });
  number_voxels(args, parallel_for, state);
  if (args.by_key) renumber(args, parallel_for, state);
  for_dtype(args.features ? args.feature_dtype : Dtype::kFloat32, [&](auto zero) {
    typedef decltype(zero) T;
    if (args.channels == 4)
      write_voxels<T, 4>(args, parallel_for, state);
    else if (args.channels == 5)
      write_voxels<T, 5>(args, parallel_for, state);
    else
      write_voxels<T, 0>(args, parallel_for, state);
  });
}

}  // namespace fusion3d
