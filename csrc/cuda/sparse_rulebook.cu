// Neighbour tables on CUDA: voxels are put into the index's bitmaps by atomic OR, whose order does not show, ranks come from
// prefix sums, and each table entry from one look-up. A thread has one row and one line of taps along x.
#include "fusion3d/sparse_rulebook.h"

#include <thrust/iterator/transform_iterator.h>

#include <algorithm>
#include <cub/device/device_scan.cuh>

#include "numbers.cuh"
#include "scratch.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kMostLines = 65535;  // of a launch; kernels stride over the rest

struct Count {
  __host__ __device__ int32_t operator()(uint64_t bits) const { return count_bits(bits); }
};

// The index in scratch memory. Both bitmaps end with an empty entry, so that the last rank is the total.
struct Index {
  VoxelIndex view;
  int32_t* row;  // [num_in] row of the voxel of each rank; submanifold
  void* sums;    // for the prefix sums
  size_t sums_bytes;
  int64_t tops, words, bytes;
};

cudaError_t sum_ranks(
    const uint64_t* bits, int32_t* rank, int64_t count, void* sums, size_t& bytes, cudaStream_t stream) {
  const auto counts = thrust::make_transform_iterator(bits, Count());
  return cub::DeviceScan::ExclusiveSum(sums, bytes, counts, rank, count, stream);
}

Index lay_out(const SparseRulebook& args, void* scratch, bool submanifold) {
  const SparseGeometry& g = args.geometry;
  const int64_t cells = num_cells(g.batch, submanifold ? g.in_shape : g.out_shape);
  Index index = {};
  index.tops = num_tops(cells);
  index.words = std::min(num_words(cells), args.num_in * (submanifold ? 1 : most_outputs(g)));
  Arena arena(scratch);
  index.view.top = arena.take<uint64_t>(index.tops + 1);
  index.view.words = arena.take<uint64_t>(index.words + 1);
  index.view.top_rank = arena.take<int32_t>(index.tops + 1);
  index.view.word_rank = arena.take<int32_t>(index.words + 1);
  if (submanifold) index.row = arena.take<int32_t>(args.num_in);
  const int64_t most = std::max(index.tops, index.words) + 1;
  sum_ranks(index.view.words, index.view.word_rank, most, nullptr, index.sums_bytes, nullptr);
  index.sums = arena.take<unsigned char>(int64_t(index.sums_bytes));
  index.bytes = int64_t(arena.bytes());
  return index;
}

// use(tap, output cell) for each output that reads the input through a tap of the line (kz, ky).
template <typename Use>
__device__ void visit_line(const SparseGeometry& g, const int4& at, int32_t line, const Use& use) {
  const int32_t z = output_through(g, 0, at.y, line / g.kernel[1]);
  const int32_t y = output_through(g, 1, at.z, line % g.kernel[1]);
  if (z < 0 || y < 0) return;
  const int64_t first = cell_at(g.out_shape, at.x, z, y, 0);
  for (int32_t k = 0; k < g.kernel[2]; ++k) {
    const int32_t x = output_through(g, 2, at.w, k);
    if (x >= 0) use(int64_t(line) * g.kernel[2] + k, first + x);
  }
}

__device__ int4 load_coords(const SparseRulebook& args, int64_t n) {
  const int32_t* at = args.coords + 4 * n;  // a view into other memory: not aligned as int4 would have to be
  return make_int4(at[0], at[1], at[2], at[3]);
}

__device__ bool is_in_grid(const SparseGeometry& g, const int4& at) {
  const int32_t bzyx[4] = {at.x, at.y, at.z, at.w};
  return is_inside(g.batch, g.in_shape, bzyx);
}

// Marks the cells of inputs (submanifold) or outputs: in `top`, or with kWords in the words that `top` keeps.
template <bool kSubmanifold, bool kWords>
__global__ void mark(SparseRulebook args, VoxelIndex index) {
  const SparseGeometry& g = args.geometry;
  const auto put = [&](int64_t, int64_t cell) {
    uint64_t* at = kWords ? index.words + find_word(index, cell >> 6) : index.top + (cell >> 12);
    const uint64_t bit = kWords ? bit_of(cell) : bit_of(cell >> 6);
    if (!(*at & bit)) atomicOr(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(bit));
  };
  for (int64_t n = first_thread(); n < args.num_in; n += all_threads()) {
    const int4 at = load_coords(args, n);
    if (!is_in_grid(g, at)) continue;
    if (kSubmanifold) {
      put(0, cell_at(g.in_shape, at.x, at.y, at.z, at.w));
    } else {
      for (int32_t line = blockIdx.y; line < g.kernel[0] * g.kernel[1]; line += gridDim.y) visit_line(g, at, line, put);
    }
  }
}

__global__ void rank_rows(SparseRulebook args, VoxelIndex index, int32_t* row) {
  for (int64_t n = first_thread(); n < args.num_in; n += all_threads()) {
    const int4 at = load_coords(args, n);
    if (!is_in_grid(args.geometry, at)) continue;
    atomicMin(row + find_voxel(index, cell_at(args.geometry.in_shape, at.x, at.y, at.z, at.w)), int32_t(n));
  }
}

