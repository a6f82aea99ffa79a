// Deformable attention on the CPU, forward. Value is first laid out head by head, so that the pixels that a head reads
// lie side by side, and in float, so that each is converted once and not for every point that meets it: a small part of the
// work. Then a unit of work is a thousand queries of one head, so that neighbours find in the caches what the others have read.
#include "fusion3d/deform_attn.h"

#include "deform_samples.h"
#include "pages.h"

namespace fusion3d {
namespace {

constexpr int64_t kUnit = 256;  // queries of a unit of work: what all heads are given for them stays in the cache
constexpr int64_t kBlock = 8;   // queries that are located together, so that reading one can overlap the next

struct Pack {
  const DeformAttn& in;
  void* rows;
};

template <typename T>
FUSION3D_INLINE void pack_pixels(const Pack& pack, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  const DeformAttn& in = pack.in;
  const int64_t width = padded<Real>(in.channels), chunks = deform_pack_units(in) / in.maps;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t map = unit / chunks, first = unit % chunks * kDeformPackPixels;
    const int64_t last = std::min(first + kDeformPackPixels, in.area);
    for (int64_t h = 0; h < in.heads; ++h) {
      const T* from = static_cast<const T*>(in.value) + ((map * in.area + first) * in.heads + h) * in.channels;
      Real* to = static_cast<Real*>(pack.rows) + ((map * in.heads + h) * in.area + first) * width;
      for (int64_t i = first; i < last; ++i, from += in.heads * in.channels, to += width) {
        for (int64_t c = 0; c < in.channels; ++c) to[c] = load_one(from + c);
        for (int64_t c = in.channels; c < width; ++c) to[c] = 0;
      }
    }
  }
}

// Channels [c, c + N * lanes) of the sum over points [first, last).
template <int N, typename Real>
FUSION3D_INLINE void gather(
    const Samples<Real>& samples, int64_t first, int64_t last, const Real* rows, int64_t width, int64_t c, Real* out) {
  typedef typename Lanes<Real>::Vector Vector;
  constexpr int64_t kWide = kLanes<Real>;
  Vector above[N] = {}, below[N] = {};  // apart, for more sums at once
  for (int64_t i = first; i < last; ++i) {
    const int64_t pixel = samples.pixel[0][i];
    if (pixel < 0) continue;
    const Real* row0 = rows + pixel * width + c;
    const Real* row1 = rows + samples.pixel[1][i] * width + c;
    const Real* row2 = rows + samples.pixel[2][i] * width + c;
    const Real* row3 = rows + samples.pixel[3][i] * width + c;
    const Real w0 = samples.weight[0][i], w1 = samples.weight[1][i];
    const Real w2 = samples.weight[2][i], w3 = samples.weight[3][i];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      above[n] += w0 * load(row0 + n * kWide);
      below[n] += w2 * load(row2 + n * kWide);
      above[n] += w1 * load(row1 + n * kWide);
      below[n] += w3 * load(row3 + n * kWide);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) store(out + c + n * kWide, above[n] + below[n]);
}

struct Attend {
  const DeformAttnForward& args;
  const void* rows;
};

template <typename T>
FUSION3D_INLINE void attend_units(const Attend& attend, int64_t begin, int64_t end) {
  typedef typename Compute<T>::Real Real;
  constexpr int64_t kWide = kLanes<Real>;
  const DeformAttn& in = attend.args.in;
  const int64_t width = padded<Real>(in.channels);
  const Rows<Real> rows = {static_cast<const Real*>(attend.rows), width, in.area, in.heads};
  const int64_t references = 2 * in.reference_levels * in.anchors;
  PointLevels<Real> levels(in, 0, in.num_levels);
  Samples<Real> samples(kBlock, levels.count);
  std::vector<Real> reference(references);
  Lines<Real> out(width);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t h = unit % in.heads, first = unit / in.heads * kUnit, last = std::min(first + kUnit, in.queries);
    if (h == 0 || unit == begin) foresee_queries(in, first, last, levels.count);
    for (int64_t block = first; block < last; block += kBlock) {
      const int64_t size = std::min(kBlock, last - block);
      for (int64_t k = 0; k < size; ++k) {
        Real largest, total;
        foresee_points(in, block + k + kBlock, h, levels.count);
        widen(in.reference_dtype, in.reference, (block + k) * references, references, reference.data());
        locate(in, levels, block + k, h, reference.data(), k, samples, &largest, &total);
      }
      for (int64_t k = 0; k < size; ++k) {
        const int64_t q = block + k, map = deform_map(in, q);
        T* to = static_cast<T*>(attend.args.out) + (q * in.heads + h) * in.channels;
        if (map < 0) {
          std::fill_n(to, in.channels, T());
          continue;
        }
        const int64_t i = k * samples.stride, j = i + levels.count;
        const Real* from = rows.of(map, h);
        int64_t c = 0;
        for (; c + 4 * kWide <= width; c += 4 * kWide) gather<4>(samples, i, j, from, width, c, out.data());
        for (; c + 2 * kWide <= width; c += 2 * kWide) gather<2>(samples, i, j, from, width, c, out.data());
        for (; c < width; c += kWide) gather<1>(samples, i, j, from, width, c, out.data());
        for (c = 0; c < in.channels; ++c) store_one(to + c, out[c]);
      }
    }
  }
}

FUSION3D_DISPATCH(run_pack, Pack, pack_pixels)
FUSION3D_DISPATCH(run_attend, Attend, attend_units)

}  // namespace

int64_t deform_pack_units(const DeformAttn& in) {
  return in.maps * ((in.area + kDeformPackPixels - 1) / kDeformPackPixels);
}

int64_t deform_pack_bytes(const DeformAttn& in) {
  const int64_t row = in.dtype == Dtype::kFloat64 ? padded<double>(in.channels) * 8 : padded<float>(in.channels) * 4;
  return in.maps * in.heads * in.area * row;
}

void deform_pack_cpu(const DeformAttn& in, void* rows, int64_t begin, int64_t end) {
  for_dtype(in.dtype, [&](auto zero) { run_pack<decltype(zero)>({in, rows}, begin, end); });
}

void deform_attn_forward_cpu(const DeformAttnForward& args, void* scratch, const ParallelFor& parallel_for) {
  const DeformAttn& in = args.in;
  expect_writes(scratch, deform_pack_bytes(in));
  expect_writes(args.out, in.queries * in.heads * in.channels * bytes_of(in.dtype));
  parallel_for(0, deform_pack_units(in), 1, [&](int64_t begin, int64_t end) {
    deform_pack_cpu(in, scratch, begin, end);
  });
  const int64_t units = in.heads * ((in.queries + kUnit - 1) / kUnit);
  parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    for_dtype(in.dtype, [&](auto zero) { run_attend<decltype(zero)>({args, scratch}, begin, end); });
  });
}

}  // namespace fusion3d
