// Voxelization on the CPU. Points are dealt to lists by a hash of their voxel, so that each list's hash table stays in the
// cache and has one owner; the features that are averaged go along. Then the lists are read back as they were dealt, in the
// order of the points, so that all results are written one after another. A voxel's number is how many voxels were first
// met before it.
#include "fusion3d/voxelize.h"

#include <algorithm>
#include <memory>
#include <utility>
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
constexpr int64_t kAhead = 8;          // entries of a list that are fetched ahead when it is read back
constexpr int64_t kBlockRows = 128;    // points whose first ones are counted in a byte
constexpr uint32_t kNone = 0xffffffffu;
constexpr uint32_t kFirst = 0x80000000u;  // no row has this bit

// Memory that is written before it is read.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// Consecutive points of one sample.
struct Piece {
  int64_t begin, end, sample;
};

// A point in its list: {cell, row} as it is dealt. When its voxel has been found, the first point of a voxel is
// {kFirst | points that are kept, row}, every other {row of the first, rank or -1}.
struct Entry {
  uint32_t key, row;
};

struct State {
  int64_t lists;  // of each sample, a power of two
  int shift;      // that leaves the list of a hash
  std::vector<Piece> pieces;
  std::vector<int64_t> sample_piece;    // [B + 1] first piece of each sample
  std::vector<uint32_t> places;         // [pieces, lists] where the piece's next entry of each list goes; then their ends
  std::vector<int64_t> list_begin;      // [B * lists + 1]
  std::unique_ptr<uint32_t[]> cell;     // [P], kNone outside
  std::unique_ptr<Entry[]> entries;     // [P]
  std::unique_ptr<uint8_t[]> met;       // [blocks * kBlockRows] 1 for the first point of a voxel; then how many are before in its block
  std::vector<int32_t> block;           // [blocks] how many there are before each block
  std::vector<int64_t> offset;          // [B] number of the first voxel of each sample
  std::unique_ptr<int32_t[]> by_key;    // [voxels] place of each number when voxels are listed by key; else null
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

FUSION3D_INLINE int64_t list_of(int shift, uint32_t cell) { return uint64_t(hash_of(cell)) >> shift; }

// Features of C channels, or of any number where C is 0, as they are summed up: a row for each entry. That of a voxel's first
// point becomes the sum.
template <typename T, int C>
struct Features {
  typedef typename Compute<T>::Real Real;

  Features(const Voxelize& args, int64_t rows)
      : channels(args.features && C ? C : args.channels), sums(scratch<Real>(rows * channels)) {}

  void take(const Voxelize& args, int64_t row, int64_t entry) {
    const T* from = static_cast<const T*>(args.features) + row * channels;
    Real* to = sums.get() + entry * channels;
    for (int64_t c = 0; c < (C ? C : channels); ++c) to[c] = load_one(from + c);
  }

  void add(int64_t entry, int64_t first) {
    const Real* from = sums.get() + entry * channels;
    Real* to = sums.get() + first * channels;
    for (int64_t c = 0; c < (C ? C : channels); ++c) to[c] += from[c];
  }

  void write(const Voxelize& args, int64_t entry, int64_t count, int64_t voxel) const {
    const Real* from = sums.get() + entry * channels;
    T* to = static_cast<T*>(args.means) + voxel * channels;
    for (int64_t c = 0; c < (C ? C : channels); ++c) store_one(to + c, (Real(0) + from[c]) / Real(count));
  }

  void pad(const Voxelize& args, int64_t voxels) const {
    std::memset(
        static_cast<void*>(static_cast<T*>(args.means) + voxels * channels), 0,
        sizeof(T) * (args.capacity - voxels) * channels);
  }

