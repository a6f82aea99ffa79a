// Read before the glue: what it registers for CUDA serves tensors of the CPU, and its own kernels for the CPU are left out.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(space, key, library) FUSION3D_EMULATED_##key(space, library)
#define FUSION3D_EMULATED_CUDA(space, library) _STABLE_TORCH_LIBRARY_IMPL(space, CPU, library, C10_UID)
#define FUSION3D_EMULATED_CPU(space, library) \
  [[maybe_unused]] static void C10_CONCATENATE(left_out_, C10_UID)(torch::stable::detail::StableLibrary & library)
