// Scratch memory handed out piece by piece; how many bits of a key a sort must look at, and where a key is once sorted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fusion3d/portable.h"

namespace fusion3d {

// With no memory it hands out null and only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t size) {
    const size_t at = used_;
    used_ += (size_t(size) * sizeof(T) + 255) / 256 * 256;
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }

  // At least 1, so that null always asks for the size.
  size_t bytes() const { return used_ ? used_ : 1; }

 private:
  char* memory_;
  size_t used_ = 0;
};

inline int key_bits(uint64_t largest) {
  int bits = 1;
  while (bits < 64 && largest >> bits) ++bits;
  return bits;
}

// How many sorted keys are below this one.
template <typename Key>
FUSION3D_SHARED int64_t lower_bound(const Key* sorted, int64_t count, Key key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace fusion3d