  int64_t channels;
  std::unique_ptr<Real[]> sums;
};

struct NoFeatures {
  NoFeatures(const Voxelize&, int64_t) {}
  void take(const Voxelize&, int64_t, int64_t) {}
  void add(int64_t, int64_t) {}
  void write(const Voxelize&, int64_t, int64_t, int64_t) const {}
  void pad(const Voxelize&, int64_t) const {}
};

// How many points of each list each piece has, and so where they go. Returns how many there are in all.
int64_t count_points(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t lists = state.lists, pieces = int64_t(state.pieces.size());
  state.cell = scratch<uint32_t>(args.rows);
  state.places.assign(pieces * lists, 0);
  side_by_side(parallel_for, pieces, [&](int64_t p) {
    const Piece piece = state.pieces[p];
    const CellPass pass = {&args, state.cell.get()};
    for_dtype(args.dtype, [&](auto zero) { run_cells<decltype(zero)>(pass, piece.begin, piece.end); });
    uint32_t* count = state.places.data() + p * lists;
    for (int64_t i = piece.begin; i < piece.end; ++i)
      if (state.cell[i] != kNone) ++count[list_of(state.shift, state.cell[i])];
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
  return place;
}

// Points to lists, in their order.
template <typename Means>
void deal(const Voxelize& args, const ParallelFor& parallel_for, State& state, Means& means) {
  side_by_side(parallel_for, int64_t(state.pieces.size()), [&](int64_t p) {
    const Piece piece = state.pieces[p];
    uint32_t* next = state.places.data() + p * state.lists;
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      const uint32_t cell = state.cell[i];
      if (cell == kNone) continue;
      const uint32_t entry = next[list_of(state.shift, cell)]++;
      state.entries[entry] = {cell, uint32_t(i)};
      means.take(args, i, entry);
    }
  });
}

// The voxels of a list, and the rank of each point in its voxel. The table is {cell, entry of the voxel's first point}.
template <typename Means>
void find_voxels(const Voxelize& args, State& state, int64_t list, std::vector<Entry>& table, Means& means) {
  const int64_t begin = state.list_begin[list], end = state.list_begin[list + 1];
  int bits = 4;
  while ((int64_t(1) << bits) < (end - begin) + (end - begin) / 2) ++bits;
  const uint32_t mask = uint32_t((uint64_t(1) << bits) - 1);
  table.assign(size_t(1) << bits, {kNone, 0});
  Entry* entries = state.entries.get();
  for (int64_t e = begin; e < end; ++e) {
    Entry& entry = entries[e];
    // The high bits of the hash chose the list; those below them choose the place.
    uint32_t at = uint32_t(uint64_t(hash_of(entry.key)) << (32 - state.shift) >> (32 - std::min(bits, 32))) & mask;
    while (table[at].key != entry.key && table[at].key != kNone) at = (at + 1) & mask;
    if (table[at].key == kNone) {
      table[at] = {entry.key, uint32_t(e)};
      state.met[entry.row] = 1;
      entry.key = kFirst | 1;
      continue;
    }
    const uint32_t at_first = table[at].row;
    Entry& first = entries[at_first];
    const uint32_t rank = first.key & ~kFirst;
    const bool kept = rank < args.max_points;
    entry = {first.row, kept ? rank : kNone};
    if (!kept) continue;
    ++first.key;
    means.add(e, at_first);
  }
}

// How many voxels were first met before a point, over all samples.
int64_t met_before(const State& state, int64_t row) { return state.block[uint64_t(row) / kBlockRows] + state.met[row]; }

// From which points are first to how many are before each, and from there to where each sample's voxels begin.
void number_voxels(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t blocks = args.rows / kBlockRows + 1;
  state.block.assign(blocks, 0);
  parallel_for(0, blocks, 64, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      uint8_t* met = state.met.get() + k * kBlockRows;
      uint8_t count = 0;
      for (int64_t i = 0; i < kBlockRows; ++i) count = uint8_t(count + std::exchange(met[i], count));
      state.block[k] = count;
    }
  });
  int32_t total = 0;
  for (int32_t& block : state.block) total += std::exchange(block, total);
  int64_t voxels = 0;
  for (int64_t b = 0; b < args.samples; ++b) {
    state.offset.push_back(voxels);
    const int64_t begin = args.batch_ptr ? args.batch_ptr[b] : 0, end = args.batch_ptr ? args.batch_ptr[b + 1] : args.rows;
    voxels += std::min(met_before(state, end) - met_before(state, begin), args.max_voxels);
  }
  *args.num_voxels = int32_t(voxels);
}

// Numbers the voxels of one sample: in the order in which they are met, or by key.
struct Numbers {
  Numbers(const Voxelize& args, const State& state, int64_t sample)
      : block(state.block.data()), met(state.met.get()), by_key(state.by_key.get()), most(args.max_voxels),
        before(met_before(state, args.batch_ptr ? args.batch_ptr[sample] : 0)), offset(state.offset[sample]) {}

  // Of the voxel with this first point; -1 where it is not kept.
  int32_t of(int64_t first) const {
    const int64_t number = block[uint64_t(first) / kBlockRows] + met[first] - before;
    if (number >= most) return -1;
    return by_key ? by_key[offset + number] : int32_t(offset + number);
  }

  const int32_t* block;
  const uint8_t* met;
  const int32_t* by_key;
  int64_t most, before, offset;
};

