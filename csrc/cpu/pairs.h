// The pairs of a neighbour table: rows that have a neighbour, and where the features of both are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusion3d {

#if defined(__x86_64__)
// Byte j of of[none] is the place of the j-th bit that is 0.
struct FreeLanes {
  uint64_t of[256] = {};
  constexpr FreeLanes() {
    for (int none = 0; none < 256; ++none)
      for (int lane = 0, j = 0; lane < 8; ++lane)
        if (!(none >> lane & 1)) of[none] |= uint64_t(lane) << 8 * j++;
  }
};
inline constexpr FreeLanes kFreeLanes;

// Eight entries at once: those with a neighbour move to the front, and all eight are written. There is room for them, since
// no more rows have been listed than seen.
__attribute__((target("avx2,popcnt"))) inline int64_t list_eights(
    const int32_t* table, int64_t rows, int64_t first, int32_t* row, int32_t* neighbour) {
  int64_t count = 0;
  __m256i at = _mm256_add_epi32(_mm256_set1_epi32(int32_t(first)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  for (int64_t r = 0; r + 8 <= rows; r += 8, at = _mm256_add_epi32(at, _mm256_set1_epi32(8))) {
    const __m256i n = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table + r));
    const int none = _mm256_movemask_ps(_mm256_castsi256_ps(n));
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(kFreeLanes.of[none])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + count), _mm256_permutevar8x32_epi32(at, lanes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(neighbour + count), _mm256_permutevar8x32_epi32(n, lanes));
    count += 8 - __builtin_popcount(unsigned(none));
  }
  return count;
}
#endif

// Lists the rows, counted from `first` on, whose entry of the table is not -1, with that entry; returns how many there are.
inline int64_t list_pairs(const int32_t* table, int64_t rows, int64_t first, int32_t* row, int32_t* neighbour) {
  int64_t count = 0, r = 0;
#if defined(__x86_64__)
  if (has_avx2()) {
    count = list_eights(table, rows, first, row, neighbour);
    r = rows / 8 * 8;
  }
#endif
  for (; r < rows; ++r) {
    row[count] = int32_t(first + r);
    neighbour[count] = table[r];
    count += table[r] >= 0;
  }
  return count;
}

// Rows of features, as the blocks of a product read them.
template <typename T>
struct Features {
  typedef typename Compute<T>::Real Real;

  const T* data;
  int64_t channels;
  int64_t width;  // numbers that are read of a row; those beyond `channels` have no meaning

  // A row is read where it is if it holds enough numbers of the type that is computed in, else from a copy.
  static constexpr bool kHolds = std::is_same<T, Real>::value || std::is_same<T, WideFloat>::value;
  FUSION3D_INLINE bool is_read_in_place() const { return kHolds && width == channels; }

  FUSION3D_INLINE void prefetch(const int32_t* row, int64_t count) const {
    const int64_t bytes = std::min<int64_t>(channels * sizeof(T), 512);
    for (int64_t i = 0; i < count; ++i) {
      const char* at = reinterpret_cast<const char*>(data + int64_t(row[i]) * channels);
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
      if (bytes % 64) __builtin_prefetch(at + bytes - 1);
    }
  }

  // Where to read the rows; `space` has room for their copies.
  FUSION3D_INLINE void find(const int32_t* row, int64_t count, Real* space, const Real** found) const {
    if (is_read_in_place()) {
      for (int64_t i = 0; i < count; ++i) found[i] = reinterpret_cast<const Real*>(data + int64_t(row[i]) * channels);
      return;
    }
    constexpr int64_t kLanes = sizeof(typename Compute<T>::Vector) / sizeof(Real);
    for (int64_t i = 0; i < count; ++i, space += width) {
      const T* from = data + int64_t(row[i]) * channels;
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) store(space + c, load(from + c));
      for (; c < channels; ++c) space[c] = load_one(from + c);
      found[i] = space;
    }
  }
};

}  // namespace fusion3d
