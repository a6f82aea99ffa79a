// Small matrices in scratch memory: products whose results stay in registers, and rows packed or turned on the way in
// and out.
//
// A tile holds its columns side by side in rows of kTile<T>, three vectors; only the vectors that are needed are
// computed.
#pragma once

#include <cstdint>

#include "vector.h"

namespace fusion3d {

template <typename T>
constexpr int kTile = 3 * kLanes<T>;

// c[r][n] = sum over k < depth of a[r * row + k * step] * b[k * b_row + n], for R rows and N vectors; where kAdd, added
// to it.
template <bool kAdd, int R, int N, typename V, typename Real>
FUSION3D_INLINE void multiply_block(
    int64_t depth, const Real* a, int64_t row, int64_t step, const Real* b, int64_t b_row, Real* c, int64_t c_row) {
  constexpr int kWide = sizeof(V) / sizeof(Real);
  V total[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) total[r][n] = kAdd ? load(c + r * c_row + n * kWide) : V();
  for (int64_t k = 0; k < depth; ++k) {
    V column[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) column[n] = load(b + k * b_row + n * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Real factor = a[r * row + k * step];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) total[r][n] += factor * column[n];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(c + r * c_row + n * kWide, total[r][n]);
}

// The same for any number of rows.
template <bool kAdd, int N, typename V, typename Real>
FUSION3D_INLINE void multiply(
    int64_t rows, int64_t depth, const Real* a, int64_t row, int64_t step, const Real* b, int64_t b_row, Real* c,
    int64_t c_row) {
  constexpr int kRows = N == 1 ? 8 : 4;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    multiply_block<kAdd, kRows, N, V>(depth, a + r * row, row, step, b, b_row, c + r * c_row, c_row);
  if (kRows > 4 && r + 4 <= rows) {
    multiply_block<kAdd, 4, N, V>(depth, a + r * row, row, step, b, b_row, c + r * c_row, c_row);
    r += 4;
  }
  a += r * row;
  c += r * c_row;
  switch (rows - r) {
    case 3: return multiply_block<kAdd, 3, N, V>(depth, a, row, step, b, b_row, c, c_row);
    case 2: return multiply_block<kAdd, 2, N, V>(depth, a, row, step, b, b_row, c, c_row);
    case 1: return multiply_block<kAdd, 1, N, V>(depth, a, row, step, b, b_row, c, c_row);
    default: return;
  }
}

// The same, added, for any number of vectors, `width` elements in all.
template <typename V, typename Real>
FUSION3D_INLINE void multiply_wide(
    int64_t rows, int64_t depth, const Real* a, int64_t row, int64_t step, const Real* b, Real* c, int64_t width) {
  constexpr int64_t kWide = sizeof(V) / sizeof(Real);
  int64_t n = 0;
  for (; n + 2 * kWide <= width && width - n != 3 * kWide; n += 2 * kWide)
    multiply<true, 2, V>(rows, depth, a, row, step, b + n, width, c + n, width);
  if (width - n == 3 * kWide)
    multiply<true, 3, V>(rows, depth, a, row, step, b + n, width, c + n, width);
  else if (width - n == kWide)
    multiply<true, 1, V>(rows, depth, a, row, step, b + n, width, c + n, width);
}

// Rows into columns: x[i] holds row i before, column i after.
FUSION3D_INLINE void transpose(Floats (&x)[8]) {
  Floats y[8], z[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = __builtin_shuffle(x[i], x[i + 1], Words{0, 8, 1, 9, 4, 12, 5, 13});
    y[i + 1] = __builtin_shuffle(x[i], x[i + 1], Words{2, 10, 3, 11, 6, 14, 7, 15});
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 4
    for (int j = 0; j < 2; ++j) {
      z[i + 2 * j] = __builtin_shuffle(y[i + j], y[i + j + 2], Words{0, 1, 8, 9, 4, 5, 12, 13});
      z[i + 2 * j + 1] = __builtin_shuffle(y[i + j], y[i + j + 2], Words{2, 3, 10, 11, 6, 7, 14, 15});
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = __builtin_shuffle(z[i], z[i + 4], Words{0, 1, 2, 3, 8, 9, 10, 11});
    x[i + 4] = __builtin_shuffle(z[i], z[i + 4], Words{4, 5, 6, 7, 12, 13, 14, 15});
  }
}
FUSION3D_INLINE void transpose(Doubles (&x)[4]) {
  const Doubles a[4] = {x[0], x[1], x[2], x[3]};
  for (int i = 0; i < 4; ++i) x[i] = Doubles{a[0][i], a[1][i], a[2][i], a[3][i]};
}

// rows[i][c] * factor to out[c][i], for `count` rows of `dim`; lanes up to the end of their vector become 0.
template <typename T, typename Real>
FUSION3D_INLINE void pack_columns(const T* const* rows, int64_t count, int64_t dim, Real factor, Real* out) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int64_t kWide = kLanes<T>;
  for (int64_t i = 0; i < count; i += kWide) {
    int64_t c = 0;
    for (; c + kWide <= dim; c += kWide) {
      Vector x[kWide];
#pragma GCC unroll 8
      for (int j = 0; j < kWide; ++j) x[j] = i + j < count ? load(rows[i + j] + c) * factor : Vector();
      transpose(x);
#pragma GCC unroll 8
      for (int j = 0; j < kWide; ++j) store(out + (c + j) * kTile<T> + i, x[j]);
    }
    for (; c < dim; ++c)
      for (int64_t j = i; j < i + kWide; ++j)
        out[c * kTile<T> + j] = j < count ? load_one(rows[j] + c) * factor : Real(0);
  }
}

// in[c][i] * factor[i] to rows[i][c].
template <typename T, typename Real>
FUSION3D_INLINE void unpack_columns(const Real* in, const Real* factor, int64_t count, int64_t dim, T* const* rows) {
  typedef typename Compute<T>::Vector Vector;
  constexpr int64_t kWide = kLanes<T>;
  for (int64_t i = 0; i < count; i += kWide) {
    const Vector lanes = load(factor + i);
    const int64_t last = count - i < kWide ? count - i : kWide;
    int64_t c = 0;
    for (; c + kWide <= dim; c += kWide) {
      Vector x[kWide];
#pragma GCC unroll 8
      for (int j = 0; j < kWide; ++j) x[j] = load(in + (c + j) * kTile<T> + i) * lanes;
      transpose(x);
#pragma GCC unroll 8
      for (int j = 0; j < kWide; ++j)
        if (j < last) store(rows[i + j] + c, x[j]);
    }
    for (; c < dim; ++c)
      for (int64_t j = i; j < i + last; ++j) store_one(rows[j] + c, in[c * kTile<T> + j] * factor[j]);
  }
}

// rows[i][c] * factor to out[i][c], rows `width` long, 0 beyond `dim`.
template <typename T, typename Real>
FUSION3D_INLINE void pack_rows(
    const T* const* rows, int64_t count, int64_t dim, int64_t width, Real factor, Real* out) {
  constexpr int64_t kWide = kLanes<T>;
  for (int64_t i = 0; i < count; ++i, out += width) {
    int64_t c = 0;
    for (; c + kWide <= dim; c += kWide) store(out + c, load(rows[i] + c) * factor);
    for (; c < dim; ++c) out[c] = load_one(rows[i] + c) * factor;
    for (; c < width; ++c) out[c] = 0;
  }
}

// in[i][c], rows `width` long, to rows[i][c].
template <typename T, typename Real>
FUSION3D_INLINE void unpack_rows(const Real* in, int64_t count, int64_t dim, int64_t width, T* const* rows) {
  constexpr int64_t kWide = kLanes<T>;
  for (int64_t i = 0; i < count; ++i, in += width) {
    int64_t c = 0;
    for (; c + kWide <= dim; c += kWide) store(rows[i] + c, load(in + c));
    for (; c < dim; ++c) store_one(rows[i] + c, in[c]);
  }
}

}  // namespace fusion3d
