// Voxelization on CUDA. One stable radix sort by sample and cell brings the points of a voxel together, in their order; a
// voxel's number by first point is a prefix sum over points of which are first. No atomics and nothing read by the host.
#include "fusion3d/voxelize.h"

#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <cstdint>

#include "numbers.cuh"
#include "scratch.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;

template <typename SortKey>
struct Workspace {
  SortKey *key, *sorted;
  int32_t *row, *order;
  uint32_t* segment;  // [P] number of voxels that begin up to each sorted point, outside ones not counted
  uint32_t* met;      // [P + 1] behind it, by one prefix sum: voxels whose first point comes before each point, and all
  int32_t* start;     // [voxels + 1] where each voxel's sorted points begin; at the end, where the last one's end
  int32_t* number;    // [P] of each voxel in the outputs, by its number in the sorted order; -1 where it is not kept
  uint32_t* kept;     // [P] voxels that are kept up to each, by key
  int32_t* offset;    // [B + 1] voxels that are kept of the samples before
  void* cub;
  size_t cub_bytes, bytes;
  SortKey outside;
  int bits;
};

template <typename SortKey>
cudaError_t lay_out(const Voxelize& args, void* scratch, Workspace<SortKey>& w) {
  const uint64_t outside = uint64_t(args.samples) * num_cells(args.grid);
  const int64_t rows = args.rows;
  w.outside = SortKey(outside);
  w.bits = key_bits(outside);
  size_t sort_bytes = 0, scan_bytes = 0;
  cudaError_t error = cub::DeviceRadixSort::SortPairs(
      nullptr, sort_bytes, static_cast<SortKey*>(nullptr), static_cast<SortKey*>(nullptr),
      static_cast<int32_t*>(nullptr), static_cast<int32_t*>(nullptr), rows, 0, w.bits);
  if (error != cudaSuccess) return error;
  error = cub::DeviceScan::InclusiveSum(
      nullptr, scan_bytes, static_cast<uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr), 2 * rows + 1);
  if (error != cudaSuccess) return error;
  Arena arena(scratch);
  w.key = arena.take<SortKey>(rows);
  w.sorted = arena.take<SortKey>(rows);
  w.row = arena.take<int32_t>(rows);
  w.order = arena.take<int32_t>(rows);
  w.segment = arena.take<uint32_t>(2 * rows + 1);
  w.met = scratch ? w.segment + rows : nullptr;
  w.start = arena.take<int32_t>(rows + 1);
  w.number = arena.take<int32_t>(rows);
  w.kept = arena.take<uint32_t>(rows);
  w.offset = arena.take<int32_t>(args.samples + 1);
  w.cub_bytes = sort_bytes > scan_bytes ? sort_bytes : scan_bytes;
  w.cub = arena.take<unsigned char>(int64_t(w.cub_bytes));
  w.bytes = arena.bytes();
  return cudaSuccess;
}

template <typename T, typename SortKey>
__global__ void make_keys(Voxelize args, Workspace<SortKey> w) {
  const T* __restrict__ points = static_cast<const T*>(args.points);
  const SortKey cells = SortKey(num_cells(args.grid));
  for (int64_t i = first_thread(); i < args.rows; i += all_threads()) {
    const T* p = points + i * args.stride;
    const int64_t sample = sample_of(args.batch_ptr, args.samples, i);
    uint32_t cell = 0;
    const bool inside =
        cell_of(args.grid, float(widen(p[0])), float(widen(p[1])), float(widen(p[2])), &cell) && sample >= 0;
    w.key[i] = inside ? SortKey(sample) * cells + SortKey(cell) : w.outside;
    w.row[i] = int32_t(i);
  }
}

template <typename SortKey>
__device__ bool begins(const Workspace<SortKey>& w, int64_t i) {
  return w.sorted[i] != w.outside && (i == 0 || w.sorted[i] != w.sorted[i - 1]);
}

// The sort is stable: the point that begins a voxel's points is its first. Each row has one sorted place, so one writer.
template <typename SortKey>
__global__ void mark_first(Voxelize args, Workspace<SortKey> w) {
  for (int64_t i = first_thread(); i < args.rows; i += all_threads()) {
    const int32_t head = begins(w, i);
    w.segment[i] = head;
    w.met[w.order[i] + 1] = head;
    if (i == 0) w.met[0] = 0;
  }
}

