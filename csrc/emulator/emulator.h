// CUDA's way of running, on the CPU: what the headers of this folder, which have CUDA's own names, rest on.
//
// The threads of a block are fibers: each runs until it waits for others, then any other goes on, in an order that follows
// from FUSION3D_EMULATOR_SEED and the number of the launch. Blocks run one after another, in such an order too. So what
// depends on an order that CUDA does not promise comes out differently. What CUDA leaves undefined ends the process with
// a report. One launch runs at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
typedef struct CUstream_st* cudaStream_t;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

// Where a thread waits; as a default argument, the place of the call.
struct Site {
  const char* file;
  int line;
  Site(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

[[noreturn]] void report(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The whole block waits for one another; threads that have returned count as arrived.
void barrier(const char* what, Site site);

// The lanes of a warp that `mask` names wait for one another; then the last one works for all, with what each has brought
// (null for lanes that take no part). `present` has the lanes that have not returned. Without work, what they have written
// is then there for all, as CUDA promises for __syncwarp alone.
typedef void (*Work)(void* const (&lanes)[32], unsigned present);
void together(const char* what, unsigned mask, Site site, Work work, void* mine);

unsigned lane();  // of the thread that runs, in its warp

// Shared memory of the block that runs, full of NaNs and far indices when the block begins.
void* shared(const void* owner, size_t size, size_t align);
void* dynamic_shared();

template <typename Declaration, int kNumber, typename Variable>
Variable& shared() {
  static const char owner = 0;
  return *static_cast<Variable*>(shared(&owner, sizeof(Variable), alignof(Declaration)));
}

// Copies that a thread starts now; they happen when it waits for them.
void copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void wait_for_copies(size_t but_for_last);

void check_launch_bounds(unsigned threads);

// kernel<<<configuration>>>(arguments) is translated to Launch(configuration).of(...)(arguments).
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr)
      : grid_(grid), block_(block), shared_(shared) {}

  // `kernel` is null where only the arguments tell which instance of a template it is.
  template <typename Call>
  auto of(const char* name, const void* kernel, const Call& call) const {
    return [=](auto... arguments) { run(name, kernel, [&] { call(arguments...); }); };
  }

 private:
  void run(const char* name, const void* kernel, const std::function<void()>& thread) const;

  const dim3 grid_, block_;
  const size_t shared_;
};

}  // namespace emulator
