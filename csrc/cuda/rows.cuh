// Rows of channels read by warps, in packs of neighbouring values, one a lane. Where a row takes fewer lanes than a warp has,
// the warp reads several rows at once, one in each of its slots, and adds the slots up at the end, in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "numbers.cuh"

namespace fusion3d {

// How a warp lays out over rows of `packs` packs: lane = slot * width + pack, for packs [first, first + width).
struct RowLanes {
  int slots, width, slot, pack;
  bool used;
};

__device__ inline RowLanes lanes_for(int64_t packs) {
  const int lane = threadIdx.x % kWarp, width = packs < kWarp ? int(packs) : kWarp;
  const int slots = kWarp / width, slot = lane / width;
  return {slots, width, slot, lane % width, slot < slots};
}

// The sum over slots, in order, in the lanes of slot 0.
template <typename Real, int N>
__device__ inline void join_slots(const RowLanes& lanes, Real (&sum)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    Real total = sum[n];
    for (int slot = 1; slot < lanes.slots; ++slot)
      total += __shfl_sync(kAll, sum[n], (lanes.pack + slot * lanes.width) % kWarp);
    sum[n] = total;
  }
}

template <typename T, int N>
__device__ inline void write_row(Pack<T, N>* __restrict__ out, const typename Compute<T>::Real (&sum)[N]) {
  Pack<T, N> row;
#pragma unroll
  for (int n = 0; n < N; ++n) row.value[n] = narrow<T>(sum[n]);
  *out = row;
}

// Can rows of this many channels be read in packs of N from all of these?
template <int N, typename T>
bool in_packs(int64_t channels, std::initializer_list<const void*> arrays) {
  if (channels == 0 || channels % N) return false;
  return std::all_of(arrays.begin(), arrays.end(), [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(Pack<T, N>) == 0;
  });
}

}  // namespace fusion3d
