// Grouping of rows by key on CUDA, by CUB's radix sort, and the reduction of each group by a warp. No atomics; the order of
// every sum depends on the plan alone.
#include "fusion3d/segments.h"

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <cstdint>

#include "numbers.cuh"
#include "scratch.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;

// Scratch of a sort, the same each time it is asked for. All pointers are null while the size is looked for.
template <typename SortKey>
struct Workspace {
  SortKey *key, *sorted;
  int32_t *row, *order, *number;
  void* cub;
  size_t cub_bytes, bytes;
};

template <typename SortKey>
cudaError_t lay_out(const SegmentKeys& input, void* scratch, Workspace<SortKey>& w) {
  const int bits = key_bits(uint64_t(input.num_keys));
  size_t sort_bytes = 0, scan_bytes = 0;
  cudaError_t error = cub::DeviceRadixSort::SortPairs(
      nullptr, sort_bytes, static_cast<SortKey*>(nullptr), static_cast<SortKey*>(nullptr),
      static_cast<int32_t*>(nullptr), static_cast<int32_t*>(nullptr), input.rows, 0, bits);
  if (error != cudaSuccess) return error;
  error = cub::DeviceScan::InclusiveSum(
      nullptr, scan_bytes, static_cast<int32_t*>(nullptr), static_cast<int32_t*>(nullptr), input.rows);
  if (error != cudaSuccess) return error;
  Arena arena(scratch);
  w.key = arena.take<SortKey>(input.rows);
  w.sorted = arena.take<SortKey>(input.rows);
  w.row = arena.take<int32_t>(input.rows);
  w.order = arena.take<int32_t>(input.rows);
  w.number = arena.take<int32_t>(input.rows + 2);  // of the segment of each sorted row, then K and S
  w.cub_bytes = sort_bytes > scan_bytes ? sort_bytes : scan_bytes;
  w.cub = arena.take<unsigned char>(int64_t(w.cub_bytes));
  w.bytes = arena.bytes();
  return cudaSuccess;
}

// run(zero sort key, zero key)
template <typename Run>
cudaError_t for_types(const SegmentKeys& input, const Run& run) {
  if (!input.wide) return run(uint32_t(), int32_t());
  return input.num_keys < INT32_MAX ? run(uint32_t(), int64_t()) : run(uint64_t(), int64_t());
}

template <typename SortKey, typename Key>
__global__ void make_keys(const Key* keys, int64_t rows, int64_t num_keys, SortKey* key, int32_t* row) {
  for (int64_t i = first_thread(); i < rows; i += all_threads()) {
    key[i] = SortKey(sort_key(keys[i], num_keys));
    row[i] = int32_t(i);
  }
}

// 1 where a segment begins
template <typename SortKey>
__global__ void mark_heads(const SortKey* sorted, int64_t rows, SortKey none, int32_t* number) {
  for (int64_t i = first_thread(); i < rows; i += all_threads())
    number[i] = sorted[i] != none && (i == 0 || sorted[i] != sorted[i - 1]);
}

template <typename SortKey>
__global__ void count(const SortKey* sorted, int64_t rows, SortKey none, const int32_t* number, int32_t* counts) {
  counts[0] = int32_t(lower_bound(sorted, rows, none));
  counts[1] = rows ? number[rows - 1] : 0;
}

// The pointers and keys, when every key has a segment.
template <typename SortKey, typename Key>
__global__ void write_segments(const SortKey* sorted, int64_t rows, int64_t num_keys, int32_t* ptr, Key* key) {
  for (int64_t k = first_thread(); k <= num_keys; k += all_threads()) {
    ptr[k] = int32_t(lower_bound(sorted, rows, SortKey(k)));
    if (k < num_keys) key[k] = Key(k);
  }
}

template <typename SortKey, typename Key, bool kKeepEmpty>
__global__ void write_rows(
    const SortKey* sorted, const int32_t* order, const int32_t* number, int64_t rows, SortKey none,
    SegmentOutputs out) {
  for (int64_t i = first_thread(); i < rows; i += all_threads()) {
    const SortKey key = sorted[i];
    const int32_t row = order[i];
    if (kKeepEmpty) {
      out.order[i] = row;
      out.segment[row] = key == none ? -1 : int32_t(key);
      continue;
    }
    const int32_t segment = number[i] - 1;
    if (key != none) {
      out.order[i] = row;
      if (i == 0 || sorted[i - 1] != key) {
        out.ptr[segment] = int32_t(i);
        static_cast<Key*>(out.key)[segment] = Key(key);
      }
    }
    // The pointer behind the last segment, by the last row of it.
    if (key != none && (i + 1 == rows || sorted[i + 1] == none)) out.ptr[segment + 1] = int32_t(i + 1);
    out.segment[row] = key == none ? -1 : segment;
  }
}

