// Stands for the file of this name in csrc/cuda, which is not C++.
#pragma once

#include "mma.h"

namespace fusion3d {

template <typename T>
void mma(
    float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T, emulator::Site site = emulator::Site()) {
  emulator::mma_m16n8k16<T>(c, a, b0, b1, site);
}

}  // namespace fusion3d
