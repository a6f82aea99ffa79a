#include "emulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kThreads = 1024;                                // most of a block
constexpr size_t kShared = 48 << 10, kMostShared = 227 << 10;      // bytes of a block, unasked and asked for
constexpr uint16_t kGarbage = 0x7ff7;                              // in any floating-point type NaN, as an index far

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros, group;
};

enum class State { kReady, kBarrier, kWarp, kReturned };

struct Thread {
  explicit Thread(void (*function)()) : fiber(function) {}

  Fiber fiber;
  unsigned number = 0;
  uint3 index = {};
  State state = State::kReady;
  // What it waits for:
  const char* what = nullptr;
  Site site;
  unsigned mask = 0;
  Work work = nullptr;
  void* mine = nullptr;
  Mark arrival;
  // Copies on their way, and how many groups of them were committed.
  std::vector<Copy> copies;
  size_t groups = 0;
};

struct Variables {  // in shared memory, of one declaration
  const void* owner;
  char* at;
};

// All that runs at a time.
std::mutex one_launch;
Fiber outside;
std::deque<Thread> threads;    // as many as were ever needed
std::vector<Thread*> ready;
Thread* current = nullptr;     // null outside of kernels
unsigned size, returned, arrived;  // threads of the block: all, those that returned, those at the barrier
Thread* first_arrived = nullptr;
unsigned barriers = 0;         // that were complete
Mark begun, ended, passed[2], met[kThreads / 32];
unsigned lanes_waiting[kThreads / 32], lanes_returned[kThreads / 32];  // of each warp; lanes that there are not, too
const char* kernel_name = "";
const std::function<void()>* kernel_call = nullptr;
uint64_t launches = 0, random_state = 0;
std::vector<Variables> variables;
alignas(1024) char shared_memory[2 * kMostShared];
size_t shared_dynamic, shared_static, shared_limit, shared_end;
std::map<const void*, size_t> asked_shared;  // by cudaFuncSetAttribute
std::vector<Copy> host_copies;
thread_local cudaError_t last_error = cudaSuccess;

uint64_t random_number() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

std::string name_of(const Thread& thread) {
  return std::string(thread.what) + " (" + thread.site.file + ":" + std::to_string(thread.site.line) + ")";
}

// ---- threads

void enter(Fiber& from, Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  from.switch_to(thread.fiber);
}

// Any of those that are ready, or null.
Thread* pick() {
  if (ready.empty()) return nullptr;
  std::swap(ready[random_number() % ready.size()], ready.back());
  Thread* const thread = ready.back();
  ready.pop_back();
  return thread;
}

// The thread that runs waits, or has returned: another goes on.
void yield() {
  Thread& self = *current;
  Thread* const next = pick();
  if (next == &self) return;
  if (next)
    enter(self.fiber, *next);
  else
    self.fiber.switch_to(outside);
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  ready.push_back(&thread);
}

void wake_barrier() {
  if (arrived == 0 || arrived + returned < size) return;
  arrived = 0;
  ++barriers;
  for (unsigned i = 0; i < size; ++i)
    if (threads[i].state == State::kBarrier) wake(threads[i]);
}

// Lets the lanes that a waiting thread's mask names go on, if all have come that have not returned.
void wake_lanes(const Thread& one) {
  const unsigned warp = one.number / 32, first = warp * 32, present = one.mask & ~lanes_returned[warp];
  if (present & ~lanes_waiting[warp]) return;
  void* brought[32] = {};
  for (unsigned i = 0; i < 32; ++i) {
    if (!(present >> i & 1)) continue;
    Thread& thread = threads[first + i];
    if (thread.mask != one.mask) return;
    if (thread.work != one.work || thread.site.line != one.site.line)
      report(
          "lane %u is in %s, but lane %u in %s", one.number % 32, name_of(one).c_str(), i, name_of(thread).c_str());
    brought[i] = thread.mine;
    if (!one.work) thread.arrival.find();
  }
  if (one.work)
    one.work(brought, present);
  else
    met[warp].leave();
  lanes_waiting[warp] &= ~present;
  for (unsigned i = 0; i < 32; ++i)
    if (present >> i & 1) wake(threads[first + i]);
}

