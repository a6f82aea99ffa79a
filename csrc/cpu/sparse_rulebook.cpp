// Neighbour tables on the CPU. The index of voxels (see sparse_index.h) stays in the caches. Rows are put into it in parts,
// each with bits of its own, which are then joined: in whichever order, the result is the same.
#include "fusion3d/sparse_rulebook.h"

#include <algorithm>

#include "dispatch.h"

namespace fusion3d {
namespace {

constexpr int64_t kRowGrain = 1024;      // fewest rows worth a thread
constexpr int64_t kPartRows = 4096;      // rows put into the index by one part, at least
constexpr int64_t kParts = 8;            // at most
constexpr int64_t kPartWords = 1 << 20;  // that all parts but the first may take together

#define FUSION3D_INLINE_LAMBDA __attribute__((always_inline))

// A level of the index, `top` or `words`, that is being filled from the rows of args.coords.
struct Level {
  const SparseRulebook& args;
  VoxelIndex index;
  bool is_top;
  bool of_outputs;  // the cells that read the rows, else the rows' own
  uint64_t* bits;    // [length] of the first part, where the others are added
  uint64_t* others;  // [parts - 1, length]
  int64_t length, parts;
};

struct Search {
  const SparseRulebook& args;
  VoxelIndex index;
  const int32_t* row;  // [num_in] the row of the voxel of each rank
};

// The taps of each axis that read one input, and their outputs.
struct Taps {
  explicit Taps(const SparseGeometry& g) : out(g.kernel[0] + g.kernel[1] + g.kernel[2]), tap(out.size()) {
    first[0] = 0;
    for (int axis = 0; axis < 3; ++axis) first[axis + 1] = first[axis] + g.kernel[axis];
  }

  FUSION3D_INLINE void find(const SparseGeometry& g, const int32_t* zyx) {
    for (int axis = 0; axis < 3; ++axis) {
      // As output_through, with one division for all taps, and without branches that cannot be foretold.
      const int32_t stride = g.stride[axis], back = g.dilation[axis] / stride, left = g.dilation[axis] % stride;
      int32_t n = first[axis], o = (zyx[axis] + g.padding[axis]) / stride;
      int32_t rest = (zyx[axis] + g.padding[axis]) - o * stride;
      for (int32_t k = 0; k < g.kernel[axis]; ++k) {
        out[n] = o;
        tap[n] = k;
        n += int32_t(rest == 0) & int32_t(uint32_t(o) < uint32_t(g.out_shape[axis]));
        rest -= left;
        const int32_t borrow = rest < 0;
        o -= back + borrow;
        rest += borrow * stride;
      }
      last[axis] = n;
    }
  }

  // use(tap, cell) for each output cell that reads the input.
  template <typename Use>
  FUSION3D_INLINE void visit(const SparseGeometry& g, int32_t b, const Use& use) const {
    for (int32_t z = first[0]; z < last[0]; ++z)
      for (int32_t y = first[1]; y < last[1]; ++y) {
        const int64_t line = cell_at(g.out_shape, b, out[z], out[y], 0);
        const int64_t k = (int64_t(tap[z]) * g.kernel[1] + tap[y]) * g.kernel[2];
        for (int32_t x = first[2]; x < last[2]; ++x) use(k + tap[x], line + out[x]);
      }
  }

