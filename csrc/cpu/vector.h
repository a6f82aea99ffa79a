// Vectors of one register's width in GCC's own notation, loaded from and stored to every dtype.
// Everything here is inlined into its caller and so takes the caller's instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#define FUSION3D_INLINE inline __attribute__((always_inline))

namespace fusion3d {

// Storage types of the 16-bit dtypes.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// A Half that only code for AVX2 may touch: every such processor converts it in one instruction. It is written as assembler,
// since the compiler would not inline a function of another instruction set here.
struct FastHalf {
  uint16_t bits;
};

// Float and bfloat16 that only code for AVX-512 may touch: it computes sixteen of them at once.
struct WideFloat {
  float value;
};
struct WideBFloat16 {
  uint16_t bits;
};

typedef float Floats __attribute__((vector_size(32)));
typedef float WideFloats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint32_t WideWords __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(16)));
typedef uint16_t WideShorts __attribute__((vector_size(32)));
typedef uint16_t StoredShorts __attribute__((vector_size(16), aligned(2), may_alias));

// What each storage type T is computed in: `Real` one by one, `Vector` as many at once as a register holds.
template <typename T>
struct Compute {
  typedef float Real;
  typedef Floats Vector;
};
template <>
struct Compute<double> {
  typedef double Real;
  typedef Doubles Vector;
};
template <>
struct Compute<WideFloat> {
  typedef float Real;
  typedef WideFloats Vector;
};
template <>
struct Compute<WideBFloat16> {
  typedef float Real;
  typedef WideFloats Vector;
};
template <typename T>
constexpr int kLanes = sizeof(typename Compute<T>::Vector) / sizeof(typename Compute<T>::Real);

template <typename To, typename From>
FUSION3D_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The bits of a half as float, for one word or a vector of them. Scaling by 2^112 moves the exponent, subnormals included.
template <typename F, typename W>
FUSION3D_INLINE F half_to_float(W half) {
  const W magnitude = half & 0x7fffu;
  F scaled = bit_cast<F>(W(magnitude << 13)) * 0x1p112f;
  const W special = magnitude > 0x7bffu ? W() + 0x7f800000u : W();  // infinity and NaN
  return bit_cast<F>(bit_cast<W>(scaled) | special | (half & 0x8000u) << 16);
}

FUSION3D_INLINE float load_one(const float* p) { return *p; }
FUSION3D_INLINE double load_one(const double* p) { return *p; }
FUSION3D_INLINE float load_one(const BFloat16* p) { return bit_cast<float>(uint32_t(p->bits) << 16); }
FUSION3D_INLINE float load_one(const WideFloat* p) { return p->value; }
FUSION3D_INLINE float load_one(const WideBFloat16* p) { return bit_cast<float>(uint32_t(p->bits) << 16); }
FUSION3D_INLINE float load_one(const Half* p) { return half_to_float<float, uint32_t>(p->bits); }

#if defined(__x86_64__)
FUSION3D_INLINE float load_one(const FastHalf* p) {
  typedef uint16_t Eight __attribute__((vector_size(16)));
  typedef float Four __attribute__((vector_size(16)));
  const Eight bits = {p->bits};
  Four value;
  asm("vcvtph2ps %1, %0" : "=x"(value) : "x"(bits));
  return value[0];
}
#endif

FUSION3D_INLINE void store_one(float* p, float value) { *p = value; }
FUSION3D_INLINE void store_one(double* p, double value) { *p = value; }

FUSION3D_INLINE void store_one(WideFloat* p, float value) { p->value = value; }

// Round to nearest, ties to even; NaN stays NaN.
FUSION3D_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  return value == value ? uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) : uint16_t(0x7fc0u);
}
FUSION3D_INLINE void store_one(BFloat16* p, float value) { p->bits = to_bfloat16(value); }
FUSION3D_INLINE void store_one(WideBFloat16* p, float value) { p->bits = to_bfloat16(value); }

FUSION3D_INLINE void store_one(Half* p, float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded by the hardware
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0x0fffu + (magnitude >> 13 & 1u)) >> 13;
  }
  p->bits = uint16_t(sign | half);
}

template <typename V, typename T>
FUSION3D_INLINE V load_same(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
FUSION3D_INLINE Floats load(const float* p) { return load_same<Floats>(p); }
FUSION3D_INLINE Doubles load(const double* p) { return load_same<Doubles>(p); }
FUSION3D_INLINE WideFloats load(const WideFloat* p) { return load_same<WideFloats>(p); }
FUSION3D_INLINE Floats load(const BFloat16* p) {
  return bit_cast<Floats>(Words(__builtin_convertvector(load_same<Shorts>(p), Words) << 16));
}
FUSION3D_INLINE WideFloats load(const WideBFloat16* p) {
  return bit_cast<WideFloats>(WideWords(__builtin_convertvector(load_same<WideShorts>(p), WideWords) << 16));
}
FUSION3D_INLINE Floats load(const Half* p) {
  return half_to_float<Floats, Words>(__builtin_convertvector(load_same<Shorts>(p), Words));
}

#if defined(__x86_64__)
FUSION3D_INLINE void store_one(FastHalf* p, float value) {
  typedef uint16_t Eight __attribute__((vector_size(16)));
  typedef float Four __attribute__((vector_size(16)));
  const Four from = {value};
  Eight bits;
  asm("vcvtps2ph $0, %1, %0" : "=x"(bits) : "x"(from));
  p->bits = bits[0];
}
FUSION3D_INLINE Floats load(const FastHalf* p) {
  Floats value;
  asm("vcvtph2ps %1, %0" : "=x"(value) : "m"(*reinterpret_cast<const StoredShorts*>(p)));
  return value;
}
#endif

template <typename T, typename V>
FUSION3D_INLINE void store(T* p, const V& v) {
  for (int i = 0; i < int(sizeof(V) / sizeof(v[0])); ++i) store_one(p + i, v[i]);
}
FUSION3D_INLINE void store(float* p, const Floats& v) { std::memcpy(p, &v, sizeof(v)); }
FUSION3D_INLINE void store(float* p, const WideFloats& v) { std::memcpy(p, &v, sizeof(v)); }
FUSION3D_INLINE void store(double* p, const Doubles& v) { std::memcpy(p, &v, sizeof(v)); }
FUSION3D_INLINE void store(WideFloat* p, const WideFloats& v) { std::memcpy(p, &v, sizeof(v)); }
template <typename W, typename S, typename F>
FUSION3D_INLINE void store_rounded(void* p, const F& v) {
  const W bits = bit_cast<W>(v);
  const W rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const S out = __builtin_convertvector(v == v ? rounded : W() + 0x7fc0u, S);
  std::memcpy(p, &out, sizeof(out));
}
FUSION3D_INLINE void store(BFloat16* p, const Floats& v) { store_rounded<Words, Shorts>(p, v); }
FUSION3D_INLINE void store(WideBFloat16* p, const WideFloats& v) { store_rounded<WideWords, WideShorts>(p, v); }
#if defined(__x86_64__)
FUSION3D_INLINE void store(FastHalf* p, const Floats& v) {
  Shorts out;
  asm("vcvtps2ph $0, %1, %0" : "=x"(out) : "x"(v));
  std::memcpy(p, &out, sizeof(out));
}
#endif

template <typename V>
FUSION3D_INLINE auto sum(const V& v) {
  auto total = v[0];
  for (int i = 1; i < int(sizeof(V) / sizeof(v[0])); ++i) total += v[i];
  return total;
}

}  // namespace fusion3d
