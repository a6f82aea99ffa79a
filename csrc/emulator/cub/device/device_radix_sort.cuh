// Stable sorts by some bits of unsigned keys.
#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../temporary.h"

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(
      void* memory, size_t& bytes, const Key* keys_in, Key* keys_out, const Value* values_in, Value* values_out,
      int64_t count, int begin_bit = 0, int end_bit = sizeof(Key) * 8, cudaStream_t = nullptr) {
    static_assert(std::is_unsigned_v<Key>, "other keys are not emulated");
    cudaError_t error;
    if (!use_temporary(memory, bytes, uint64_t(count), error)) return error;
    if (begin_bit < 0 || end_bit > int(sizeof(Key) * 8) || begin_bit > end_bit) return cudaErrorInvalidValue;
    const int width = end_bit - begin_bit;
    const auto digits = [&](int64_t i) {
      return width == 0 ? Key(0) : Key(Key(keys_in[i] >> begin_bit) << (sizeof(Key) * 8 - width));
    };
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), int64_t(0));
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
    for (int64_t i = 0; i < count; ++i) {
      keys_out[i] = keys_in[order[size_t(i)]];
      values_out[i] = values_in[order[size_t(i)]];
    }
    return error;
  }
};

}  // namespace cub
