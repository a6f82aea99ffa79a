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

// Which taps of an axis read input i, as output_through says of one: those for which k * dilation, divided by the stride,
// leaves the same rest as i + padding. So an input takes one division, and the taps of every rest are listed before.
struct AxisTaps {
  AxisTaps(const SparseGeometry& g, int axis)
      : stride(g.stride[axis]), padding(g.padding[axis]), outputs(g.out_shape[axis]),
        first(std::min(stride, g.in_shape[axis] + padding) + 1), tap(g.kernel[axis]), back(tap.size()) {
    const int32_t rests = int32_t(first.size()) - 1;  // that inputs have
    const auto each_tap = [&](const auto& use) {
      for (int32_t k = 0, reach = 0; k < g.kernel[axis]; ++k, reach += g.dilation[axis])
        if (reach % stride < rests) use(k, reach % stride, reach / stride);
    };
    each_tap([&](int32_t, int32_t rest, int32_t) { ++first[rest + 1]; });
    for (int32_t rest = 0; rest < rests; ++rest) first[rest + 1] += first[rest];
    std::vector<int32_t> next(first);
    each_tap([&](int32_t k, int32_t rest, int32_t whole) {
      const int32_t n = next[rest]++;
      tap[n] = k;
      back[n] = whole;
    });
  }

  // Of one input: its place in strides, and its taps.
  struct Reads {
    int32_t whole, first, last;
  };
  FUSION3D_INLINE Reads reads_of(int32_t i) const {
    const int32_t whole = (i + padding) / stride, rest = (i + padding) - whole * stride;
    return {whole, first[rest], first[rest + 1]};
  }

  // use(tap, output) for each; outputs descend.
  template <typename Use>
  FUSION3D_INLINE void visit(const Reads& reads, const Use& use) const {
    for (int32_t n = reads.first; n < reads.last; ++n)
      if (const int32_t o = reads.whole - back[n]; uint32_t(o) < uint32_t(outputs)) use(tap[n], o);
  }

  int32_t stride, padding, outputs;
  std::vector<int32_t> first;      // [rests + 1] of the taps of each rest
  std::vector<int32_t> tap, back;  // [kernel] the tap, and how many strides its output is before the input
};

struct Taps {
  explicit Taps(const SparseGeometry& g) : geometry(g), z(g, 0), y(g, 1), x(g, 2) {}

  // use(tap, cell, reads along x), the first two of x = 0, for each line along x in which outputs may read the input.
  template <typename Use>
  FUSION3D_INLINE void visit_lines(const int32_t* bzyx, const Use& use) const {
    const AxisTaps::Reads of_z = z.reads_of(bzyx[1]), of_y = y.reads_of(bzyx[2]), of_x = x.reads_of(bzyx[3]);
    if (of_x.first == of_x.last) return;
    z.visit(of_z, [&](int32_t tap_z, int32_t out_z) FUSION3D_INLINE_LAMBDA {
      y.visit(of_y, [&](int32_t tap_y, int32_t out_y) FUSION3D_INLINE_LAMBDA {
        const int64_t tap = (int64_t(tap_z) * geometry.kernel[1] + tap_y) * geometry.kernel[2];
        use(tap, cell_at(geometry.out_shape, bzyx[0], out_z, out_y, 0), of_x);
      });
    });
  }

  const SparseGeometry& geometry;
  AxisTaps z, y, x;
};

// A level of the index, `top` or `words`, that is being filled from the rows of args.coords.
struct Level {
  const SparseRulebook& args;
  VoxelIndex index;
  bool is_top;
  const Taps* taps;  // to the cells that read the rows; null: the rows' own
  uint64_t* bits;    // [length] of the first part, where the others are added
  uint64_t* others;  // [parts - 1, length]
  int64_t length, parts;
};

struct Search {
  const SparseRulebook& args;
  VoxelIndex index;
  const int32_t* row;  // [num_in] the row of the voxel of each rank; null: not submanifold
  const Taps* taps;    // null: submanifold
};

