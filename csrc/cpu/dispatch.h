// How a worker of a CPU kernel is chosen: by the dtype of its tensors, and by what the processor can do.
#pragma once

#include <cstdlib>
#include <cstring>

#include "fusion3d/dtype.h"
#include "vector.h"

namespace fusion3d {

// worker(zero) with a value of the storage type.
template <typename Worker>
FUSION3D_INLINE void for_dtype(Dtype dtype, const Worker& worker) {
  switch (dtype) {
    case Dtype::kFloat16: return worker(Half());
    case Dtype::kBFloat16: return worker(BFloat16());
    case Dtype::kFloat32: return worker(float());
    case Dtype::kFloat64: return worker(double());
  }
}

// What stands for a storage type in code for AVX2.
template <typename T>
struct Avx2Type {
  typedef T Type;
};
// The same in code for AVX-512.
template <typename T>
struct Avx512Type : Avx2Type<T> {};
#if defined(__x86_64__)
template <>
struct Avx2Type<Half> {
  typedef FastHalf Type;
};
template <>
struct Avx512Type<float> {
  typedef WideFloat Type;
};
template <>
struct Avx512Type<BFloat16> {
  typedef WideBFloat16 Type;
};
#endif

// What code runs here: 2 that for AVX-512, 1 for AVX2 with FMA and F16C, 0 the baseline. FUSION3D_SIMD in the environment,
// which is read once, says "avx2" or "baseline" for less than the processor has.
inline int simd_level() {
#if defined(__x86_64__)
  static const int level = [] {
    const char* most = std::getenv("FUSION3D_SIMD");
    const bool baseline = most && std::strcmp(most, "baseline") == 0, avx2 = most && std::strcmp(most, "avx2") == 0;
    if (baseline || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide && !avx2 ? 2 : 1;
  }();
  return level;
#else
  return 0;
#endif
}
inline bool has_avx2() { return simd_level() >= 1; }
inline bool has_avx512() { return simd_level() >= 2; }

}  // namespace fusion3d

// NAME(args, begin, end) runs TEMPLATE<T>, compiled twice: for the baseline, and for AVX2 with FMA where the processor has
// it. What TEMPLATE calls must be FUSION3D_INLINE to take the instruction set along.
#if defined(__x86_64__)
#define FUSION3D_DISPATCH(NAME, ARGS, TEMPLATE)                                                        \
  template <typename T>                                                                                \
  void NAME##_baseline(const ARGS& args, int64_t begin, int64_t end) {                                 \
    TEMPLATE<T>(args, begin, end);                                                                     \
  }                                                                                                    \
  template <typename T>                                                                                \
  __attribute__((target("avx2,fma"))) void NAME##_avx2(const ARGS& args, int64_t begin, int64_t end) { \
    TEMPLATE<typename Avx2Type<T>::Type>(args, begin, end);                                            \
  }                                                                                                    \
  template <typename T>                                                                                \
  void NAME(const ARGS& args, int64_t begin, int64_t end) {                                            \
    has_avx2() ? NAME##_avx2<T>(args, begin, end) : NAME##_baseline<T>(args, begin, end);              \
  }
// The same with a third time for AVX-512, which runs where the processor has it and `is_wide(args)`: where there are enough
// numbers side by side to fill its vectors.
#define FUSION3D_DISPATCH_WIDE(NAME, ARGS, TEMPLATE)                                                    \
  FUSION3D_DISPATCH(NAME##_narrow, ARGS, TEMPLATE)                                                      \
  template <typename T>                                                                                 \
  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) void NAME##_avx512(            \
      const ARGS& args, int64_t begin, int64_t end) {                                                   \
    TEMPLATE<typename Avx512Type<T>::Type>(args, begin, end);                                           \
  }                                                                                                     \
  template <typename T>                                                                                 \
  void NAME(const ARGS& args, int64_t begin, int64_t end) {                                             \
    has_avx512() && is_wide(args) ? NAME##_avx512<T>(args, begin, end) : NAME##_narrow<T>(args, begin, end); \
  }
#else
#define FUSION3D_DISPATCH_WIDE FUSION3D_DISPATCH
#define FUSION3D_DISPATCH(NAME, ARGS, TEMPLATE)             \
  template <typename T>                                     \
  void NAME(const ARGS& args, int64_t begin, int64_t end) { \
    TEMPLATE<T>(args, begin, end);                          \
  }
#endif

