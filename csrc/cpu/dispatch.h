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
#if defined(__x86_64__)
template <>
struct Avx2Type<Half> {
  typedef FastHalf Type;
};
#endif

// Does code for AVX2 with FMA and F16C run here? FUSION3D_BASELINE=1 in the environment, which is read once, says no.
inline bool has_avx2() {
#if defined(__x86_64__)
  static const bool yes = [] {
    const char* baseline = std::getenv("FUSION3D_BASELINE");
    return !(baseline && std::strcmp(baseline, "1") == 0) && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }();
  return yes;
#else
  return false;
#endif
}

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
#else
#define FUSION3D_DISPATCH(NAME, ARGS, TEMPLATE)             \
  template <typename T>                                     \
  void NAME(const ARGS& args, int64_t begin, int64_t end) { \
    TEMPLATE<T>(args, begin, end);                          \
  }
#endif

