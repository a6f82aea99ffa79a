// Neighbour tables on the CPU. The index of voxels (see sparse_index.h) stays in the caches; voxels are put in by one thread,
// which takes less time than to share the bits out, and are looked up by all.
#include "fusion3d/sparse_rulebook.h"

#include <algorithm>

#include "dispatch.h"

namespace fusion3d {
namespace {

constexpr int64_t kRowGrain = 1024;  // fewest rows worth a thread

#define FUSION3D_INLINE_LAMBDA __attribute__((always_inline))

struct Build {
  const SparseRulebook& args;
  VoxelIndexStorage& index;
};

struct Search {
  const SparseRulebook& args;
  VoxelIndex index;
  const int32_t* row;  // [num_in] the row of the voxel of each rank
};

// The index of the cells that each(put) calls put with; it is called twice.
template <typename Each>
FUSION3D_INLINE void build(VoxelIndexStorage& index, int64_t cells, const Each& each) {
  const int64_t tops = num_tops(cells);
  index.top.assign(tops, 0);
  index.top_rank.resize(tops);
  uint64_t* top = index.top.data();
  each([&](int64_t cell) FUSION3D_INLINE_LAMBDA { top[cell >> 12] |= bit_of(cell >> 6); });
  int32_t kept = 0;
  for (int64_t i = 0; i < tops; ++i) {
    index.top_rank[i] = kept;
    kept += count_bits(top[i]);
  }
  index.words.assign(kept, 0);
  index.word_rank.resize(kept);
  const VoxelIndex view = index.view();
  each([&](int64_t cell) FUSION3D_INLINE_LAMBDA { view.words[find_word(view, cell >> 6)] |= bit_of(cell); });
  int64_t total = 0;
  for (int32_t i = 0; i < kept; ++i) {
    index.word_rank[i] = int32_t(total);
    total += count_bits(index.words[i]);
  }
  index.num_voxels = total;
}

// The taps of each axis that read one input, and their outputs.
struct Taps {
  explicit Taps(const SparseGeometry& g) : out(g.kernel[0] + g.kernel[1] + g.kernel[2]), tap(out.size()) {
    first[0] = 0;
    for (int axis = 0; axis < 3; ++axis) first[axis + 1] = first[axis] + g.kernel[axis];
  }

  FUSION3D_INLINE void find(const SparseGeometry& g, const int32_t* zyx) {
    for (int axis = 0; axis < 3; ++axis) {
      // As output_through, with one division for all taps.
      int32_t n = first[axis], o = (zyx[axis] + g.padding[axis]) / g.stride[axis];
      int32_t rest = (zyx[axis] + g.padding[axis]) - o * g.stride[axis];
      for (int32_t k = 0; k < g.kernel[axis] && o >= 0; ++k) {
        if (rest == 0 && o < g.out_shape[axis]) {
          out[n] = o;
          tap[n++] = k;
        }
        rest -= g.dilation[axis];
        for (; rest < 0; rest += g.stride[axis]) --o;
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

template <typename>
FUSION3D_INLINE void index_inputs(const Build& b, int64_t begin, int64_t end) {
  const SparseGeometry& g = b.args.geometry;
  build(b.index, num_cells(g.batch, g.in_shape), [&](const auto& put) FUSION3D_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; ++n) {
      const int32_t* at = b.args.coords + 4 * n;
      put(cell_at(g.in_shape, at[0], at[1], at[2], at[3]));
    }
  });
}

template <typename>
FUSION3D_INLINE void index_outputs(const Build& b, int64_t begin, int64_t end) {
  const SparseGeometry& g = b.args.geometry;
  Taps taps(g);
  build(b.index, num_cells(g.batch, g.out_shape), [&](const auto& put) FUSION3D_INLINE_LAMBDA {
    for (int64_t n = begin; n < end; ++n) {
      taps.find(g, b.args.coords + 4 * n + 1);
      taps.visit(g, b.args.coords[4 * n], [&](int64_t, int64_t cell) FUSION3D_INLINE_LAMBDA { put(cell); });
    }
  });
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

FUSION3D_DISPATCH(run_index_inputs, Build, index_inputs)
FUSION3D_DISPATCH(run_index_outputs, Build, index_outputs)
FUSION3D_DISPATCH(run_rank, Search, rank_rows)
FUSION3D_DISPATCH(run_search, Search, search_rows)
FUSION3D_DISPATCH(run_link, Search, link_rows)

typedef float Any;  // tables have no dtype

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
  run_index_inputs<Any>(Build{args, index}, 0, args.num_in);
  if (index.num_voxels != args.num_in) return false;
  std::vector<int32_t> row(args.num_in);
  const Search search{args, index.view(), row.data()};
  run_rank<Any>(search, 0, args.num_in);
  const SparseGeometry& g = args.geometry;
  parallel_for(0, int64_t(g.kernel[0]) * g.kernel[1] * g.kernel[2], 1, [&](int64_t begin, int64_t end) {
    std::fill(args.table + begin * args.num_out, args.table + end * args.num_out, -1);
  });
  parallel_for(0, args.num_in, kRowGrain, [&](int64_t begin, int64_t end) { run_search<Any>(search, begin, end); });
  return true;
}

bool sparse_outputs_cpu(const SparseRulebook& args, VoxelIndexStorage& index) {
  run_index_inputs<Any>(Build{args, index}, 0, args.num_in);
  if (index.num_voxels != args.num_in) return false;
  run_index_outputs<Any>(Build{args, index}, 0, args.num_in);
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