// The parts [begin, end).
template <typename>
FUSION3D_INLINE void mark_cells(const Level& level, int64_t begin, int64_t end) {
  const int64_t rows = (level.args.num_in + level.parts - 1) / level.parts;
  for (int64_t part = begin; part < end; ++part) {
    uint64_t* bits = part == 0 ? level.bits : level.others + (part - 1) * level.length;
    const auto put = [&](int64_t word, uint64_t cells) FUSION3D_INLINE_LAMBDA {
      if (level.is_top)
        bits[word >> 6] |= bit_of(word);
      else
        bits[find_word(level.index, word)] |= cells;
    };
    for (int64_t n = part * rows; n < std::min((part + 1) * rows, level.args.num_in); ++n) {
      const int32_t* at = level.args.coords + 4 * n;
      if (!level.taps) {
        const int64_t cell = cell_at(level.args.geometry.in_shape, at[0], at[1], at[2], at[3]);
        put(cell >> 6, bit_of(cell));
        continue;
      }
      level.taps->visit_lines(at, [&](int64_t, int64_t line, const AxisTaps::Reads& along) FUSION3D_INLINE_LAMBDA {
        int64_t word = 0;
        uint64_t cells = 0;  // of the word, those that are next to each other are put at once
        level.taps->x.visit(along, [&](int32_t, int32_t x) FUSION3D_INLINE_LAMBDA {
          const int64_t cell = line + x;
          if (cells && cell >> 6 != word) {
            put(word, cells);
            cells = 0;
          }
          word = cell >> 6;
          cells |= bit_of(cell);
        });
        if (cells) put(word, cells);
      });
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
  for (int64_t n = begin; n < end; ++n) {
    const int32_t* at = args.coords + 4 * n;
    search.taps->visit_lines(at, [&](int64_t line_tap, int64_t line, const AxisTaps::Reads& along) FUSION3D_INLINE_LAMBDA {
      int32_t m = 0, before = INT32_MAX;
      search.taps->x.visit(along, [&](int32_t tap, int32_t x) FUSION3D_INLINE_LAMBDA {
        m = before - x == 1 ? m - 1 : find_voxel(search.index, line + x);  // neighbours have neighbouring ranks
        before = x;
        args.transposed[(line_tap + tap) * args.num_in + n] = m;
        args.table[(line_tap + tap) * args.num_out + m] = int32_t(n);
      });
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
    const SparseRulebook& args, VoxelIndexStorage& index, bool is_top, const Taps* taps,
    const ParallelFor& parallel_for) {
  std::vector<uint64_t>& bits = is_top ? index.top : index.words;
  const int64_t length = int64_t(bits.size()), room = 1 + kPartWords / std::max<int64_t>(length, 1);
  const int64_t parts = std::clamp<int64_t>(std::min(args.num_in / kPartRows, room), 1, kParts);
  std::vector<uint64_t> others((parts - 1) * length);
  const Level level{args, index.view(), is_top, taps, bits.data(), others.data(), length, parts};
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) { run_mark<Any>(level, begin, end); });
  parallel_for(0, length, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = begin; i < end; ++i) bits[i] |= others[(part - 1) * length + i];
  });
}

// The index of the rows' cells, or of the outputs that read them through taps.
void build(const SparseRulebook& args, VoxelIndexStorage& index, const Taps* taps, const ParallelFor& parallel_for) {
  const SparseGeometry& g = args.geometry;
  const int64_t tops = num_tops(num_cells(g.batch, taps ? g.out_shape : g.in_shape));
  index.top.assign(tops, 0);
  index.top_rank.resize(tops);
  fill(args, index, true, taps, parallel_for);
  int32_t kept = 0;
  for (int64_t i = 0; i < tops; ++i) {
    index.top_rank[i] = kept;
    kept += count_bits(index.top[i]);
  }
  index.words.assign(kept, 0);
  index.word_rank.resize(kept);
  fill(args, index, false, taps, parallel_for);
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
      int32_t bzyx[4], before = -1;
      for (uint64_t bits = index.words[i]; bits; bits &= bits - 1, out += 4) {
        const int32_t bit = __builtin_ctzll(bits);
        // Divisions for the first cell of a word, and of a line.
        if (before < 0 || (bzyx[3] += bit - before) >= args.geometry.out_shape[2])
          coords_of(args.geometry.out_shape, word * 64 + bit, bzyx);
        before = bit;
        std::copy(bzyx, bzyx + 4, out);
      }
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
  build(args, index, nullptr, parallel_for);
  if (index.num_voxels != args.num_in) return false;
  std::vector<int32_t> row(args.num_in);
  const Search search{args, index.view(), row.data(), nullptr};
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_rank<Any>(search, begin, end); });
  const SparseGeometry& g = args.geometry;
  parallel_for(0, int64_t(g.kernel[0]) * g.kernel[1] * g.kernel[2], 1, [&](int64_t begin, int64_t end) {
    std::fill(args.table + begin * args.num_out, args.table + end * args.num_out, -1);
  });
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_search<Any>(search, begin, end); });
  return true;
}

bool sparse_outputs_cpu(const SparseRulebook& args, VoxelIndexStorage& index, const ParallelFor& parallel_for) {
  build(args, index, nullptr, parallel_for);
  if (index.num_voxels != args.num_in) return false;
  const Taps taps(args.geometry);
  build(args, index, &taps, parallel_for);
  return true;
}

void sparse_strided_cpu(const SparseRulebook& args, VoxelIndexStorage& index, const ParallelFor& parallel_for) {
  const SparseGeometry& g = args.geometry;
  const Taps taps(g);
  const int64_t num_taps = int64_t(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const Search search{args, index.view(), nullptr, &taps};
  parallel_for(0, int64_t(index.top.size()), 64, [&](int64_t begin, int64_t end) {
    list_outputs(args, search.index, begin, end);
  });
  parallel_for(0, num_taps, 1, [&](int64_t begin, int64_t end) {
    std::fill(args.table + begin * args.num_out, args.table + end * args.num_out, -1);
    std::fill(args.transposed + begin * args.num_in, args.transposed + end * args.num_in, -1);
  });
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_link<Any>(search, begin, end); });
}

}  // namespace fusion3d
