// Prefix sums over the threads of a block.
#pragma once

#include "../../cuda_runtime.h"

namespace cub {

template <typename T, int kThreads>
class BlockScan {
 public:
  struct TempStorage {
    T values[kThreads];
  };

  explicit BlockScan(TempStorage& storage, emulator::Site site = emulator::Site()) : storage_(storage), site_(site) {}

  void ExclusiveSum(T input, T& output, T& total) {
    if (blockDim.x != kThreads || blockDim.y * blockDim.z != 1)
      emulator::report("BlockScan of %d threads in a block of %u", kThreads, blockDim.x);
    storage_.values[threadIdx.x] = input;
    emulator::barrier("BlockScan", site_);
    output = total = 0;
    for (unsigned i = 0; i < kThreads; ++i) {
      if (i == threadIdx.x) output = total;
      total += storage_.values[i];
    }
  }

 private:
  TempStorage& storage_;
  const emulator::Site site_;
};

}  // namespace cub
