// Gradient of a sparse convolution's weights on the CPU: for each tap, the sum over its pairs of the outer product of the
// output's gradient and the input. Pairs are gathered a chunk at a time; blocks of the product stay in registers. Rows are
// split in parts whose number depends on the sizes alone; parts are added in their order.
#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "fusion3d/sparse_conv.h"

namespace fusion3d {
namespace {

constexpr int64_t kChunk = 64;        // pairs gathered at once
constexpr int64_t kPartRows = 16384;  // output rows of a part, at least
constexpr int64_t kParts = 16;        // at most
constexpr int kRows = 6;              // of a block in registers, by two vectors

template <typename T>
constexpr int64_t lanes() {
  return sizeof(typename Compute<T>::Vector) / sizeof(typename Compute<T>::Real);
}

// Of the product's two sides one is spread over vectors, the other taken value by value.
struct Side {
  const void* rows;
  int64_t channels;
};

struct Products {
  const SparseWeightGrad& args;
  Side one, vector;
  bool vector_is_in;  // else it is the gradient
  int64_t parts, part_rows;
  int64_t width;   // channels of the vector side, made whole vectors
  void* partial;   // [parts, taps, one.channels, width] of Compute<T>::Real
};

// block[r] += sum over the pairs of one[r] * vector, for R rows of N vectors.
template <int R, int N, typename T>
FUSION3D_INLINE void add_block(
    const typename Compute<T>::Real* one, int64_t one_stride, const typename Compute<T>::Real* vector, int64_t width,
    int64_t pairs, typename Compute<T>::Real* block) {
  typedef typename Compute<T>::Vector Vector;
  Vector total[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) total[r][n] = load(block + r * width + n * lanes<T>());
  for (int64_t i = 0; i < pairs; ++i, one += one_stride, vector += width) {
    Vector v[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) v[n] = load(vector + n * lanes<T>());
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector x = Vector() + one[r];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) total[r][n] += x * v[n];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(block + r * width + n * lanes<T>(), total[r][n]);
}

template <int N, typename T>
FUSION3D_INLINE void add_rows(
    const typename Compute<T>::Real* one, int64_t channels, const typename Compute<T>::Real* vector, int64_t width,
    int64_t pairs, typename Compute<T>::Real* block) {
  int64_t r = 0;
  for (; r + kRows <= channels; r += kRows)
    add_block<kRows, N, T>(one + r, channels, vector, width, pairs, block + r * width);
  one += r;
  block += r * width;
  switch (channels - r) {
    case 5: return add_block<5, N, T>(one, channels, vector, width, pairs, block);
    case 4: return add_block<4, N, T>(one, channels, vector, width, pairs, block);
    case 3: return add_block<3, N, T>(one, channels, vector, width, pairs, block);
    case 2: return add_block<2, N, T>(one, channels, vector, width, pairs, block);
    case 1: return add_block<1, N, T>(one, channels, vector, width, pairs, block);
    default: return;
  }
}

template <typename T>
FUSION3D_INLINE void gather(
    const Side& side, const int32_t* row, int64_t count, int64_t width, typename Compute<T>::Real* out) {
  for (int64_t i = 0; i < count; ++i, out += width) {
    const T* from = static_cast<const T*>(side.rows) + int64_t(row[i]) * side.channels;
    int64_t c = 0;
    for (; c + lanes<T>() <= side.channels; c += lanes<T>()) store(out + c, load(from + c));
    for (; c < side.channels; ++c) out[c] = load_one(from + c);
  }
}

// The tasks [begin, end): a task is one tap of one part.
template <typename T>
FUSION3D_INLINE void add_products(const Products& products, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  const SparseWeightGrad& args = products.args;
  const int64_t channels = products.one.channels, width = products.width;
  std::vector<Real> one(kChunk * channels), vector(kChunk * width);
  int32_t out_row[kChunk + 1], in_row[kChunk + 1];
  for (int64_t task = begin; task < end; ++task) {
    Real* block = static_cast<Real*>(products.partial) + task * channels * width;
    std::fill(block, block + channels * width, Real(0));
    const int32_t* table = args.table + task % args.taps * args.num_out;
    int64_t m = task / args.taps * products.part_rows;
    const int64_t last = std::min(m + products.part_rows, args.num_out);
    while (m < last) {
      int64_t count = 0;
      for (; m < last && count < kChunk; ++m) {
        out_row[count] = int32_t(m);
        in_row[count] = table[m];
        count += table[m] >= 0;
      }
      gather<T>(products.one, products.vector_is_in ? out_row : in_row, count, channels, one.data());
      gather<T>(products.vector, products.vector_is_in ? in_row : out_row, count, width, vector.data());
      int64_t c = 0;
      for (; c + 2 * lanes<T>() <= width; c += 2 * lanes<T>())
        add_rows<2, T>(one.data(), channels, vector.data() + c, width, count, block + c);
      if (c < width) add_rows<1, T>(one.data(), channels, vector.data() + c, width, count, block + c);
    }
  }
}

FUSION3D_DISPATCH(run_products, Products, add_products)

// The gradient of the taps [begin, end): the sum over the parts.
template <typename T>
void add_parts(const Products& products, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  const SparseWeightGrad& args = products.args;
  const int64_t channels = products.one.channels, width = products.width, size = channels * width;
  Real* partial = static_cast<Real*>(products.partial);
  for (int64_t k = begin; k < end; ++k) {
    Real* sum = partial + k * size;
    for (int64_t part = 1; part < products.parts; ++part) {
      const Real* add = partial + (part * args.taps + k) * size;
      for (int64_t i = 0; i < size; ++i) sum[i] += add[i];
    }
    T* out = static_cast<T*>(args.out) + k * args.in_channels;
    const int64_t step = args.taps * args.in_channels;
    for (int64_t r = 0; r < channels; ++r)
      for (int64_t c = 0; c < products.vector.channels; ++c)
        store_one(out + (products.vector_is_in ? r * step + c : c * step + r), sum[r * width + c]);
  }
}

}  // namespace

void sparse_weight_grad_cpu(const SparseWeightGrad& args, const ParallelFor& parallel_for) {
  for_dtype(args.dtype, [&](auto zero) {
    typedef decltype(zero) T;
    const Side in{args.in, args.in_channels}, grad{args.grad, args.out_channels};
    const auto whole = [](int64_t n) { return (n + lanes<T>() - 1) / lanes<T>() * lanes<T>(); };
    // The side that fills its vectors better is the one spread over them.
    const bool vector_is_in = whole(in.channels) * grad.channels <= whole(grad.channels) * in.channels;
    const Side &one = vector_is_in ? grad : in, &vector = vector_is_in ? in : grad;
    const int64_t parts = std::clamp<int64_t>(args.num_out / kPartRows, 1, kParts);
    const int64_t width = whole(vector.channels);
    std::vector<typename Compute<T>::Real> partial(parts * args.taps * one.channels * width);
    const int64_t part_rows = (args.num_out + parts - 1) / parts;
    const Products products{args, one, vector, vector_is_in, parts, part_rows, width, partial.data()};
    parallel_for(0, parts * args.taps, 1, [&](int64_t begin, int64_t end) { run_products<T>(products, begin, end); });
    parallel_for(0, args.taps, 1, [&](int64_t begin, int64_t end) { add_parts<T>(products, begin, end); });
  });
}

}  // namespace fusion3d
