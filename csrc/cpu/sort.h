// Stable sort of rows by an integer key: dealt to buckets by their highest bits, then sorted bucket by bucket, least digit
// first, within the cache. A stable order is unique: it does not depend on how the rows are shared out among the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "fusion3d/parallel.h"

namespace fusion3d {

// A row and its key below 2^32, in one word.
struct NarrowRecord {
  uint64_t bits;
  static NarrowRecord of(uint64_t key, int64_t row) { return {key << 32 | uint64_t(row)}; }
  uint64_t key() const { return bits >> 32; }
  int64_t row() const { return int64_t(bits & 0xffffffffu); }
};

// The same for any key.
struct WideRecord {
  uint64_t key_, row_;
  static WideRecord of(uint64_t key, int64_t row) { return {key, uint64_t(row)}; }
  uint64_t key() const { return key_; }
  int64_t row() const { return int64_t(row_); }
};

constexpr int kMostBucketBits = 7;  // of the first pass: more buckets than this, and each write misses the cache
constexpr int kMostDigitBits = 11;  // of those within a bucket
constexpr int64_t kBucketRows = 1024;  // fewest rows worth a bucket, about
constexpr int64_t kSortParts = 16;
constexpr int64_t kSortGrain = 4096;  // fewest rows worth a part

inline int bit_width(uint64_t largest) {
  int bits = 0;
  for (; largest; largest >>= 1) ++bits;
  return bits;
}

inline int64_t sort_parts(int64_t rows) { return std::clamp<int64_t>(rows / kSortGrain, 1, kSortParts); }

// Sorts `rows` records by the lowest `bits` bits of their keys, least digit first, and leaves them in `to`; `from` is used up.
template <typename Record>
void sort_bucket(Record* from, Record* to, int64_t rows, int bits, std::vector<uint32_t>& counts) {
  const int passes = (bits + kMostDigitBits - 1) / kMostDigitBits;
  for (int pass = 0, shift = 0; pass < passes; ++pass) {
    const int digit_bits = (bits - shift) / (passes - pass);
    const uint64_t mask = (uint64_t(1) << digit_bits) - 1;
    counts.assign(mask + 1, 0);
    for (int64_t i = 0; i < rows; ++i) ++counts[from[i].key() >> shift & mask];
    uint32_t place = 0;
    for (uint32_t& count : counts) place += std::exchange(count, place);
    for (int64_t i = 0; i < rows; ++i) to[counts[from[i].key() >> shift & mask]++] = from[i];
    std::swap(from, to);
    shift += digit_bits;
  }
  if (passes % 2 == 0) std::copy(from, from + rows, to);
}

// Records of the rows [0, rows), fewer than 2^32, ordered by key_of(row), which is at most `largest`; rows of one key keep
// their order. `a` and `b` have room for `rows` records each; the result is in `b`. Rows of the key `largest` are never
// sorted, only dealt: there may be many that belong nowhere.
template <typename Record, typename KeyOf>
void sort_rows(
    const ParallelFor& parallel_for, int64_t rows, uint64_t largest, const KeyOf& key_of, Record* a, Record* b) {
  const int low_bits = std::clamp(bit_width(largest) - std::min(bit_width(rows / kBucketRows), kMostBucketBits), 0, 63);
  const int64_t parts = sort_parts(rows), buckets = int64_t(largest >> low_bits) + 2;
  std::vector<uint32_t> place(parts * buckets, 0), bound(buckets + 1);
  // Calls visit(place of the key `largest`, places of the others, row) for the rows of each part.
  const auto each_part = [&](const auto& visit) {
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        uint32_t* mine = place.data() + p * buckets;
        uint32_t none = mine[buckets - 1];  // often a long run of rows: in a register
        for (int64_t i = rows * p / parts; i < rows * (p + 1) / parts; ++i) visit(none, mine, i);
        mine[buckets - 1] = none;
      }
    });
  };
  each_part([&](uint32_t& none, uint32_t* mine, int64_t i) {
    const uint64_t key = key_of(i);
    if (key == largest)
      ++none;
    else
      ++mine[key >> low_bits];
  });
  uint32_t total = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    bound[bucket] = total;
    for (int64_t p = 0; p < parts; ++p) total += std::exchange(place[p * buckets + bucket], total);
  }
  bound[buckets] = total;
  Record* dealt = low_bits == 0 ? b : a;  // what is not to be sorted any more, to where it stays
  each_part([&](uint32_t& none, uint32_t* mine, int64_t i) {
    const uint64_t key = key_of(i);
    if (key == largest)
      b[none++] = Record::of(key, i);
    else
      dealt[mine[key >> low_bits]++] = Record::of(key, i);
  });
  if (low_bits == 0) return;
  parallel_for(0, buckets - 1, 1, [&](int64_t first, int64_t last) {
    std::vector<uint32_t> counts;
    for (int64_t bucket = first; bucket < last; ++bucket) {
      const int64_t begin = bound[bucket], size = bound[bucket + 1] - begin;
      if (size > 0) sort_bucket(a + begin, b + begin, size, low_bits, counts);
    }
  });
}

}  // namespace fusion3d
