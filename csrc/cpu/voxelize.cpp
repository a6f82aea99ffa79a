// Voxelization on the CPU. Each piece of consecutive points is dealt, in its place, to lists by a hash of their voxel. A list is
// what all pieces hold of it, one after another: its hash table stays in the cache and has one owner. Then the pieces are read
// back in the order of the points: the voxels first met in each are numbered and written, and all points told their number.
#include "fusion3d/voxelize.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "lines.h"
#include "sort.h"
#include "vector.h"

namespace fusion3d {
namespace {

constexpr int64_t kBlock = 256;       // points whose cells are computed at once
constexpr int64_t kPieceRows = 8192;  // most points of a piece
constexpr int64_t kListRows = 4096;   // most points of a list, about
constexpr int kMostListBits = 8;
constexpr int64_t kAhead = 16;  // entries or voxels whose features or sums are fetched ahead
constexpr uint32_t kNone = 0xffffffffu;

// Consecutive points of one sample.
struct Piece {
  int64_t begin, end, sample;
  int64_t met;           // voxels that are first met in it
  int64_t number, kept;  // of the first of them; how many are kept
};

// A point in its list: {cell, row} as it is dealt, then {id of its voxel, rank}, {0, kNone} where it is not kept.
struct Entry {
  uint32_t key, row;
};

// A voxel by its id, which is above 0: {cell, points that are kept}, then {number or -1, points}.
struct Voxel {
  uint32_t key, count;
};

struct State {
  int list_bits, cell_bits;           // 2^list_bits lists of each sample
  uint32_t factor;                    // of the hash
  std::vector<Piece> pieces;
  std::vector<int64_t> sample_piece;  // [B + 1] first piece of each sample
  std::vector<uint32_t> bounds;       // [pieces, lists + 1] where the entries of each list begin, and those of no voxel
  std::vector<uint32_t> first_id;     // [B * lists + 1] of each list
  Scratch<Entry> entries;             // [P] those of a piece lie where its points do
  Scratch<Voxel> voxels;              // [P + 1] by id
  Scratch<int32_t> by_key;            // [voxels] place of each number when voxels are listed by key; else null
};

// What the worker that is compiled twice gets.
struct CellPass {
  const Voxelize* args;
  uint32_t factor;
  int list_bits;
  uint32_t* cell;  // [P] kNone outside
  uint16_t* list;  // [end - begin] one past the last outside
};

// The lowest cell_bits bits of the product, at the top of the word: no two cells have one hash. Its highest bits choose the
// list, those below them the place in the list's table.
FUSION3D_INLINE uint32_t hash_of(uint32_t factor, uint32_t cell) { return cell * factor; }

FUSION3D_INLINE void cells_of_block(
    const CellPass& pass, const float* x, const float* y, const float* z, uint32_t* cells, uint16_t* lists) {
  const VoxelGrid grid = pass.args->grid;
  const uint32_t factor = pass.factor, none = 1u << pass.list_bits;
  const int shift = 32 - pass.list_bits;
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
    cells[i] = cell | ~uint32_t(inside);
    lists[i] = uint16_t(hash_of(factor, cell) >> shift | (~uint32_t(inside) & none));
  }
}

template <typename T>
FUSION3D_INLINE void fill_cells(const CellPass& pass, int64_t begin, int64_t end) {
  const int64_t stride = pass.args->stride;
  float x[kBlock] = {}, y[kBlock] = {}, z[kBlock] = {};
  uint32_t cell[kBlock];
  uint16_t list[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    const T* p = static_cast<const T*>(pass.args->points) + first * stride;
    for (int64_t i = 0; i < count; ++i, p += stride) {
      x[i] = float(load_one(p));
      y[i] = float(load_one(p + 1));
      z[i] = float(load_one(p + 2));
    }
    cells_of_block(pass, x, y, z, cell, list);
    std::copy(cell, cell + count, pass.cell + first);
    std::copy(list, list + count, pass.list + (first - begin));
  }
}

FUSION3D_DISPATCH(run_cells, CellPass, fill_cells)

State make_state(const Voxelize& args) {
  State state;
  state.sample_piece.push_back(0);
  for (int64_t b = 0; b < args.samples; ++b) {
    const int64_t begin = args.batch_ptr ? args.batch_ptr[b] : 0, end = args.batch_ptr ? args.batch_ptr[b + 1] : args.rows;
    for (int64_t first = begin; first < end; first += kPieceRows)
      state.pieces.push_back({first, std::min(first + kPieceRows, end), b, 0, 0, 0});
    state.sample_piece.push_back(int64_t(state.pieces.size()));
  }
  const uint64_t wanted = uint64_t(args.rows / std::max<int64_t>(args.samples, 1) / kListRows);
  state.list_bits = std::clamp(bit_width(wanted), 1, kMostListBits);
  state.cell_bits = std::max(bit_width(num_cells(args.grid) - 1), 1);
  state.factor = (2654435769u >> (32 - state.cell_bits) | 1) << (32 - state.cell_bits);  // 2^32 over the golden ratio
  state.bounds.resize(state.pieces.size() * ((size_t(1) << state.list_bits) + 1));
  state.entries = scratch<Entry>(args.rows);
  state.voxels = scratch<Voxel>(args.rows + 1);
  state.voxels[0].key = kNone;
  return state;
}

// Runs work(i) for i in [0, count), side by side.
template <typename Work>
void side_by_side(const ParallelFor& parallel_for, int64_t count, const Work& work) {
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

// Sums of features of C channels, or of any number where C is 0: a row for each id.
template <typename T, int C>
struct Sums {
  typedef typename Compute<T>::Real Real;

  explicit Sums(const Voxelize& args)
      : channels(C ? C : args.channels), features(static_cast<const T*>(args.features)), means(static_cast<T*>(args.means)),
        sums(scratch<Real>((args.rows + 1) * channels)) {}

  void fetch_row(int64_t row) const { __builtin_prefetch(features + row * channels); }
  void fetch_sum(int64_t id) const { __builtin_prefetch(sums.get() + id * channels); }

  void set(int64_t id, int64_t row) const {
    for (int64_t c = 0; c < (C ? C : channels); ++c)
      sums[id * channels + c] = Real(0) + load_one(features + row * channels + c);
  }

  void add(int64_t id, int64_t row) const {
    for (int64_t c = 0; c < (C ? C : channels); ++c) sums[id * channels + c] += load_one(features + row * channels + c);
  }

  void write(int64_t id, int64_t count, int64_t place) const {
    for (int64_t c = 0; c < (C ? C : channels); ++c)
      store_one(means + place * channels + c, sums[id * channels + c] / Real(count));
  }

  void pad(int64_t begin, int64_t end) const {
    std::memset(static_cast<void*>(means + begin * channels), 0, sizeof(T) * (end - begin) * channels);
  }

  int64_t channels;
  const T* features;
  T* means;
  Scratch<Real> sums;
};

struct NoSums {
  explicit NoSums(const Voxelize&) {}
  void fetch_row(int64_t) const {}
  void fetch_sum(int64_t) const {}
  void set(int64_t, int64_t) const {}
  void add(int64_t, int64_t) const {}
  void write(int64_t, int64_t, int64_t) const {}
  void pad(int64_t, int64_t) const {}
};

// The points of a piece to lists, in their order. Until they are read back, `voxel` holds the place of each point's entry.
void deal(const Voxelize& args, State& state, int64_t p) {
  const Piece& piece = state.pieces[p];
  uint32_t* cell = reinterpret_cast<uint32_t*>(args.voxel);
  uint16_t list[kPieceRows];
  const CellPass pass = {&args, state.factor, state.list_bits, cell, list};
  for_dtype(args.dtype, [&](auto zero) { run_cells<decltype(zero)>(pass, piece.begin, piece.end); });
  uint32_t next[(1 << kMostListBits) + 1] = {};
  const int64_t rows = piece.end - piece.begin, lists = int64_t(1) << state.list_bits;
  for (int64_t i = 0; i < rows; ++i) ++next[list[i]];
  uint32_t place = uint32_t(piece.begin);
  for (int64_t l = 0; l <= lists; ++l) place += std::exchange(next[l], place);
  std::copy(next, next + lists + 1, state.bounds.data() + p * (lists + 1));
  Entry* entries = state.entries.get();
  const int64_t outside = next[lists];
  for (int64_t i = 0; i < rows; ++i) {
    const uint32_t at = next[list[i]]++;
    entries[at] = {cell[piece.begin + i], uint32_t(piece.begin + i)};
    cell[piece.begin + i] = at;
  }
  std::fill(entries + outside, entries + piece.end, Entry{0, kNone});
}

// A list has an id for each of its points.
void share_ids(const Voxelize& args, State& state) {
  const int64_t lists = int64_t(1) << state.list_bits;
  uint32_t id = 1;
  for (int64_t b = 0; b < args.samples; ++b)
    for (int64_t list = 0; list < lists; ++list) {
      state.first_id.push_back(id);
      for (int64_t p = state.sample_piece[b]; p < state.sample_piece[b + 1]; ++p) {
        const uint32_t* bounds = state.bounds.data() + p * (lists + 1) + list;
        id += bounds[1] - bounds[0];
      }
    }
  state.first_id.push_back(id);
}

// What has the places of a hash: a cell, kNone where there is none, and the id of its voxel.
struct Table {
  std::vector<uint32_t> cells, ids;
};

// The voxels of a list, and the rank of each point in its voxel.
template <typename Means>
void find_voxels(const Voxelize& args, State& state, int64_t owner, Table& table, const Means& means) {
  const int64_t sample = owner >> state.list_bits, lists = int64_t(1) << state.list_bits, list = owner & (lists - 1);
  const int64_t rows = state.first_id[owner + 1] - state.first_id[owner];
  int bits = 1;  // no more than leave a place of its own to every cell
  while (bits < state.cell_bits - state.list_bits && (int64_t(1) << bits) < rows + rows / 2) ++bits;
  table.cells.assign(size_t(1) << bits, kNone);
  table.ids.resize(size_t(1) << bits);
  uint32_t *const cells = table.cells.data(), *const ids = table.ids.data();
  const uint32_t mask = uint32_t((uint64_t(1) << bits) - 1), factor = state.factor;
  const int left = state.list_bits, right = 32 - bits;
  Entry* const entries = state.entries.get();
  Voxel* const voxels = state.voxels.get();
  const uint32_t most = uint32_t(std::min<int64_t>(args.max_points, INT32_MAX));
  uint32_t next = state.first_id[owner];
  for (int64_t p = state.sample_piece[sample]; p < state.sample_piece[sample + 1]; ++p) {
    const uint32_t* bounds = state.bounds.data() + p * (lists + 1) + list;
    const int64_t end = bounds[1];
    for (int64_t e = bounds[0]; e < end; ++e) {
      const Entry entry = entries[e];
      if (e + kAhead < end) means.fetch_row(entries[e + kAhead].row);
      uint32_t at = hash_of(factor, entry.key) << left >> right;
      while (cells[at] != entry.key && cells[at] != kNone) at = (at + 1) & mask;
      if (cells[at] == kNone) {
        cells[at] = entry.key;
        ids[at] = next;
        voxels[next] = {entry.key, 1};
        means.set(next, entry.row);
        entries[e] = {next++, 0};
        continue;
      }
      const uint32_t id = ids[at], count = voxels[id].count;
      if (count == most) {
        entries[e] = {0, kNone};
        continue;
      }
      voxels[id].count = count + 1;
      means.add(id, entry.row);
      entries[e] = {id, count};
    }
  }
}

// The ids of the voxels that are first met in a piece, in this order, to `rank`, which is written at the end.
void list_met(const Voxelize& args, State& state, int64_t p) {
  Piece& piece = state.pieces[p];
  const Entry* entries = state.entries.get();
  const int32_t* place = args.voxel;
  uint32_t *const first = reinterpret_cast<uint32_t*>(args.rank) + piece.begin, *next = first;
  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const Entry entry = entries[place[i]];
    *next = entry.key;
    next += entry.row == 0;
  }
  piece.met = next - first;
}

// From how many voxels are first met in each piece to which are kept, and their numbers.
void number_voxels(const Voxelize& args, State& state) {
  int64_t number = 0;
  for (int64_t b = 0; b < args.samples; ++b) {
    int64_t left = args.max_voxels;
    for (int64_t p = state.sample_piece[b]; p < state.sample_piece[b + 1]; ++p) {
      Piece& piece = state.pieces[p];
      piece.number = number;
      piece.kept = std::min(piece.met, left);
      left -= piece.kept;
      number += piece.kept;
    }
  }
  *args.num_voxels = int32_t(number);
}

// Numbers by sample and cell instead.
void sort_by_key(const Voxelize& args, const ParallelFor& parallel_for, State& state) {
  const int64_t total = *args.num_voxels;
  const uint64_t cells = num_cells(args.grid);
  auto key = scratch<uint64_t>(total);
  side_by_side(parallel_for, int64_t(state.pieces.size()), [&](int64_t p) {
    const Piece& piece = state.pieces[p];
    for (int64_t k = 0; k < piece.kept; ++k)
      key[piece.number + k] = uint64_t(piece.sample) * cells + state.voxels[args.rank[piece.begin + k]].key;
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

// What is listed by voxel, of those that are first met in a piece.
template <typename Means>
void write_voxels(const Voxelize& args, State& state, const Piece& piece, const Means& means) {
  const uint32_t* ids = reinterpret_cast<const uint32_t*>(args.rank) + piece.begin;
  for (int64_t k = 0; k < piece.kept; ++k) {
    if (k + kAhead < piece.kept) means.fetch_sum(ids[k + kAhead]);
    Voxel& voxel = state.voxels[ids[k]];
    const int64_t place = state.by_key ? state.by_key[piece.number + k] : piece.number + k;
    write_coords(args.grid, piece.sample, voxel.key, args.coords + 4 * place);
    args.counts[place] = int32_t(voxel.count);
    means.write(ids[k], voxel.count, place);
    voxel.key = uint32_t(place);
  }
  for (int64_t k = piece.kept; k < piece.met; ++k) state.voxels[ids[k]].key = kNone;
}

// The voxel and rank of each point of a piece.
void write_points(const Voxelize& args, const State& state, const Piece& piece) {
  const Entry* entries = state.entries.get();
  const Voxel* voxels = state.voxels.get();
  int32_t *voxel = args.voxel, *rank = args.rank;
  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const Entry entry = entries[voxel[i]];
    const int32_t number = int32_t(voxels[entry.key].key);
    voxel[i] = number;
    rank[i] = int32_t(entry.row) | number >> 31;  // -1 where the voxel is not kept
  }
}

template <typename Means>
void run(const Voxelize& args, const ParallelFor& parallel_for) {
  State state = make_state(args);
  const Means means(args);
  const int64_t pieces = int64_t(state.pieces.size());
  side_by_side(parallel_for, pieces, [&](int64_t p) { deal(args, state, p); });
  share_ids(args, state);
  parallel_for(0, args.samples << state.list_bits, 1, [&](int64_t begin, int64_t end) {
    Table table;
    for (int64_t owner = begin; owner < end; ++owner) find_voxels(args, state, owner, table, means);
  });
  side_by_side(parallel_for, pieces, [&](int64_t p) { list_met(args, state, p); });
  number_voxels(args, state);
  if (args.by_key) sort_by_key(args, parallel_for, state);
  side_by_side(parallel_for, pieces, [&](int64_t p) { write_voxels(args, state, state.pieces[p], means); });
  side_by_side(parallel_for, pieces, [&](int64_t p) { write_points(args, state, state.pieces[p]); });
  const int64_t total = *args.num_voxels;
  std::fill(args.coords + 4 * total, args.coords + 4 * args.capacity, -1);
  std::fill(args.counts + total, args.counts + args.capacity, 0);
  means.pad(total, args.capacity);
}

}  // namespace

void voxelize_cpu(const Voxelize& args, const ParallelFor& parallel_for) {
  if (!args.features) return run<NoSums>(args, parallel_for);
  for_dtype(args.feature_dtype, [&](auto zero) {
    typedef decltype(zero) T;
    if (args.channels == 4)
      run<Sums<T, 4>>(args, parallel_for);
    else if (args.channels == 5)
      run<Sums<T, 5>>(args, parallel_for);
    else
      run<Sums<T, 0>>(args, parallel_for);
  });
}

}  // namespace fusion3d
