// What the sanitizers are told: AddressSanitizer, of memory that is lent and of stacks; ThreadSanitizer, that fibers are threads,
// and which of them have waited for which.
#pragma once

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) (void(at), void(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) (void(at), void(size))
#endif

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emulator {

// All that a fiber did before it left a mark comes before what one does that has found it.
struct Mark {
#ifdef __SANITIZE_THREAD__
  void leave() { __tsan_release(this); }
  void find() { __tsan_acquire(this); }
#else
  void leave() {}
  void find() {}
#endif
};

// While it lives, what the fiber reads and writes is the emulator's own business.
struct Unseen {
#ifdef __SANITIZE_THREAD__
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
  ~Unseen() {}
#endif
};

}  // namespace emulator
