// How CUB's functions for the whole device are called: without memory they tell how many bytes they need.
#pragma once

#include <cstring>

#include "../cuda_runtime.h"

namespace cub {

// True where there is work to do; what the caller lent holds garbage afterwards.
inline bool use_temporary(void* memory, size_t& bytes, uint64_t items, cudaError_t& error) {
  const size_t needed = 1024 + items / 8;
  error = cudaSuccess;
  if (memory == nullptr) {
    bytes = needed;
    return false;
  }
  if (bytes < needed) {
    error = cudaErrorInvalidValue;
    return false;
  }
  std::memset(memory, 0xf7, needed);
  return true;
}

}  // namespace cub