__global__ void search_rows(SparseRulebook args, VoxelIndex index, const int32_t* __restrict__ row) {
  const SparseGeometry& g = args.geometry;
  for (int64_t m = first_thread(); m < args.num_out; m += all_threads()) {
    const int4 said = load_coords(args, m);
    const bool valid = is_in_grid(g, said);
    const int4 at = valid ? said : make_int4(0, 0, 0, 0);
    for (int32_t line = blockIdx.y; line < g.kernel[0] * g.kernel[1]; line += gridDim.y) {
      const int32_t z = at.y - g.padding[0] + line / g.kernel[1] * g.dilation[0];
      const int32_t y = at.z - g.padding[1] + line % g.kernel[1] * g.dilation[1];
      const bool inside = valid && uint32_t(z) < uint32_t(g.in_shape[0]) && uint32_t(y) < uint32_t(g.in_shape[1]);
      const int64_t first = inside ? cell_at(g.in_shape, at.x, z, y, 0) : 0;
      int32_t* entry = args.table + int64_t(line) * g.kernel[2] * args.num_out + m;
      for (int32_t k = 0; k < g.kernel[2]; ++k, entry += args.num_out) {
        const int32_t x = at.w - g.padding[2] + k * g.dilation[2];
        int32_t found = -1;
        if (inside && uint32_t(x) < uint32_t(g.in_shape[2])) {
          const int32_t rank = find_voxel(index, first + x);
          if (rank >= 0) found = row[rank];
        }
        *entry = found;
      }
    }
  }
}

// Both tables, over tables full of -1, and the outputs' coordinates: whoever writes an output's writes the same.
__global__ void link_rows(SparseRulebook args, VoxelIndex index) {
  const SparseGeometry& g = args.geometry;
  int4* out_coords = reinterpret_cast<int4*>(args.out_coords);
  for (int64_t n = first_thread(); n < args.num_in; n += all_threads()) {
    const int4 at = load_coords(args, n);
    if (!is_in_grid(g, at)) continue;
    for (int32_t line = blockIdx.y; line < g.kernel[0] * g.kernel[1]; line += gridDim.y) {
      visit_line(g, at, line, [&](int64_t k, int64_t cell) {
        const int32_t m = find_voxel(index, cell);
        args.transposed[k * args.num_in + n] = m;
        // Inputs with one cell share outputs and taps; the first of them stays (-1 is the largest unsigned number).
        atomicMin(reinterpret_cast<unsigned*>(args.table + k * args.num_out + m), unsigned(n));
        int32_t bzyx[4];
        coords_of(g.out_shape, cell, bzyx);
        out_coords[m] = make_int4(bzyx[0], bzyx[1], bzyx[2], bzyx[3]);
      });
    }
  }
}

dim3 grid_of(const SparseRulebook& args, int64_t rows, bool lines) {
  const int64_t most = int64_t(args.geometry.kernel[0]) * args.geometry.kernel[1];
  return dim3(unsigned(blocks_for(rows, kThreads)), lines ? unsigned(std::min<int64_t>(most, kMostLines)) : 1);
}

template <bool kSubmanifold>
cudaError_t build(const SparseRulebook& args, Index& index, cudaStream_t stream) {
  const dim3 grid = grid_of(args, args.num_in, !kSubmanifold);
  const VoxelIndex& view = index.view;
  cudaError_t error = cudaMemsetAsync(view.top, 0, 8 * (index.tops + 1), stream);
  if (error == cudaSuccess) error = cudaMemsetAsync(view.words, 0, 8 * (index.words + 1), stream);
  if (error != cudaSuccess) return error;
  mark<kSubmanifold, false><<<grid, kThreads, 0, stream>>>(args, view);
  error = sum_ranks(view.top, view.top_rank, index.tops + 1, index.sums, index.sums_bytes, stream);
  if (error != cudaSuccess) return error;
  mark<kSubmanifold, true><<<grid, kThreads, 0, stream>>>(args, view);
  error = sum_ranks(view.words, view.word_rank, index.words + 1, index.sums, index.sums_bytes, stream);
  return error == cudaSuccess ? cudaGetLastError() : error;
}

}  // namespace

int64_t sparse_scratch_cuda(const SparseRulebook& args, bool submanifold) {
  return lay_out(args, nullptr, submanifold).bytes;
}

int sparse_submanifold_cuda(const SparseRulebook& args, void* scratch, cudaStream_t stream) {
  if (args.num_in == 0) return cudaSuccess;
  Index index = lay_out(args, scratch, true);
  cudaError_t error = build<true>(args, index, stream);
  if (error == cudaSuccess) error = cudaMemsetAsync(index.row, 0x7f, 4 * args.num_in, stream);
  if (error != cudaSuccess) return error;
  rank_rows<<<grid_of(args, args.num_in, false), kThreads, 0, stream>>>(args, index.view, index.row);
  search_rows<<<grid_of(args, args.num_out, true), kThreads, 0, stream>>>(args, index.view, index.row);
  return cudaGetLastError();
}

int sparse_outputs_cuda(const SparseRulebook& args, void* scratch, int64_t* num_out, cudaStream_t stream) {
  *num_out = 0;
  if (args.num_in == 0) return cudaSuccess;
  Index index = lay_out(args, scratch, false);
  cudaError_t error = build<false>(args, index, stream);
  if (error != cudaSuccess) return error;
  int32_t total = 0;
  error = cudaMemcpyAsync(&total, index.view.word_rank + index.words, 4, cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  *num_out = total;
  return error;
}

int sparse_strided_cuda(const SparseRulebook& args, void* scratch, cudaStream_t stream) {
  if (args.num_in == 0) return cudaSuccess;
  const SparseGeometry& g = args.geometry;
  const int64_t taps = int64_t(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const Index index = lay_out(args, scratch, false);
  cudaError_t error = cudaMemsetAsync(args.transposed, 0xff, 4 * taps * args.num_in, stream);
  if (error == cudaSuccess && args.num_out > 0)
    error = cudaMemsetAsync(args.table, 0xff, 4 * taps * args.num_out, stream);
  if (error != cudaSuccess || args.num_out == 0) return error;
  link_rows<<<grid_of(args, args.num_in, true), kThreads, 0, stream>>>(args, index.view);
  return cudaGetLastError();
}

}  // namespace fusion3d
