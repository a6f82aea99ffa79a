// Copies to shared memory that a thread starts and waits for later; until then nothing has come.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  const uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || places % bytes || zeros > bytes)
    emulator::report("__pipeline_memcpy_async of %zu bytes, %zu of them zero, from %p to %p", bytes, zeros, from, to);
  emulator::copy_later(to, from, bytes, zeros);
}

inline void __pipeline_commit() { emulator::commit_copies(); }
inline void __pipeline_wait_prior(size_t but_for_last) { emulator::wait_for_copies(but_for_last); }