// Rows of the batch pointer, kept within the cloud whatever it holds.
__device__ int64_t bound_of(const Voxelize& args, int64_t b) {
  if (!args.batch_ptr) return b == 0 ? 0 : args.rows;
  const int64_t bound = args.batch_ptr[b];
  return bound < 0 ? 0 : bound > args.rows ? args.rows : bound;
}

// By one block: where each sample's voxels begin in the outputs.
__global__ void place_samples(Voxelize args, const uint32_t* met, int32_t* offset) {
  typedef cub::BlockScan<int32_t, kThreads> Scan;
  __shared__ typename Scan::TempStorage storage;
  int32_t before = 0;
  for (int64_t first = 0; first < args.samples; first += kThreads) {
    const int64_t b = first + threadIdx.x;
    int32_t count = 0, place, total;
    if (b < args.samples) {
      const int64_t found = int32_t(met[bound_of(args, b + 1)] - met[bound_of(args, b)]);
      count = int32_t(found < 0 ? 0 : found < args.max_voxels ? found : args.max_voxels);
    }
    Scan(storage).ExclusiveSum(count, place, total);
    if (b < args.samples) offset[b] = before + place;
    before += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    offset[args.samples] = before;
    args.num_voxels[0] = int32_t(min(int64_t(before), args.capacity));
  }
}

// Start and number of each voxel, by its first sorted point; where the last one ends, by its last.
template <typename SortKey>
__global__ void number_voxels(Voxelize args, Workspace<SortKey> w) {
  const SortKey cells = SortKey(num_cells(args.grid));
  for (int64_t i = first_thread(); i < args.rows; i += all_threads()) {
    const bool head = begins(w, i);
    bool keep = false;
    if (head) {
      const int64_t sample = int64_t(w.sorted[i] / cells);
      const int64_t met = w.met[w.order[i]] - w.met[bound_of(args, sample)];
      const int64_t number = w.offset[sample] + met;
      keep = met < args.max_voxels && number < args.capacity;  // samples of a wrong batch pointer may overlap
      w.start[w.segment[i] - 1] = int32_t(i);
      w.number[w.segment[i] - 1] = keep ? int32_t(number) : -1;
    }
    const bool inside = w.sorted[i] != w.outside;
    if (inside && (i + 1 == args.rows || w.sorted[i + 1] == w.outside)) w.start[w.segment[i]] = int32_t(i + 1);
    if (args.by_key) w.kept[i] = keep;
  }
}

// Numbers by key instead; `kept` has been summed up.
template <typename SortKey>
__global__ void renumber(Voxelize args, Workspace<SortKey> w) {
  for (int64_t i = first_thread(); i < args.rows; i += all_threads())
    if (begins(w, i) && w.number[w.segment[i] - 1] >= 0) w.number[w.segment[i] - 1] = int32_t(w.kept[i]) - 1;
}

// How many points a voxel keeps, by its number in the sorted order.
template <typename SortKey>
__device__ int32_t kept_points(const Voxelize& args, const Workspace<SortKey>& w, int64_t v) {
  return int32_t(min(int64_t(w.start[v + 1] - w.start[v]), args.max_points));
}

// Each point's voxel and rank, what is written once for each voxel, and the padding.
template <typename SortKey>
__global__ void write_points(Voxelize args, Workspace<SortKey> w) {
  const SortKey cells = SortKey(num_cells(args.grid));
  for (int64_t i = first_thread(); i < args.rows; i += all_threads()) {
    const SortKey key = w.sorted[i];
    const int32_t row = w.order[i];
    int32_t number = -1;
    int64_t rank = -1;
    if (key != w.outside) {
      const int64_t v = int64_t(w.segment[i]) - 1;
      number = w.number[v];
      rank = i - w.start[v];
      if (rank == 0 && number >= 0) {
        const SortKey sample = key / cells;
        write_coords(args.grid, int64_t(sample), uint32_t(key - sample * cells), args.coords + int64_t(number) * 4);
        args.counts[number] = kept_points(args, w, v);
      }
      if (rank >= args.max_points) number = -1;
    }
    args.voxel[row] = number;
    args.rank[row] = number < 0 ? -1 : int32_t(rank);
  }
  for (int64_t v = args.num_voxels[0] + first_thread(); v < args.capacity; v += all_threads()) {
    args.counts[v] = 0;
    for (int k = 0; k < 4; ++k) args.coords[v * 4 + k] = -1;
  }
}

