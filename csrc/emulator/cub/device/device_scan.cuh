// Prefix sums over arrays; input and output may be the same.
#pragma once

#include <type_traits>

#include "../temporary.h"

namespace cub {

struct DeviceScan {
  template <typename Input, typename Output>
  static cudaError_t InclusiveSum(
      void* memory, size_t& bytes, Input input, Output output, int64_t count, cudaStream_t = nullptr) {
    return sum(memory, bytes, input, output, count, true);
  }

  template <typename Input, typename Output>
  static cudaError_t ExclusiveSum(
      void* memory, size_t& bytes, Input input, Output output, int64_t count, cudaStream_t = nullptr) {
    return sum(memory, bytes, input, output, count, false);
  }

 private:
  template <typename Input, typename Output>
  static cudaError_t sum(void* memory, size_t& bytes, Input input, Output output, int64_t count, bool inclusive) {
    cudaError_t error;
    if (!use_temporary(memory, bytes, uint64_t(count), error)) return error;
    std::decay_t<decltype(input[0])> total = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto before = total;
      total += input[i];
      output[i] = inclusive ? total : before;
    }
    return error;
  }
};

}  // namespace cub