  std::vector<int32_t> out, tap;
  int32_t first[4], last[3];
};

// The parts [begin, end).
template <typename>
FUSION3D_INLINE void mark_cells(const Level& level, int64_t begin, int64_t end) {
  const SparseGeometry& g = level.args.geometry;
  const int64_t rows = (level.args.num_in + level.parts - 1) / level.parts;
  Taps taps(g);
  for (int64_t part = begin; part < end; ++part) {
    uint64_t* bits = part == 0 ? level.bits : level.others + (part - 1) * level.length;
    const auto put = [&](int64_t cell) FUSION3D_INLINE_LAMBDA {
      if (level.is_top)
        bits[cell >> 12] |= bit_of(cell >> 6);
      else
        bits[find_word(level.index, cell >> 6)] |= bit_of(cell);
    };
    for (int64_t n = part * rows; n < std::min((part + 1) * rows, level.args.num_in); ++n) {
      const int32_t* at = level.args.coords + 4 * n;
      if (level.of_outputs) {
        taps.find(g, at + 1);
        taps.visit(g, at[0], [&](int64_t, int64_t cell) FUSION3D_INLINE_LAMBDA { put(cell); });
      } else {
        put(cell_at(g.in_shape, at[0], at[1], at[2], at[3]));
      }
    }
  }
}

// The row of the voxel of each rank.
template <typename>
FUSION3D_INLINE void rank_rows(const Search& search, int64_t begin, int64_t end) {
  int32_t* row = const_cast<int32_t*>(search.row);
  for (int64_t n = begin; n < end; ++n) {
    const int32_t* at = search.args.coords + 4 * n;
    row[find_voxel(search.index, cell_at(search.args.geometry.in_shape, at[0], at[1], at[2], at[3]))] = int32_t(n);
  }
}

// The voxels of the cells [low, high] of a line, whose tap k is at cell origin + k * dilation: output m reads them through
// the taps from `tap` on, and they read m through the mirrored ones.
FUSION3D_INLINE void search_line(
    const Search& search, int64_t m, int64_t low, int64_t high, int64_t origin, int64_t tap, int64_t last_tap) {
  const int64_t count = search.args.num_out;
  const int32_t dilation = search.args.geometry.dilation[2];
  int32_t* table = search.args.table;
  for (int64_t cell = low; cell <= high;) {
    const int64_t word = cell >> 6, last = std::min(high, word * 64 + 63);
    const int32_t i = find_word(search.index, word);
    if (i >= 0) {
      const uint64_t bits = search.index.words[i];
      const uint64_t asked = ~uint64_t(0) << (cell & 63) & ~uint64_t(0) >> (63 - (last & 63));
      for (uint64_t left = bits & asked; left; left &= left - 1) {
        const int64_t step = word * 64 + __builtin_ctzll(left) - origin, k = dilation == 1 ? step : step / dilation;
        if (k * dilation != step) continue;
        const int32_t n = search.row[search.index.word_rank[i] + count_bits(bits & ((left & -left) - 1))];
        table[(tap + k) * count + m] = n;
        table[(last_tap - tap - k) * count + n] = int32_t(m);
      }
    }
    cell = last + 1;
  }
}

// The pairs of the rows [begin, end) of a submanifold convolution, over a table full of -1. Only the taps before the centre
// are looked up: every pair is found from one side, so no entry is written twice.
template <typename>
FUSION3D_INLINE void search_rows(const Search& search, int64_t begin, int64_t end) {
  const SparseGeometry& g = search.args.geometry;
  const int64_t lines = int64_t(g.kernel[0]) * g.kernel[1], last_tap = lines * g.kernel[2] - 1;
  for (int64_t m = begin; m < end; ++m) {
    const int32_t* at = search.args.coords + 4 * m;
    const int32_t x = at[3] - g.padding[2];
    const int32_t low = std::max(x, 0), high = std::min(x + (g.kernel[2] - 1) * g.dilation[2], g.in_shape[2] - 1);
    search.args.table[last_tap / 2 * search.args.num_out + m] = int32_t(m);
    for (int64_t l = 0; l <= lines / 2; ++l) {
      const int32_t z = at[1] - g.padding[0] + int32_t(l / g.kernel[1]) * g.dilation[0];
      const int32_t y = at[2] - g.padding[1] + int32_t(l % g.kernel[1]) * g.dilation[1];
      if (uint32_t(z) >= uint32_t(g.in_shape[0]) || uint32_t(y) >= uint32_t(g.in_shape[1])) continue;
      const int64_t line = cell_at(g.in_shape, at[0], z, y, 0);
      search_line(search, m, line + low, line + (l == lines / 2 ? at[3] - 1 : high), line + x, l * g.kernel[2], last_tap);
    }
  }
}

// Both tables' entries of the inputs [begin, end), over tables full of -1: no two inputs share an output and a tap.
template <typename>
FUSION3D_INLINE void link_rows(const Search& search, int64_t begin, int64_t end) {
  const SparseRulebook& args = search.args;
  Taps taps(args.geometry);
  for (int64_t n = begin; n < end; ++n) {
    taps.find(args.geometry, args.coords + 4 * n + 1);
    taps.visit(args.geometry, args.coords[4 * n], [&](int64_t k, int64_t cell) FUSION3D_INLINE_LAMBDA {
      const int32_t m = find_voxel(search.index, cell);
      args.transposed[k * args.num_in + n] = m;
      args.table[k * args.num_out + m] = int32_t(n);
    });
  }
}

FUSION3D_DISPATCH(run_mark, Level, mark_cells)
FUSION3D_DISPATCH(run_rank, Search, rank_rows)
FUSION3D_DISPATCH(run_search, Search, search_rows)
FUSION3D_DISPATCH(run_link, Search, link_rows)

typedef float Any;  // tables have no dtype

// A level is marked by parts, which are then joined.
void fill(
    const SparseRulebook& args, VoxelIndexStorage& index, bool is_top, bool of_outputs,
    const ParallelFor& parallel_for) {
  std::vector<uint64_t>& bits = is_top ? index.top : index.words;
  const int64_t length = int64_t(bits.size()), room = 1 + kPartWords / std::max<int64_t>(length, 1);
  const int64_t parts = std::clamp<int64_t>(std::min(args.num_in / kPartRows, room), 1, kParts);
  std::vector<uint64_t> others((parts - 1) * length);
  const Level level{args, index.view(), is_top, of_outputs, bits.data(), others.data(), length, parts};
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) { run_mark<Any>(level, begin, end); });
  parallel_for(0, length, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = begin; i < end; ++i) bits[i] |= others[(part - 1) * length + i];
  });
}

