// bfloat16 for a C++ compiler: storage, and the conversions that csrc/cuda uses.
#pragma once

#include "emulated_float16.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) { return emulator::float_of(uint32_t(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};
  return {uint16_t(emulator::round_off(emulator::bits_of(value), 16))};
}