// A fiber runs its thread of one block after another.
void run_threads() {
  for (;;) {
    begun.find();
    (*kernel_call)();
    ended.leave();
    const Unseen unseen;
    Thread& self = *current;
    self.state = State::kReturned;
    ++returned;
    wake_barrier();
    const unsigned warp = self.number / 32;
    lanes_returned[warp] |= 1u << self.number % 32;
    for (unsigned i = 0; i < 32; ++i)
      if (lanes_waiting[warp] >> i & 1) wake_lanes(threads[warp * 32 + i]);
    yield();
  }
}

// ---- blocks

// NaNs and far indices over [at, at + size), and no access to what is around.
char* lend(size_t at, size_t size) {
  char* const begin = shared_memory + at;
  ASAN_UNPOISON_MEMORY_REGION(begin, size);
  for (size_t i = 0; i < size; ++i) begin[i] = char(kGarbage >> 8 * (i % 2));
  return begin;
}

void run_block(size_t number) {
  blockIdx = {
      unsigned(number % gridDim.x), unsigned(number / gridDim.x % gridDim.y),
      unsigned(number / gridDim.x / gridDim.y)};
  ASAN_POISON_MEMORY_REGION(shared_memory, sizeof(shared_memory));
  lend(0, shared_dynamic);
  variables.clear();
  shared_static = 0;
  shared_end = shared_dynamic;
  returned = arrived = 0;
  for (unsigned warp = 0; warp * 32 < size; ++warp) {
    lanes_waiting[warp] = 0;
    lanes_returned[warp] = size - warp * 32 < 32 ? ~0u << (size - warp * 32) : 0;
  }
  while (threads.size() < size) threads.emplace_back(&run_threads);
  for (unsigned i = 0; i < size; ++i) {
    Thread& thread = threads[i];
    thread.number = i;
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    thread.copies.clear();
    thread.groups = 0;
    wake(thread);
  }
  begun.leave();
  enter(outside, *pick());
  ended.find();
  current = nullptr;
  if (returned == size) return;
  std::map<std::string, unsigned> places;
  for (unsigned i = 0; i < size; ++i)
    if (threads[i].state != State::kReturned) ++places[name_of(threads[i])];
  std::string text;
  for (const auto& [place, count] : places) text += "\n  " + std::to_string(count) + " in " + place;
  report("threads wait for others that never come; %u have returned%s", returned, text.c_str());
}

bool fits(dim3 grid, dim3 block) {
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 &&
         block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
         uint64_t(block.x) * block.y * block.z <= kThreads;
}

}  // namespace

// ---- what the headers use

