#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
// Keeps what a function may not change on the stack that is left, and takes it from the one that is entered.
extern "C" void fusion3d_switch_stack(void** left, void* entered);
asm(R"(
.text
.hidden fusion3d_switch_stack
.type fusion3d_switch_stack, @function
fusion3d_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fusion3d_switch_stack, .-fusion3d_switch_stack
)");
#endif

namespace emulator {
namespace {

constexpr size_t kStack = 256 << 10, kGuard = 4096;
Fiber *left, *entered;  // by the last switch

}  // namespace

Fiber::Fiber(void (*function)()) : function_(function), size_(kStack) {
  void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) {
    std::perror("fusion3d emulator: no memory for stacks");
    std::abort();
  }
  bottom_ = static_cast<char*>(memory) + kGuard;
#ifdef __SANITIZE_THREAD__
  thread_ = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  uintptr_t* top = static_cast<uintptr_t*>(const_cast<void*>(bottom_)) + kStack / sizeof(uintptr_t);
  static size_t count = 0;
  top -= count++ % 128 * 18;  // so that the stacks in use do not meet in the same lines of the cache
  *--top = 0;  // where `begin` would return to: it finds the stack aligned as after a call
  *--top = reinterpret_cast<uintptr_t>(&Fiber::begin);
  top_ = top - 6;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = const_cast<void*>(bottom_);
  context_.uc_stack.ss_size = kStack;
  makecontext(&context_, &Fiber::begin, 0);
#endif
}

void Fiber::begin() {
  entered->arrive();
  entered->function_();
  std::abort();
}

void Fiber::switch_to(Fiber& other) {
  left = this;
  entered = &other;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.size_);
#endif
#ifdef __SANITIZE_THREAD__
  if (!function_) thread_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(other.thread_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  fusion3d_switch_stack(&top_, other.top_);
#else
  swapcontext(&context_, &other.context_);
#endif
  arrive();
}

void Fiber::arrive() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, &left->bottom_, &left->size_);
#endif
}

}  // namespace emulator
