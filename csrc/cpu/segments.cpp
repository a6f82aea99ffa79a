// Grouping of rows by key on the CPU: a sort, and one pass over the sorted rows that finds where segments begin.
#include "fusion3d/segments.h"

#include <algorithm>

#include "pages.h"
#include "sort.h"

namespace fusion3d {
namespace {

constexpr int64_t kNarrow = int64_t(1) << 32;  // keys from here on need the wide record

// run(zero record, zero key)
template <typename Run>
auto for_types(const SegmentKeys& input, const Run& run) {
  if (!input.wide) return run(NarrowRecord(), int32_t());
  return input.num_keys < kNarrow ? run(NarrowRecord(), int64_t()) : run(WideRecord(), int64_t());
}

int64_t bound(int64_t rows, int64_t part) { return rows / kSegmentParts * part + rows % kSegmentParts * part / kSegmentParts; }

template <typename Record>
bool begins(const Record* sorted, int64_t i) {
  return i == 0 || sorted[i].key() != sorted[i - 1].key();
}

template <typename Record, typename Key>
SegmentSort sort(const SegmentKeys& input, const ParallelFor& parallel_for, void* scratch) {
  const Key* keys = static_cast<const Key*>(input.keys);
  Record *records = static_cast<Record*>(scratch), *sorted = records + input.rows;
  sort_rows(
      parallel_for, input.rows, uint64_t(input.num_keys),
      [&](int64_t row) { return sort_key(keys[row], input.num_keys); }, records, sorted);
  SegmentSort result = {sorted, 0, input.num_keys, {}};
  result.inside = std::partition_point(
                      sorted, sorted + input.rows,
                      [&](const Record& record) { return record.key() < uint64_t(input.num_keys); }) -
                  sorted;
  if (input.keep_empty) return result;
  parallel_for(0, kSegmentParts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      int64_t count = 0;
      for (int64_t i = bound(result.inside, part); i < bound(result.inside, part + 1); ++i) count += begins(sorted, i);
      result.first_segment[part + 1] = count;
    }
  });
  for (int64_t part = 0; part < kSegmentParts; ++part) result.first_segment[part + 1] += result.first_segment[part];
  result.segments = result.first_segment[kSegmentParts];
  return result;
}

// Sorted rows [begin, end) when every key has a segment. A row that begins a segment also ends the empty ones before it.
template <typename Record>
void write_all(const Record* sorted, int64_t begin, int64_t end, const SegmentOutputs& out) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t key = int64_t(sorted[i].key()), before = i ? int64_t(sorted[i - 1].key()) : -1;
    for (int64_t k = before + 1; k <= key; ++k) out.ptr[k] = int32_t(i);
    out.order[i] = int32_t(sorted[i].row());
  }
}

// The same for the keys that occur; `segment` is the number of segments that begin before.
template <typename Record, typename Key>
void write_occurring(
    const Record* sorted, int64_t begin, int64_t end, int64_t segment, const SegmentOutputs& out) {
  for (int64_t i = begin; i < end; ++i) {
    if (begins(sorted, i)) {
      out.ptr[segment] = int32_t(i);
      static_cast<Key*>(out.key)[segment++] = Key(sorted[i].key());
    }
    out.order[i] = int32_t(sorted[i].row());
    out.segment[sorted[i].row()] = int32_t(segment - 1);
  }
}

// What the keys [begin, end) alone say of their rows' segments: that there is none, or, when every key has one, which it is.
template <typename Key>
void write_segments(const SegmentKeys& input, int64_t begin, int64_t end, int32_t* segment) {
  const Key* keys = static_cast<const Key*>(input.keys);
  for (int64_t i = begin; i < end; ++i) {
    const bool none = uint64_t(keys[i]) >= uint64_t(input.num_keys);
    if (none || input.keep_empty) segment[i] = none ? -1 : int32_t(keys[i]);
  }
}

template <typename Record, typename Key>
void write(const SegmentKeys& input, const SegmentSort& sort, const ParallelFor& parallel_for, const SegmentOutputs& out) {
  const Record* sorted = static_cast<const Record*>(sort.sorted);
  const int64_t rows = input.keep_empty ? input.rows : sort.inside;
  parallel_for(0, kSegmentParts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      write_segments<Key>(input, bound(input.rows, part), bound(input.rows, part + 1), out.segment);
      if (input.keep_empty)
        write_all(sorted, bound(rows, part), bound(rows, part + 1), out);
      else
        write_occurring<Record, Key>(sorted, bound(rows, part), bound(rows, part + 1), sort.first_segment[part], out);
    }
  });
  if (!input.keep_empty) {
    out.ptr[sort.segments] = int32_t(rows);
    return;
  }
  const int64_t last_key = rows ? int64_t(sorted[rows - 1].key()) : -1;
  for (int64_t k = last_key + 1; k <= input.num_keys; ++k) out.ptr[k] = int32_t(rows);
  for (int64_t k = 0; k < input.num_keys; ++k) static_cast<Key*>(out.key)[k] = Key(k);
}

}  // namespace

int64_t segment_scratch_bytes(const SegmentKeys& input) {
  return for_types(input, [&](auto record, auto) { return int64_t(2 * sizeof(record)) * input.rows; });
}

SegmentSort segment_sort_cpu(const SegmentKeys& input, const ParallelFor& parallel_for, void* scratch) {
  expect_writes(scratch, segment_scratch_bytes(input));
  return for_types(input, [&](auto record, auto key) {
    return sort<decltype(record), decltype(key)>(input, parallel_for, scratch);
  });
}

void segment_write_cpu(
    const SegmentKeys& input, const SegmentSort& sort, const ParallelFor& parallel_for, const SegmentOutputs& out) {
  for_types(input, [&](auto record, auto key) {
    write<decltype(record), decltype(key)>(input, sort, parallel_for, out);
  });
}

}  // namespace fusion3d