// Neighbouring threads are neighbouring channels of a voxel, straight from the cloud; voxels in the sorted order.
template <typename T, typename SortKey>
__global__ void write_means(Voxelize args, Workspace<SortKey> w) {
  typedef typename Compute<T>::Real Real;
  const T* __restrict__ features = static_cast<const T*>(args.features);
  T* __restrict__ means = static_cast<T*>(args.means);
  const int64_t channels = args.channels, voxels = w.segment[args.rows - 1], kept = args.num_voxels[0];
  for (int64_t t = first_thread(); t < voxels * channels; t += all_threads()) {
    const int64_t v = t / channels, c = t % channels, number = w.number[v];
    if (number < 0) continue;
    const int64_t start = w.start[v];
    const int32_t count = kept_points(args, w, v);
    Real sum = 0;
    for (int32_t k = 0; k < count; ++k) sum += widen(features[int64_t(w.order[start + k]) * channels + c]);
    means[number * channels + c] = narrow<T>(sum / Real(count));
  }
  for (int64_t t = kept * channels + first_thread(); t < args.capacity * channels; t += all_threads())
    means[t] = narrow<T>(Real(0));
}

// Neighbouring threads are neighbouring channels of a point.
template <typename T>
__global__ void gather_rows(VoxelGather args) {
  const T* __restrict__ values = static_cast<const T*>(args.values);
  T* __restrict__ out = static_cast<T*>(args.out);
  const int64_t channels = args.channels;
  for (int64_t t = first_thread(); t < args.rows * channels; t += all_threads()) {
    const int64_t i = t / channels, slot = slot_of(args, i);
    if (slot >= 0) out[slot * channels + (t - i * channels)] = values[t];
  }
}

template <typename SortKey>
cudaError_t run(const Voxelize& args, void* scratch, size_t* bytes, cudaStream_t stream) {
  Workspace<SortKey> w;
  cudaError_t error = lay_out(args, scratch, w);
  *bytes = w.bytes;
  if (error != cudaSuccess || !scratch) return error;
  if (args.rows == 0) return cudaMemsetAsync(args.num_voxels, 0, sizeof(int32_t), stream);
  const unsigned blocks = unsigned(blocks_for(args.rows, kThreads));
  error = for_dtype(args.dtype, [&](auto zero) {
    make_keys<decltype(zero), SortKey><<<blocks, kThreads, 0, stream>>>(args, w);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  error = cub::DeviceRadixSort::SortPairs(
      w.cub, w.cub_bytes, w.key, w.sorted, w.row, w.order, args.rows, 0, w.bits, stream);
  if (error != cudaSuccess) return error;
  mark_first<<<blocks, kThreads, 0, stream>>>(args, w);
  error = cub::DeviceScan::InclusiveSum(w.cub, w.cub_bytes, w.segment, w.segment, 2 * args.rows + 1, stream);
  if (error != cudaSuccess) return error;
  place_samples<<<1, kThreads, 0, stream>>>(args, w.met, w.offset);
  number_voxels<<<blocks, kThreads, 0, stream>>>(args, w);
  if (args.by_key) {
    error = cub::DeviceScan::InclusiveSum(w.cub, w.cub_bytes, w.kept, w.kept, args.rows, stream);
    if (error != cudaSuccess) return error;
    renumber<<<blocks, kThreads, 0, stream>>>(args, w);
  }
  write_points<<<blocks, kThreads, 0, stream>>>(args, w);
  if (args.features && args.channels)
    return for_dtype(args.feature_dtype, [&](auto zero) {
      const unsigned many = unsigned(blocks_for(args.rows * args.channels, kThreads));
      write_means<decltype(zero), SortKey><<<many, kThreads, 0, stream>>>(args, w);
      return cudaGetLastError();
    });
  return cudaGetLastError();
}

}  // namespace

int voxel_gather_cuda(const VoxelGather& args, cudaStream_t stream) {
  const int64_t bytes = args.voxels * args.max_points * args.channels * size_of(args.dtype);
  if (bytes == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(args.out, 0, size_t(bytes), stream);
  if (error != cudaSuccess || args.rows == 0) return error;
  return for_dtype(args.dtype, [&](auto zero) {
    const unsigned blocks = unsigned(blocks_for(args.rows * args.channels, kThreads));
    gather_rows<decltype(zero)><<<blocks, kThreads, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

int voxelize_cuda(const Voxelize& args, void* scratch, size_t* bytes, cudaStream_t stream) {
  const uint64_t outside = uint64_t(args.samples) * num_cells(args.grid);
  return outside >> 32 ? run<uint64_t>(args, scratch, bytes, stream) : run<uint32_t>(args, scratch, bytes, stream);
}

}  // namespace fusion3d
