// float16 for a C++ compiler: storage, and the conversions that csrc/cuda uses.
#pragma once

#include "emulated_float16.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return emulator::float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinite, or NaN
  // Multiplied by 2^112, exactly: the exponents count from -127 instead of -15, below them there is no leading one.
  return emulator::float_of(sign | emulator::bits_of(emulator::float_of(rest << 13) * 0x1p112f));
}

inline __half __float2half_rn(float value) {
  const uint32_t bits = emulator::bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {0x7fff};
  if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // from halfway between the largest and 2^16 on
  // Small numbers are multiples of 2^-24: the sum with 2^-1, whose last bit that is, rounds them.
  if (rest < 0x38800000) return {uint16_t(sign | (emulator::bits_of(emulator::float_of(rest) + 0.5f) - 0x3f000000))};
  return {uint16_t(sign | (emulator::round_off(rest, 13) - (112 << 10)))};
}
