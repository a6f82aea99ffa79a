// Products of small matrices by a warp. Lane i holds elements 8 i to 8 i + 7 of a fragment, by rows; the hardware's choice is
// another, and its sums are rounded otherwise.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace emulator {

constexpr unsigned kWholeWarp = 0xffffffffu;

inline float value_of(__half value) { return __half2float(value); }
inline float value_of(__nv_bfloat16 value) { return __bfloat162float(value); }

inline void check_whole(const char* what, unsigned present) {
  if (present != kWholeWarp) report("%s with lanes %08x alone: the whole warp must take part", what, present);
}

// c += a b for 16 x 16 x columns, given how to find an element.
template <typename A, typename B, typename C>
void multiply(int columns, const A& a, const B& b, const C& c) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < columns; ++j) {
      float sum = *c(i, j);
      for (int k = 0; k < 16; ++k) sum += a(i, k) * b(k, j);
      *c(i, j) = sum;
    }
}

// mma.sync.aligned.m16n8k16.row.col, f32 += T * T.
template <typename T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site = Site()) {
  struct Lane {
    T a[8], b[4];
    float* c;
  } mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, &b0, 4);
  std::memcpy(mine.b + 2, &b1, 4);
  mine.c = c;
  const auto work = [](void* const (&lanes)[32], unsigned present) {
    check_whole("mma", present);
    const auto lane = [&](int group, int pair) { return static_cast<Lane*>(lanes[group * 4 + pair]); };
    // Rows of a and c go by lane groups, 8 and more in the second half; columns of a are pairs, likewise; so are rows of b.
    multiply(
        8, [&](int i, int k) { return value_of(lane(i % 8, k % 8 / 2)->a[k / 8 * 4 + i / 8 * 2 + k % 2]); },
        [&](int k, int j) { return value_of(lane(j, k % 8 / 2)->b[k / 8 * 2 + k % 2]); },
        [&](int i, int j) { return &lane(i % 8, j / 2)->c[i / 8 * 2 + j % 2]; });
  };
  together("mma", kWholeWarp, site, work, &mine);
}

}  // namespace emulator

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "other sizes are not emulated");
  T x[8];
};

namespace emulated {

template <typename Call>
void for_own(unsigned step, bool rows, const Call& call) {  // (place in the fragment, place in memory)
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned element = emulator::lane() * 8 + i, row = element / 16, column = element % 16;
    call(i, rows ? row * step + column : column * step + row);
  }
}

inline void check_place(const void* at, size_t bytes) {  // of a matrix and of its lines
  if (reinterpret_cast<uintptr_t>(at) % 32 || bytes % 16)
    emulator::report("a matrix at %p with lines of %zu bytes: must be multiples of 32 and 16", at, bytes);
}

inline void meet(const char* what, emulator::Site site) {
  const auto work = [](void* const (&)[32], unsigned present) { emulator::check_whole("wmma", present); };
  emulator::together(what, emulator::kWholeWarp, site, work, nullptr);
}

template <typename Fragment>
auto find(void* const (&fragments)[32], int row, int column) {
  const int element = row * 16 + column;
  return &static_cast<Fragment*>(fragments[element / 8])->x[element % 8];
}

}  // namespace emulated

template <typename Use, typename T>
void fill_fragment(fragment<Use, 16, 16, 16, T>& to, T value) {
  for (T& x : to.x) x = value;
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(
    fragment<Use, 16, 16, 16, T, Layout>& to, const T* from, unsigned step, emulator::Site site = emulator::Site()) {
  emulated::check_place(from, step * sizeof(T));
  emulated::meet("load_matrix_sync", site);
  emulated::for_own(step, std::is_same_v<Layout, row_major>, [&](unsigned i, unsigned at) { to.x[i] = from[at]; });
}

template <typename T>
void store_matrix_sync(
    T* to, const fragment<accumulator, 16, 16, 16, T>& from, unsigned step, layout_t layout,
    emulator::Site site = emulator::Site()) {
  emulated::check_place(to, step * sizeof(T));
  emulated::meet("store_matrix_sync", site);
  emulated::for_own(step, layout == mem_row_major, [&](unsigned i, unsigned at) { to[at] = from.x[i]; });
}

template <typename T, typename LayoutA, typename LayoutB>
void mma_sync(
    fragment<accumulator, 16, 16, 16, float>& d, const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
    const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b, const fragment<accumulator, 16, 16, 16, float>& c,
    emulator::Site site = emulator::Site()) {
  struct Lane {
    fragment<matrix_a, 16, 16, 16, T> a;
    fragment<matrix_b, 16, 16, 16, T> b;
    fragment<accumulator, 16, 16, 16, float> c;
  } mine;
  std::memcpy(mine.a.x, a.x, sizeof(a.x));
  std::memcpy(mine.b.x, b.x, sizeof(b.x));
  mine.c = c;
  const auto work = [](void* const (&lanes)[32], unsigned present) {
    emulator::check_whole("mma_sync", present);
    float left[16][16], right[16][16];
    for (int i = 0; i < 256; ++i) {
      const Lane& lane = *static_cast<Lane*>(lanes[i / 8]);
      left[i / 16][i % 16] = emulator::value_of(lane.a.x[i % 8]);
      right[i / 16][i % 16] = emulator::value_of(lane.b.x[i % 8]);
    }
    emulator::multiply(
        16, [&](int i, int k) { return left[i][k]; }, [&](int k, int j) { return right[k][j]; },
        [&](int i, int j) { return &static_cast<Lane*>(lanes[i * 2 + j / 8])->c.x[j % 8]; });
  };
  emulator::together("mma_sync", emulator::kWholeWarp, site, work, &mine);
  d = mine.c;
}

}  // namespace wmma
}  // namespace nvcuda