void report(const char* format, ...) {
  std::fprintf(stderr, "fusion3d emulator: %s", kernel_name);
  if (current || size) std::fprintf(stderr, ", block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
  if (current)
    std::fprintf(stderr, ", thread (%u, %u, %u)", current->index.x, current->index.y, current->index.z);
  std::fprintf(stderr, ": ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::abort();
}

unsigned lane() { return current->number % 32; }

void barrier(const char* what, Site site) {
  const Unseen unseen;
  Thread& self = *current;
  self.what = what;
  self.site = site;
  if (arrived++ == 0) first_arrived = &self;
  if (first_arrived->site.line != site.line)
    report("%s, but others are in %s", name_of(self).c_str(), name_of(*first_arrived).c_str());
  self.state = State::kBarrier;
  Mark& mark = passed[barriers % 2];  // whoever comes to the next one leaves another, before all have found this
  mark.leave();
  wake_barrier();
  yield();
  mark.find();
}

void together(const char* what, unsigned mask, Site site, Work work, void* mine) {
  const Unseen unseen;
  Thread& self = *current;
  self.what = what;
  self.site = site;
  self.mask = mask;
  self.work = work;
  self.mine = mine;
  if (!(mask >> self.number % 32 & 1)) report("%s with mask %08x, which lacks its own lane", name_of(self).c_str(), mask);
  self.state = State::kWarp;
  lanes_waiting[self.number / 32] |= 1u << self.number % 32;
  if (!work) self.arrival.leave();
  wake_lanes(self);
  yield();
  if (!work) met[self.number / 32].find();
}

void* shared(const void* owner, size_t bytes, size_t align) {
  const Unseen unseen;
  for (const Variables& known : variables)
    if (known.owner == owner) return known.at;
  const size_t begin = (shared_end + 32 + align - 1) / align * align;  // no one may touch what lies between
  shared_end = begin + bytes;
  shared_static += (bytes + 15) / 16 * 16;
  if (shared_static > kShared || shared_static + shared_dynamic > shared_limit)
    report("%zu bytes of shared memory of its own and %zu of the launch: too many", shared_static, shared_dynamic);
  variables.push_back({owner, lend(begin, bytes)});
  return variables.back().at;
}

void* dynamic_shared() { return shared_memory; }

void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
  current->copies.push_back({to, from, bytes, zeros, current->groups});
}

void commit_copies() { ++current->groups; }

void wait_for_copies(size_t but_for_last) {
  std::vector<Copy>& copies = current->copies;
  const auto pending = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) {
    return copy.group + but_for_last >= current->groups;
  });
  for (auto copy = copies.begin(); copy != pending; ++copy) {
    std::memcpy(copy->to, copy->from, copy->bytes - copy->zeros);
    std::memset(static_cast<char*>(copy->to) + copy->bytes - copy->zeros, 0, copy->zeros);
  }
  copies.erase(copies.begin(), pending);
}

void check_launch_bounds(unsigned most) {
  if (size > most) report("launched with %u threads, but its __launch_bounds__ are %u", size, most);
}

void Launch::run(const char* name, const void* kernel, const std::function<void()>& thread) const {
  const std::lock_guard<std::mutex> lock(one_launch);
  const Unseen unseen;
  const auto asked = asked_shared.find(kernel);
  const size_t limit = kernel && asked != asked_shared.end() ? asked->second : kShared;
  if (!fits(grid_, block_)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (shared_ > limit) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  gridDim = grid_;
  blockDim = block_;
  size = block_.x * block_.y * block_.z;
  shared_dynamic = shared_;
  shared_limit = limit > kShared ? kMostShared : kShared;
  kernel_name = name;
  kernel_call = &thread;
  const char* seed = std::getenv("FUSION3D_EMULATOR_SEED");
  random_state = (seed ? std::strtoull(seed, nullptr, 0) : 0) * 0x2545f4914f6cdd1d + launches++;
  // Blocks in the order of an arithmetic progression that meets each once.
  const uint64_t blocks = uint64_t(grid_.x) * grid_.y * grid_.z, first = random_number() % blocks;
  uint64_t step = random_number() % blocks;
  while (std::gcd(step, blocks) != 1) step = (step + 1) % blocks;
  uint64_t block = first;
  for (uint64_t i = 0; i < blocks; ++i, block = (block + step) % blocks) run_block(block);
  size = 0;
  kernel_name = "";
}

}  // namespace emulator

// ---- what programs use

cudaError_t cudaGetLastError() {
  return std::exchange(emulator::last_error, cudaSuccess);
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
  }
  return "unrecognized error code";
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// The host sees what it copies only once it has waited for it.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  if (kind == cudaMemcpyDeviceToHost)
    emulator::host_copies.push_back({to, from, bytes, 0, 0});
  else
    std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  for (const emulator::Copy& copy : emulator::host_copies) std::memcpy(copy.to, copy.from, copy.bytes);
  emulator::host_copies.clear();
  return cudaSuccess;
}

cudaError_t emulator_set_shared_limit(const void* kernel, int bytes) {
  if (bytes < 0 || size_t(bytes) > emulator::kMostShared) return cudaErrorInvalidValue;
  emulator::asked_shared[kernel] = size_t(bytes);
  return cudaSuccess;
}
