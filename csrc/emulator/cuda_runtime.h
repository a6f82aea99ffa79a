// The part of CUDA that csrc/cuda uses, for a C++ compiler; see emulator.h.
#pragma once

#include <math.h>
#include <string.h>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

// ---- host

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t emulator_set_shared_limit(const void* kernel, int bytes);

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  return emulator_set_shared_limit(reinterpret_cast<const void*>(kernel), value);
}

// ---- vectors, as aligned as on the device

struct float3 {
  float x, y, z;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- arithmetic

template <typename T>
T min(T a, T b) { return b < a ? b : a; }
template <typename T>
T max(T a, T b) { return a < b ? b : a; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __fns(unsigned bits, unsigned base, int offset) {  // the offset-th set bit from `base` on
  if (offset <= 0) emulator::report("__fns with offset %d: only positive ones are emulated", offset);
  for (unsigned i = base; i < 32; ++i)
    if (bits >> i & 1 && --offset == 0) return i;
  return 0xffffffffu;
}
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __expf(float x) { return expf(x); }

// ---- atomics of whole numbers

template <typename T>
struct EmulatorSame {
  typedef T type;
};
template <typename T>
T atomicAdd(T* at, typename EmulatorSame<T>::type value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicOr(T* at, typename EmulatorSame<T>::type bits) {
  return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED);
}
template <typename T>
T atomicMin(T* at, typename EmulatorSame<T>::type value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

// ---- blocks and warps

inline void __syncthreads(emulator::Site site = emulator::Site()) { emulator::barrier("__syncthreads", site); }

inline void __syncwarp(unsigned mask = 0xffffffffu, emulator::Site site = emulator::Site()) {
  emulator::together("__syncwarp", mask, site, nullptr, nullptr);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site()) {
  struct Lane {
    bool predicate;
    unsigned all;
  } mine = {predicate != 0, 0};
  const auto work = [](void* const (&lanes)[32], unsigned present) {
    unsigned all = 0;
    for (unsigned i = 0; i < 32; ++i)
      if (present >> i & 1 && static_cast<Lane*>(lanes[i])->predicate) all |= 1u << i;
    for (unsigned i = 0; i < 32; ++i)
      if (present >> i & 1) static_cast<Lane*>(lanes[i])->all = all;
  };
  emulator::together("__ballot_sync", mask, site, work, &mine);
  return mine.all;
}

inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site()) {
  return __ballot_sync(mask, predicate, site) != 0;
}

template <typename T>
T emulator_shuffle(const char* what, unsigned mask, T value, unsigned source, emulator::Site site) {
  struct Lane {
    T value;
    unsigned source;
    T result;
  } mine = {value, source, value};
  const auto work = [](void* const (&lanes)[32], unsigned present) {
    for (unsigned i = 0; i < 32; ++i) {
      if (!(present >> i & 1)) continue;
      Lane& lane = *static_cast<Lane*>(lanes[i]);
      if (!(present >> lane.source & 1))
        emulator::report("lane %u reads of lane %u, which takes no part", i, lane.source);
      lane.result = static_cast<Lane*>(lanes[lane.source])->value;
    }
  };
  emulator::together(what, mask, site, work, &mine);
  return mine.result;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, emulator::Site site = emulator::Site()) {
  return emulator_shuffle("__shfl_sync", mask, value, unsigned(source) % 32, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, emulator::Site site = emulator::Site()) {
  return emulator_shuffle("__shfl_xor_sync", mask, value, (emulator::lane() ^ unsigned(bits)) % 32, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, emulator::Site site = emulator::Site()) {
  const unsigned lane = emulator::lane();
  return emulator_shuffle("__shfl_up_sync", mask, value, lane < by ? lane : lane - by, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, emulator::Site site = emulator::Site()) {
  const unsigned lane = emulator::lane();
  return emulator_shuffle("__shfl_down_sync", mask, value, lane + by > 31 ? lane : lane + by, site);
}