// The index of the rows' cells, or of the outputs that read them.
void build(const SparseRulebook& args, VoxelIndexStorage& index, bool of_outputs, const ParallelFor& parallel_for) {
  const SparseGeometry& g = args.geometry;
  const int64_t tops = num_tops(num_cells(g.batch, of_outputs ? g.out_shape : g.in_shape));
  index.top.assign(tops, 0);
  index.top_rank.resize(tops);
  fill(args, index, true, of_outputs, parallel_for);
  int32_t kept = 0;
  for (int64_t i = 0; i < tops; ++i) {
    index.top_rank[i] = kept;
    kept += count_bits(index.top[i]);
  }
  index.words.assign(kept, 0);
  index.word_rank.resize(kept);
  fill(args, index, false, of_outputs, parallel_for);
  int64_t total = 0;
  for (int32_t i = 0; i < kept; ++i) {
    index.word_rank[i] = int32_t(total);
    total += count_bits(index.words[i]);
  }
  index.num_voxels = total;
}

// Coordinates of the voxels of the words [begin, end) of `top`.
void list_outputs(const SparseRulebook& args, const VoxelIndex& index, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    int32_t i = index.top_rank[t];
    for (uint64_t kept = index.top[t]; kept; kept &= kept - 1, ++i) {
      const int64_t word = t * 64 + __builtin_ctzll(kept);
      int32_t* out = args.out_coords + 4 * int64_t(index.word_rank[i]);
      for (uint64_t bits = index.words[i]; bits; bits &= bits - 1, out += 4)
        coords_of(args.geometry.out_shape, word * 64 + __builtin_ctzll(bits), out);
    }
  }
}

}  // namespace

int64_t sparse_outside_cpu(const SparseRulebook& args) {
  for (int64_t n = 0; n < args.num_in; ++n)
    if (!is_inside(args.geometry.batch, args.geometry.in_shape, args.coords + 4 * n)) return n;
  return -1;
}

bool sparse_submanifold_cpu(const SparseRulebook& args, const ParallelFor& parallel_for) {
  VoxelIndexStorage index;
  build(args, index, false, parallel_for);
  if (index.num_voxels != args.num_in) return false;
  std::vector<int32_t> row(args.num_in);
  const Search search{args, index.view(), row.data()};
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_rank<Any>(search, begin, end); });
  const SparseGeometry& g = args.geometry;
  parallel_for(0, int64_t(g.kernel[0]) * g.kernel[1] * g.kernel[2], 1, [&](int64_t begin, int64_t end) {
    std::fill(args.table + begin * args.num_out, args.table + end * args.num_out, -1);
  });
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_search<Any>(search, begin, end); });
  return true;
}

bool sparse_outputs_cpu(const SparseRulebook& args, VoxelIndexStorage& index, const ParallelFor& parallel_for) {
  build(args, index, false, parallel_for);
  if (index.num_voxels != args.num_in) return false;
  build(args, index, true, parallel_for);
  return true;
}

void sparse_strided_cpu(const SparseRulebook& args, VoxelIndexStorage& index, const ParallelFor& parallel_for) {
  const SparseGeometry& g = args.geometry;
  const int64_t taps = int64_t(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const Search search{args, index.view(), nullptr};
  parallel_for(0, int64_t(index.top.size()), 64, [&](int64_t begin, int64_t end) {
    list_outputs(args, search.index, begin, end);
  });
  parallel_for(0, taps, 1, [&](int64_t begin, int64_t end) {
    std::fill(args.table + begin * args.num_out, args.table + end * args.num_out, -1);
    std::fill(args.transposed + begin * args.num_in, args.transposed + end * args.num_in, -1);
  });
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_link<Any>(search, begin, end); });
}

}  // namespace fusion3d