// Numbers by sample and cell instead.
void sort_by_key(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t total = *args.num_voxels;
  const uint64_t cells = num_cells(args.grid);
  auto key = scratch<uint64_t>(total);
  side_by_side(parallel_for, int64_t(state.pieces.size()), [&](int64_t p) {
    const Piece piece = state.pieces[p];
    const Numbers numbers(args, state, piece.sample);
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      const int32_t number = met_before(state, i + 1) > met_before(state, i) ? numbers.of(i) : -1;
      if (number >= 0) key[number] = uint64_t(piece.sample) * cells + state.cell[i];
    }
  });
  auto records = scratch<WideRecord>(2 * total);
  const WideRecord* sorted = records.get() + total;
  sort_rows(
      parallel_for, total, uint64_t(args.samples) * cells, [&](int64_t v) { return key[v]; }, records.get(),
      records.get() + total);
  state.by_key = scratch<int32_t>(total);
  side_by_side(parallel_for, sort_parts(total), [&](int64_t part) {
    const int64_t parts = sort_parts(total);
    for (int64_t i = total * part / parts; i < total * (part + 1) / parts; ++i)
      state.by_key[sorted[i].row()] = int32_t(i);
  });
}

// The points of a piece, in their order: each list is read as it was dealt.
template <typename Means>
void write_piece(const Voxelize& args, const State& state, int64_t p, const Means& means) {
  const Piece piece = state.pieces[p];
  const Numbers numbers(args, state, piece.sample);
  uint32_t next[kMostLists];
  for (int64_t list = 0; list < state.lists; ++list)  // where the piece before ended
    next[list] = p > state.sample_piece[piece.sample] ? state.places[(p - 1) * state.lists + list]
                                                      : uint32_t(state.list_begin[piece.sample * state.lists + list]);
  const uint32_t* cells = state.cell.get();
  const Entry* entries = state.entries.get();
  int32_t *voxel = args.voxel, *rank = args.rank;
  const int shift = state.shift;
  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const uint32_t cell = cells[i];
    if (cell == kNone) {
      voxel[i] = rank[i] = -1;
      continue;
    }
    const uint32_t at = next[list_of(shift, cell)]++;
    const Entry entry = entries[at];
    __builtin_prefetch(entries + at + kAhead);
    const bool first = entry.key & kFirst;
    const int32_t number = entry.row == kNone ? -1 : numbers.of(first ? entry.row : entry.key);
    voxel[i] = number;
    rank[i] = number < 0 ? -1 : first ? 0 : int32_t(entry.row);
    if (!first || number < 0) continue;
    const uint32_t count = entry.key & ~kFirst;
    write_coords(args.grid, piece.sample, cell, args.coords + 4 * int64_t(number));
    args.counts[number] = int32_t(count);
    means.write(args, at, count, number);
  }
}

template <typename Means>
void run(const Voxelize& args, const ParallelFor& parallel_for) {
  State state;
  make_pieces(args, state);
  const int64_t inside = count_points(args, parallel_for, state);
  state.entries = scratch<Entry>(inside);
  Means means(args, inside);
  deal(args, parallel_for, state, means);
  state.met.reset(new uint8_t[(args.rows / kBlockRows + 1) * kBlockRows]());
  parallel_for(0, args.samples * state.lists, 1, [&](int64_t begin, int64_t end) {
    std::vector<Entry> table;
    for (int64_t list = begin; list < end; ++list) find_voxels(args, state, list, table, means);
  });
  number_voxels(args, parallel_for, state);
  if (args.by_key) sort_by_key(args, parallel_for, state);
  side_by_side(parallel_for, int64_t(state.pieces.size()), [&](int64_t p) { write_piece(args, state, p, means); });
  const int64_t total = *args.num_voxels;
  std::fill(args.coords + 4 * total, args.coords + 4 * args.capacity, -1);
  std::fill(args.counts + total, args.counts + args.capacity, 0);
  means.pad(args, total);
}

}  // namespace

void voxelize_cpu(const Voxelize& args, const ParallelFor& parallel_for) {
  if (!args.features) return run<NoFeatures>(args, parallel_for);
  for_dtype(args.feature_dtype, [&](auto zero) {
    typedef decltype(zero) T;
    if (args.channels == 4)
      run<Features<T, 4>>(args, parallel_for);
    else if (args.channels == 5)
      run<Features<T, 5>>(args, parallel_for);
    else
      run<Features<T, 0>>(args, parallel_for);
  });
}

}  // namespace fusion3d
