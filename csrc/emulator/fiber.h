// Stacks of their own for functions that take turns within one thread of the system; sanitizers are told of them.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber() = default;                    // of the stack on which the program runs
  explicit Fiber(void (*function)());   // which never returns, and begins at the first switch
  Fiber(const Fiber&) = delete;

  void switch_to(Fiber& other);  // returns when another switches back

 private:
  static void begin();

  void arrive();

  void (*function_)() = nullptr;
#if defined(__x86_64__)
  void* top_ = nullptr;  // of the stack while it waits
#else
  ucontext_t context_ = {};
#endif
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;  // of AddressSanitizer
  void* thread_ = nullptr;      // of ThreadSanitizer
};

}  // namespace emulator
