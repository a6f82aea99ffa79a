// Rows grouped by key, and the reduction of each group.
//
// A segment is the rows of one key, in the order of the rows. Every output element has one owner (a segment forward, a row
// backward): nothing is atomic, and results are the same to the bit for any number of threads.
#pragma once

#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"
#include "fusion3d/portable.h"

namespace fusion3d {

struct SegmentKeys {
  const void* keys;  // [P] int32 or int64; rows of a key outside of [0, num_keys) belong to no segment
  bool wide;         // int64
  int64_t rows;      // P, fewer than 2^31
  int64_t num_keys;
  bool keep_empty;  // every key has a segment; else only those that occur
};

// Contiguous outputs. With keep_empty there are num_keys segments and `order` has all rows, those of no segment last.
struct SegmentOutputs {
  int32_t* order;    // [K] rows, segment by segment
  int32_t* ptr;      // [S + 1] the rows of segment i are order[ptr[i]], ..., order[ptr[i + 1] - 1]
  void* key;         // [S] of the type of the keys
  int32_t* segment;  // [P] of each row, -1 where it belongs to none
};

enum class Reduce { kSum, kMean, kMax };

struct SegmentReduce {
  Dtype dtype;
  Reduce reduce;
  int64_t segments;
  int64_t channels;
  const void* values;    // [P, C]
  const int32_t* order;  // [at least ptr[S]]
  const int32_t* ptr;    // [S + 1]
  void* out;             // [S, C], 0 for an empty segment
  int32_t* arg;          // [S, C] row of the first largest value, -1 for an empty segment; null unless kMax
};

struct SegmentReduceBackward {
  Dtype dtype;
  Reduce reduce;
  int64_t rows;
  int64_t channels;
  const void* grad_out;    // [S, C]
  const int32_t* ptr;      // [S + 1]
  const int32_t* segment;  // [P]
  const int32_t* arg;      // [S, C] for kMax
  void* grad_values;       // [P, C], 0 for rows of no segment
};

// The key by which a row is sorted: rows of no segment come last.
FUSION3D_SHARED uint64_t sort_key(int64_t key, int64_t num_keys) {
  return uint64_t(key) < uint64_t(num_keys) ? uint64_t(key) : uint64_t(num_keys);
}

// Does v take the place of `best`, which came before it? The first of equals stays, and so does the first NaN.
template <typename Real>
FUSION3D_SHARED bool exceeds(Real v, Real best) {
  return v > best || (v != v && best == best);
}

constexpr int64_t kSegmentParts = 128;  // of a pass over sorted rows, shared out among the threads

// CPU. Sorting comes first and says how large the outputs are; `scratch` holds segment_scratch_bytes.
struct SegmentSort {
  const void* sorted;                        // records, in the scratch
  int64_t inside;                            // K: rows that belong to a segment
  int64_t segments;                          // S
  int64_t first_segment[kSegmentParts + 1];  // segments that begin before each part of the sorted rows
};
int64_t segment_scratch_bytes(const SegmentKeys& input);
SegmentSort segment_sort_cpu(const SegmentKeys& input, const ParallelFor& parallel_for, void* scratch);
void segment_write_cpu(
    const SegmentKeys& input, const SegmentSort& sort, const ParallelFor& parallel_for, const SegmentOutputs& out);

// The first segment of part `part` of `parts` parts of about equal work.
int64_t segment_part(const SegmentReduce& args, int64_t part, int64_t parts);
void segment_reduce_cpu(const SegmentReduce& args, int64_t begin, int64_t end);                    // of the segments
void segment_reduce_backward_prepare_cpu(const SegmentReduceBackward& args);                       // comes first
void segment_reduce_backward_cpu(const SegmentReduceBackward& args, int64_t begin, int64_t end);  // of the rows

// CUDA, on device pointers and the given stream, without synchronisation unless said. All return a cudaError_t.
// With scratch null, segment_sort_cuda only says how many bytes it needs. The counts are {K, S}, on the device.
int segment_sort_cuda(const SegmentKeys& input, void* scratch, size_t* bytes, cudaStream_t stream);
int segment_counts_cuda(const SegmentKeys& input, const void* scratch, int32_t* counts, cudaStream_t stream);  // waits
int segment_write_cuda(const SegmentKeys& input, const void* scratch, const SegmentOutputs& out, cudaStream_t stream);
int segment_reduce_cuda(const SegmentReduce& args, cudaStream_t stream);
int segment_reduce_backward_cuda(const SegmentReduceBackward& args, cudaStream_t stream);

}  // namespace fusion3d
