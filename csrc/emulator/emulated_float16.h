// Rounding to the nearest number of 16 bits, to the even one of two; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulator {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// `shift` bits fewer; what is lost rounds up past a half, and at a half where the last bit kept is odd.
inline uint32_t round_off(uint32_t bits, int shift) {
  const uint32_t half = 1u << (shift - 1), odd = bits >> shift & 1;
  return (bits + half - 1 + odd) >> shift;
}

}  // namespace emulator