template <typename SortKey, typename Key>
cudaError_t sort(const SegmentKeys& input, void* scratch, size_t* bytes, cudaStream_t stream) {
  Workspace<SortKey> w;
  cudaError_t error = lay_out(input, scratch, w);
  *bytes = w.bytes;
  if (error != cudaSuccess || !scratch || input.rows == 0) return error;
  const unsigned blocks = unsigned(blocks_for(input.rows, kThreads));
  make_keys<<<blocks, kThreads, 0, stream>>>(
      static_cast<const Key*>(input.keys), input.rows, input.num_keys, w.key, w.row);
  error = cub::DeviceRadixSort::SortPairs(
      w.cub, w.cub_bytes, w.key, w.sorted, w.row, w.order, input.rows, 0, key_bits(uint64_t(input.num_keys)), stream);
  if (error != cudaSuccess || input.keep_empty) return error;
  mark_heads<<<blocks, kThreads, 0, stream>>>(w.sorted, input.rows, SortKey(input.num_keys), w.number);
  return cub::DeviceScan::InclusiveSum(w.cub, w.cub_bytes, w.number, w.number, input.rows, stream);
}

template <typename SortKey>
cudaError_t read_counts(const SegmentKeys& input, const void* scratch, int32_t* counts, cudaStream_t stream) {
  Workspace<SortKey> w;
  cudaError_t error = lay_out(input, const_cast<void*>(scratch), w);
  if (error != cudaSuccess) return error;
  int32_t* found = w.number + input.rows;
  count<<<1, 1, 0, stream>>>(w.sorted, input.rows, SortKey(input.num_keys), w.number, found);
  error = cudaMemcpyAsync(counts, found, 2 * sizeof(int32_t), cudaMemcpyDeviceToHost, stream);
  return error == cudaSuccess ? cudaStreamSynchronize(stream) : error;
}

template <typename SortKey, typename Key>
cudaError_t write(const SegmentKeys& input, const void* scratch, const SegmentOutputs& out, cudaStream_t stream) {
  Workspace<SortKey> w;
  cudaError_t error = lay_out(input, const_cast<void*>(scratch), w);
  if (error != cudaSuccess) return error;
  const unsigned blocks = unsigned(blocks_for(input.rows, kThreads));
  const SortKey none = SortKey(input.num_keys);
  if (input.keep_empty)
    write_segments<<<unsigned(blocks_for(input.num_keys + 1, kThreads)), kThreads, 0, stream>>>(
        w.sorted, input.rows, input.num_keys, out.ptr, static_cast<Key*>(out.key));
  else  // no segment at all leaves this first pointer
    error = cudaMemsetAsync(out.ptr, 0, sizeof(int32_t), stream);
  if (error != cudaSuccess) return error;
  if (input.rows && input.keep_empty)
    write_rows<SortKey, Key, true><<<blocks, kThreads, 0, stream>>>(
        w.sorted, w.order, w.number, input.rows, none, out);
  else if (input.rows)
    write_rows<SortKey, Key, false><<<blocks, kThreads, 0, stream>>>(
        w.sorted, w.order, w.number, input.rows, none, out);
  return cudaGetLastError();
}

}  // namespace

int segment_sort_cuda(const SegmentKeys& input, void* scratch, size_t* bytes, cudaStream_t stream) {
  return for_types(input, [&](auto sort_key, auto key) {
    return sort<decltype(sort_key), decltype(key)>(input, scratch, bytes, stream);
  });
}

int segment_counts_cuda(const SegmentKeys& input, const void* scratch, int32_t* counts, cudaStream_t stream) {
  return for_types(input, [&](auto sort_key, auto) {
    return read_counts<decltype(sort_key)>(input, scratch, counts, stream);
  });
}

int segment_write_cuda(const SegmentKeys& input, const void* scratch, const SegmentOutputs& out, cudaStream_t stream) {
  return for_types(input, [&](auto sort_key, auto key) {
    return write<decltype(sort_key), decltype(key)>(input, scratch, out, stream);
  });
}

}  // namespace fusion3d
