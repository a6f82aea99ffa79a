// 2^x and e^x on vectors, for softmax.
#pragma once

#include <cmath>

#include "vector.h"

namespace fusion3d {

// Within 1.25 units in the last place (one with FMA) for x in [-126, 127]; below, 2^-126: nothing, beside the 1 of a
// largest. NaN stays NaN.
FUSION3D_INLINE Floats exp2(Floats x) {
  x = x < -126.0f ? Floats() - 126.0f : x;
  const Floats shifted = x + 0x1.8p23f;  // the nearest whole number is in the lowest bits
  const Floats r = x - (shifted - 0x1.8p23f);
  Floats p = r * 0x1.41fbbcp-13f + 0x1.5f3e54p-10f;
  p = p * r + 0x1.3b2d4cp-7f;
  p = p * r + 0x1.c6aee8p-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  p = p * r + 1.0f;
  return bit_cast<Floats>(bit_cast<Words>(p) + (bit_cast<Words>(shifted) << 23));
}

FUSION3D_INLINE Doubles exp2(const Doubles& x) {
  Doubles y = {};
  for (int i = 0; i < 4; ++i) y[i] = std::exp2(x[i]);
  return y;
}

// e^x for x <= 0; 0 below -87, so that what is masked by minus infinity has no weight at all.
FUSION3D_INLINE Floats exp_below_zero(Floats x) { return x < -87.0f ? Floats() : exp2(x * 1.44269504f); }
FUSION3D_INLINE Doubles exp_below_zero(Doubles x) {
  for (int i = 0; i < 4; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace fusion3d
