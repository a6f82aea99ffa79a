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
  const int groups = kWarp / lanes, warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / lanes, lane = threadIdx.x % lanes;
  DeformSlot<Real>* slots =
      reinterpret_cast<DeformSlot<Real>*>(shared) + (warp * groups + group) * kDeformSlots;
  const int count = int(in.num_levels * in.points);
  const int64_t h = blockIdx.y, row_packs = in.heads * in.channels / N;
  const int64_t per_block = int64_t(kDeformWarps) * groups;
  for (int64_t block = blockIdx.x; block * per_block < in.queries; block += gridDim.x) {
    // A warp stays together: groups past the end work on the last query and write nothing.
    const int64_t mine = block * per_block + warp * groups + group, q = mine < in.queries ? mine : in.queries - 1;
    const int64_t map = deform_map(in, q), row = q * in.heads + h;
    Real largest, total;
    group_softmax(in, row, lane, lanes, &largest, &total);
    for (int64_t c = lane; c - lane < in.channels / N; c += lanes) {
      const bool busy = map >= 0 && c < in.channels / N;
      const Pack<T, N>* __restrict__ rows =
          static_cast<const Pack<T, N>*>(in.value) + ((map < 0 ? 0 : map) * in.area * in.heads + h) * in.channels / N + c;
      Real sum[N] = {};
      for (int first = 0; first < count; first += kDeformSlots) {
        __syncwarp();
        for (int s = first + lane; s < first + kDeformSlots && s < count; s += lanes) {
          int l;
          const DeformPoint<Real> point = locate<Real>(in, q, h, s, &l);
          const Real logit = load_any<Real>(in.logit_dtype, in.logits, row * count + s);
          slots[s - first] = slot_of(in.levels[l], point, exponential(logit - largest) / total);
        }
        __syncwarp();
        const int size = count - first < kDeformSlots ? count - first : kDeformSlots;
        if (busy) {
#pragma unroll 2
          for (int s = 0; s < size; ++s) {
            const DeformSlot<Real> slot = slots[s];
            if (slot.pixel[0] < 0) continue;
            Pack<T, N> pack[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) pack[k] = rows[slot.pixel[k] * row_packs];
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
              for (int n = 0; n < N; ++n) sum[n] += slot.weight[k] * widen(pack[k].value[n]);
          }
        }
      }
      if (c < in.channels / N && mine < in.queries) {
        Pack<T, N> result;
#pragma unroll
        for (int n = 0; n < N; ++n) result.value[n] = narrow<T>(sum[n]);
        static_cast<Pack<T, N>*>(args.out)[row * (in.channels / N) + c] = result;
      }
    }
  }
}

template <typename T, int N>
cudaError_t launch(const DeformAttnForward& args, cudaStream_t stream) {
  typedef typename Compute<T>::Real Real;
  const int lanes = deform_lanes(args.in.channels, N), groups = kWarp / lanes;
  const size_t bytes = size_t(kDeformWarps) * groups * kDeformSlots * sizeof(DeformSlot<Real>);
  const dim3 blocks(unsigned(blocks_for(args.in.queries, int64_t(kDeformWarps) * groups)), unsigned(args.in.heads));
  if (bytes > 48 << 10) {
    const cudaError_t error =
        cudaFuncSetAttribute(attend<T, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
    if (error != cudaSuccess) return error;
  }
  attend<T, N><<<blocks, kDeformWarps * kWarp, bytes, stream>>>(args, lanes);
  return cudaGetLastError();
}

template <typename T>
cudaError_t forward(const DeformAttnForward& args, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  if (args.in.queries * args.in.heads * args.in.channels == 0) return cudaSuccess;
  return deform_packed(args.in, args.in.value, args.out, nullptr, kPack, sizeof(T)) ? launch<T, kPack>(args, stream)
                                                                                    : launch<T, 1>(args, stream);
}

}  // namespace

int deform_attn_forward_cuda(const DeformAttnForward& args, cudaStream_t stream) {
  return for_dtype(args.in.dtype, [&](auto zero) { return forward<decltype(zero)>(args, stream); });
}

}  // namespace fusion3d
