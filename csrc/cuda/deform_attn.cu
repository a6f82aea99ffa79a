// Deformable attention on CUDA, forward: one kernel, from raw offsets and logits to the result. A pixel of a head is read
// with 16-byte loads, by the lanes of the group that owns the query; neighbouring queries of one head share a block, and so
// find in L1 what the others have read.
#include "deform_points.cuh"

namespace fusion3d {
namespace {

template <typename T, int N>
__global__ void __launch_bounds__(kDeformWarps* kWarp)
    attend(const __grid_constant__ DeformAttnForward args, const int lanes) {
  typedef typename Compute<T>::Real Real;
  extern __shared__ __align__(16) unsigned char shared[];
  const DeformAttn& in = args.in;
  const DeformGroup<Real> group = deform_group<Real>(shared, lanes);
  const int count = int(in.num_levels * in.points);
  const int64_t h = blockIdx.y, packs = in.channels / N;
  for (int64_t i = first_thread() / lanes; i - group.group < in.queries; i += all_threads() / lanes) {
    const DeformQuery<Real> query = deform_query(in, group, i, h);
    for (int64_t c = group.lane; c - group.lane < packs; c += lanes) {
      const bool busy = query.map >= 0 && c < packs;
      const DeformPixels<T, N> pixels(in, query.map, h, c);
      Real sum[N] = {};
      for (int first = 0; first < count; first += kDeformSlots) {
        const int size = count - first < kDeformSlots ? count - first : kDeformSlots;
        __syncwarp();
        for (int s = group.lane; s < size; s += lanes) {
          int l;
          const DeformPoint<Real> point = locate<Real>(in, query.q, h, first + s, &l);
          const Real logit = load_any<Real>(in.logit_dtype, in.logits, query.row * count + first + s);
          group.slots[s] = slot_of(in.levels[l], point, exponential(logit - query.largest) / query.total);
        }
        __syncwarp();
        if (busy) {
#pragma unroll 2
          for (int s = 0; s < size; ++s) {
            const DeformSlot<Real> slot = group.slots[s];
            if (slot.pixel[0] < 0) continue;
            Pack<T, N> pack[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) pack[k] = pixels[slot.pixel[k]];
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
              for (int n = 0; n < N; ++n) sum[n] += slot.weight[k] * widen(pack[k].value[n]);
          }
        }
      }
      if (c < packs && query.owned) write_row<T, N>(static_cast<Pack<T, N>*>(args.out) + query.row * packs + c, sum);
    }
  }
}

template <typename T, int N>
cudaError_t launch(const DeformAttnForward& args, cudaStream_t stream) {
  const int lanes = deform_lanes(args.in.channels, N);
  return deform_launch<typename Compute<T>::Real>(attend<T, N>, args.in, lanes, stream, args);
}

template <typename T>
cudaError_t forward(const DeformAttnForward& args, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  if (args.in.queries * args.in.heads * args.in.channels == 0) return cudaSuccess;
  return in_packs<kPack, T>(args.in.channels, {args.in.value, args.out}) ? launch<T, kPack>(args, stream)
                                                                         : launch<T, 1>(args, stream);
}

}  // namespace

int deform_attn_forward_cuda(const DeformAttnForward& args, cudaStream_t stream) {
  return for_dtype(args.in.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
