// Gradient of a sparse convolution's weights on the CPU: for each tap, the sum over its pairs of the outer product of the
// output's gradient and the input. Pairs are listed a window of rows at a time; blocks of the product stay in registers.
// Rows are split in parts whose number depends on the sizes alone; parts are added in their order.
#include "fusion3d/sparse_conv.h"

#include <algorithm>

#include "lines.h"
#include "pairs.h"

namespace fusion3d {
namespace {

constexpr int64_t kWindow = 512;       // rows whose pairs are listed at once
constexpr int64_t kChunk = 64;         // pairs multiplied at once: their rows stay in the nearest cache
constexpr int64_t kPartRows = 4096;    // output rows of a part, at least
constexpr int64_t kParts = 16;         // at most
constexpr int64_t kScratch = 1 << 24;  // numbers that parts may take together, if there is more than one
constexpr int kRows = 6;               // of a block in registers, by two vectors; by one there is room for more

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

// The rows of a chunk of pairs.
template <typename T>
struct Chunk {
  const typename Compute<T>::Real *one[kChunk], *vector[kChunk];
  int64_t pairs;
};

// block[r] += sum over the pairs of one[r] * vector, for R rows from `row` on and N vectors from `column` on.
template <int R, int N, typename T>
FUSION3D_INLINE void add_block(
    const Chunk<T>& chunk, int64_t row, int64_t column, int64_t width, typename Compute<T>::Real* product) {
  typedef typename Compute<T>::Vector Vector;
  typename Compute<T>::Real* block = product + row * width + column;
  Vector total[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) total[r][n] = load_same<Vector>(block + r * width + n * kLanes<T>);
  for (int64_t i = 0; i < chunk.pairs; ++i) {
    const typename Compute<T>::Real *one = chunk.one[i] + row, *vector = chunk.vector[i] + column;
    asm("" : "+r"(one), "+r"(vector));  // else each of the rows gets an address, and they do not fit in registers
    Vector v[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) v[n] = load_same<Vector>(vector + n * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename Compute<T>::Real x = one[r];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) total[r][n] += x * v[n];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(block + r * width + n * kLanes<T>, total[r][n]);
}

template <int N, typename T>
FUSION3D_INLINE void add_rows(
    const Chunk<T>& chunk, int64_t channels, int64_t column, int64_t width, typename Compute<T>::Real* product) {
  int64_t r = 0;
  for (; N == 1 && sizeof(typename Compute<T>::Vector) == 64 && r + 16 <= channels; r += 16)
    add_block<16, 1, T>(chunk, r, column, width, product);
  for (; N == 1 && r + 2 * kRows <= channels; r += 2 * kRows)
    add_block<2 * kRows, 1, T>(chunk, r, column, width, product);
  for (; r + kRows <= channels; r += kRows) add_block<kRows, N, T>(chunk, r, column, width, product);
  switch (channels - r) {
    case 5: return add_block<5, N, T>(chunk, r, column, width, product);
    case 4: return add_block<4, N, T>(chunk, r, column, width, product);
    case 3: return add_block<3, N, T>(chunk, r, column, width, product);
    case 2: return add_block<2, N, T>(chunk, r, column, width, product);
    case 1: return add_block<1, N, T>(chunk, r, column, width, product);
    default: return;
  }
}

// Pairs of a window of rows.
struct Window {
  int32_t out[kWindow], in[kWindow];
  int64_t count;
};

// The tasks [begin, end): a task is one tap of one part.
template <typename T>
FUSION3D_INLINE void add_products(const Products& products, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  const SparseWeightGrad& args = products.args;
  const int64_t channels = products.one.channels, width = products.width;
  const Features<T> one{static_cast<const T*>(products.one.rows), channels, channels};
  const Features<T> vector{static_cast<const T*>(products.vector.rows), products.vector.channels, width};
  Lines<Real> ones(one.is_read_in_place() ? 0 : kChunk * channels);
  Lines<Real> vectors(vector.is_read_in_place() ? 0 : kChunk * width);
  Window windows[2];
  Chunk<T> chunk;
  for (int64_t task = begin; task < end; ++task) {
    Real* product = static_cast<Real*>(products.partial) + task * channels * width;
    std::fill(product, product + channels * width, Real(0));
    const int32_t* table = args.table + task % args.taps * args.num_out;
    const int64_t first = task / args.taps * products.part_rows;
    const int64_t last = std::min(first + products.part_rows, args.num_out);
    // While a window's pairs are multiplied, the rows of the next are fetched, and the table of the one after that.
    for (int64_t w = 0, m = first; m < last + kWindow; ++w, m += kWindow) {
      Window &ahead = windows[w & 1], &now = windows[(w + 1) & 1];
      if (m < last) {
        ahead.count = list_pairs(table + m, std::min(kWindow, last - m), m, ahead.out, ahead.in);
        (products.vector_is_in ? vector : one).prefetch(ahead.in, ahead.count);
        (products.vector_is_in ? one : vector).prefetch(ahead.out, ahead.count);
        for (int64_t r = m + kWindow; r < std::min(m + 2 * kWindow, last); r += 16) __builtin_prefetch(table + r);
      }
      if (w == 0) continue;
      const int32_t* of_one = products.vector_is_in ? now.out : now.in;
      const int32_t* of_vector = products.vector_is_in ? now.in : now.out;
      for (int64_t i = 0; i < now.count; i += kChunk) {
        chunk.pairs = std::min(kChunk, now.count - i);
        one.find(of_one + i, chunk.pairs, ones.data(), chunk.one);
        vector.find(of_vector + i, chunk.pairs, vectors.data(), chunk.vector);
        int64_t c = 0;
        for (; c + 2 * kLanes<T> <= width; c += 2 * kLanes<T>) add_rows<2, T>(chunk, channels, c, width, product);
        if (c < width) add_rows<1, T>(chunk, channels, c, width, product);
      }
    }
  }
}

inline bool is_wide(int64_t channels) { return channels > 8; }
inline bool is_wide(const Products& products) { return is_wide(products.vector.channels); }
FUSION3D_DISPATCH_WIDE(run_products, Products, add_products)

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
    const auto whole = [](int64_t n) {  // made up to vectors of the code that will run
      const int64_t lanes = has_avx512() && is_wide(n) ? kLanes<typename Avx512Type<T>::Type> : kLanes<T>;
      return (n + lanes - 1) / lanes * lanes;
    };
    // The side that fills its vectors better is the one spread over them, the wider one where both do.
    const int64_t by_in = whole(in.channels) * grad.channels, by_grad = whole(grad.channels) * in.channels;
    const bool vector_is_in = by_in != by_grad ? by_in < by_grad : in.channels >= grad.channels;
    const Side &one = vector_is_in ? grad : in, &vector = vector_is_in ? in : grad;
    const int64_t width = whole(vector.channels), size = args.taps * one.channels * width;
    const int64_t room = size > 0 ? kScratch / size : 1;
    const int64_t parts = std::clamp<int64_t>(std::min(args.num_out / kPartRows, room), 1, kParts);
    typedef typename Compute<T>::Real Real;
    const Scratch<Real> partial = scratch<Real>(parts * size);
    const int64_t part_rows = (args.num_out + parts - 1) / parts;
    const Products products{args, one, vector, vector_is_in, parts, part_rows, width, partial.get()};
    parallel_for(0, parts * args.taps, 1, [&](int64_t begin, int64_t end) { run_products<T>(products, begin, end); });
    parallel_for(0, args.taps, 1, [&](int64_t begin, int64_t end) { add_parts<T>(products, begin, end); });
  });
}

}  // namespace fusion3d
