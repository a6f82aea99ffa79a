// Stable radix sort of rows by an integer key, least digit first. A stable order is unique: it does not depend on how the
// rows are shared out among the threads.
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

constexpr int kMostDigitBits = 11;  // more lists than this, and each write misses the cache
constexpr int64_t kSortParts = 16;
constexpr int64_t kSortGrain = 4096;  // fewest rows worth a part

inline int bit_width(uint64_t largest) {
  int bits = 0;
  for (; largest; largest >>= 1) ++bits;
  return bits;
}

inline int64_t sort_parts(int64_t rows) { return std::clamp<int64_t>(rows / kSortGrain, 1, kSortParts); }

// Turns counts[part][digit] into where each part's first record of each digit goes.
inline void counts_to_places(std::vector<uint32_t>& counts, int64_t parts, int64_t digits) {
  std::vector<uint32_t> place(digits + 1, 0);
  for (int64_t p = 0; p < parts; ++p)
    for (int64_t d = 0; d < digits; ++d) place[d + 1] += counts[p * digits + d];
  for (int64_t d = 0; d < digits; ++d) place[d + 1] += place[d];
  for (int64_t p = 0; p < parts; ++p)
    for (int64_t d = 0; d < digits; ++d) {
      const uint32_t count = counts[p * digits + d];
      counts[p * digits + d] = place[d];
      place[d] += count;
    }
}

// Records of the rows [0, rows), fewer than 2^32, ordered by key_of(row), which is at most `largest`; rows of one key keep
// their order. `a` and `b` have room for `rows` records each; the result is in the one that is returned.
template <typename Record, typename KeyOf>
Record* sort_rows(
    const ParallelFor& parallel_for, int64_t rows, uint64_t largest, const KeyOf& key_of, Record* a, Record* b) {
  const int bits = std::max(bit_width(largest), 1), passes = (bits + kMostDigitBits - 1) / kMostDigitBits;
  const int digit_bits = (bits + passes - 1) / passes;
  const int64_t parts = sort_parts(rows), digits = int64_t(1) << digit_bits, mask = digits - 1;
  std::vector<uint32_t> counts(parts * digits);
  for (int pass = 0, shift = 0; pass < passes; ++pass, shift += digit_bits) {
    const auto each = [&](int64_t part, const auto& visit) {
      const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
      uint32_t* mine = counts.data() + part * digits;
      if (pass == 0)
        for (int64_t i = begin; i < end; ++i) visit(mine, Record::of(key_of(i), i));
      else
        for (int64_t i = begin; i < end; ++i) visit(mine, a[i]);
    };
    std::fill(counts.begin(), counts.end(), 0u);
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p)
        each(p, [&](uint32_t* mine, const Record& record) { ++mine[record.key() >> shift & mask]; });
    });
    counts_to_places(counts, parts, digits);
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p)
        each(p, [&](uint32_t* mine, const Record& record) { b[mine[record.key() >> shift & mask]++] = record; });
    });
    std::swap(a, b);
  }
  return a;
}

}  // namespace fusion3d
