// Deformable attention on CUDA, backward, without atomics: sums have a fixed order, so results are the same to the bit in
// every run. First, groups of lanes own the gradients of the points of one query and head, and note each point's cell and
// weights; a warp for each query sums up its references. Then points are sorted by cell (stably), and laid out in that order,
// so that a warp can own a pixel of a head: what it gets comes from the points of four cells, which are two runs.
#include <cub/device/device_radix_sort.cuh>

#include "deform_points.cuh"
#include "scratch.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;

template <typename Real>
struct alignas(sizeof(Real) * 4) Note {  // of a point, in the order of the points
  Real attention, fx, fy;
  Real read;  // what the point reads, times the gradient of its query
};

template <typename Real>
struct alignas(sizeof(Real) * 4) SortedPoint {
  Real attention, fx, fy;
  int32_t row;  // query * heads + head
};

template <typename Real>
struct Scratch {
  uint32_t *key, *sorted_key, *id, *sorted_id;  // [points]
  Note<Real>* note;                             // [points]
  SortedPoint<Real>* sorted;                    // [points]
  Real* moved;                                  // [points, 2] gradient of the location in pixels
  int32_t* ptr;                                 // [cells + 1]
  void* sort;
  size_t sort_bytes, bytes;
  int key_bits;
};

// One query and head for each group of lanes, as in `attend`.
template <typename T, int N>
__global__ void __launch_bounds__(kDeformWarps* kWarp) own_points(
    const __grid_constant__ DeformAttnBackward args, const Scratch<typename Compute<T>::Real> scratch,
    const int64_t cells, const int lanes) {
  typedef typename Compute<T>::Real Real;
  extern __shared__ __align__(16) unsigned char shared[];
  const DeformAttn& in = args.in;
  const DeformGroup<Real> group = deform_group<Real>(shared, lanes);
  DeformSlot<Real>* const slots = group.slots;
  const int count = int(in.num_levels * in.points), lane = group.lane;
  const int64_t h = blockIdx.y, packs = in.channels / N;
  for (int64_t number = first_thread() / lanes; number - group.group < in.queries; number += all_threads() / lanes) {
    const DeformQuery<Real> query = deform_query(in, group, number, h);
    const int64_t map = query.map, row = query.row;
    const Pack<T, N>* __restrict__ grad = static_cast<const Pack<T, N>*>(args.grad_out) + row * packs;
    Real mean = 0;
    for (int first = 0; first < count; first += kDeformSlots) {
      const int size = count - first < kDeformSlots ? count - first : kDeformSlots;
      __syncwarp();
      for (int s = lane; s < size; s += lanes) {
        int l;
        const DeformPoint<Real> point = locate<Real>(in, query.q, h, first + s, &l);
        slots[s] = slot_of(in.levels[l], point, Real(1));
      }
      __syncwarp();
      for (int s = 0; s < size; ++s) {
        Real dot[4] = {};
        const bool inside = map >= 0 && slots[s].pixel[0] >= 0;
        for (int64_t c = lane; inside && c < packs; c += lanes) {
          const DeformPixels<T, N> pixels(in, map, h, c);
          const Pack<T, N> g = grad[c];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const Pack<T, N> pack = pixels[slots[s].pixel[k]];
#pragma unroll
            for (int n = 0; n < N; ++n) dot[k] += widen(g.value[n]) * widen(pack.value[n]);
          }
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) dot[k] = group_sum(dot[k], lanes);
        __syncwarp();
        if (lane == s % lanes) {
          // Corners outside of the level have no part; the weights tell nothing of it where the point is on a pixel.
#pragma unroll
          for (int k = 0; k < 4; ++k) slots[s].weight[k] = dot[k];
        }
      }
      __syncwarp();
      for (int s = lane; s < size; s += lanes) {
        int l;
        const DeformPoint<Real> point = locate<Real>(in, query.q, h, first + s, &l);
        const DeformLevel& level = in.levels[l];
        const int64_t i = row * count + first + s;
        const Real a = exponential(load_any<Real>(in.logit_dtype, in.logits, i) - query.largest) / query.total;
        const bool left = point.x0 >= 0, right = point.x0 + 1 < level.cols;
        const bool top = point.y0 >= 0, bottom = point.y0 + 1 < level.rows, reads = point.inside && map >= 0;
        const Real dot0 = reads && left && top ? slots[s].weight[0] : Real(0);
        const Real dot1 = reads && right && top ? slots[s].weight[1] : Real(0);
        const Real dot2 = reads && left && bottom ? slots[s].weight[2] : Real(0);
        const Real dot3 = reads && right && bottom ? slots[s].weight[3] : Real(0);
        const Real above = dot0 + point.fx * (dot1 - dot0), below = dot2 + point.fx * (dot3 - dot2);
        const Real read = above + point.fy * (below - above);
        const Real x = a * ((1 - point.fy) * (dot1 - dot0) + point.fy * (dot3 - dot2)), y = a * (below - above);
        mean += a * read;
        if (query.owned) {
          int64_t cell = in.maps * in.heads * cells;  // none
          if (reads) {
            int64_t before = 0;
            for (int k = 0; k < l; ++k) before += deform_level_cells(in.levels[k]);
            cell = (map * in.heads + h) * cells + deform_cell(level, before, point.x0, point.y0);
          }
          scratch.key[i] = uint32_t(cell);
          scratch.id[i] = uint32_t(i);
          scratch.note[i] = {a, point.fx, point.fy, read};
          scratch.moved[2 * i] = x;
          scratch.moved[2 * i + 1] = y;
          if (scratch.moved != args.grad_offsets) {
            store_any(in.offset_dtype, args.grad_offsets, 2 * i, x);
            store_any(in.offset_dtype, args.grad_offsets, 2 * i + 1, y);
          }
        }
      }
    }
    mean = group_sum(mean, lanes);
    for (int first = 0; query.owned && first < count; first += kDeformSlots) {
      for (int s = first + lane; s < first + kDeformSlots && s < count; s += lanes) {  // those that this lane noted
        const Note<Real> note = scratch.note[row * count + s];
        store_any(in.logit_dtype, args.grad_logits, row * count + s, note.attention * (note.read - mean));
      }
    }
  }
}

// A warp for each query.
template <typename Real>
__global__ void own_references(const __grid_constant__ DeformAttnBackward args, const Real* moved) {
  const DeformAttn& in = args.in;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarp), lane = threadIdx.x % kWarp;
  const int points = int(in.points), levels = int(in.num_levels), anchors = int(in.anchors);
  const int count = levels * points, total = int(in.heads) * count;
  for (int64_t q = blockIdx.x * int64_t(kThreads / kWarp) + threadIdx.x / kWarp; q < in.queries; q += warps) {
    for (int r = 0; r < int(in.reference_levels) * anchors; ++r) {
      Real x = 0, y = 0;
      for (int i = int(lane); i < total; i += kWarp) {
        const int l = i % count / points, p = i % points;
        if ((in.reference_levels == 1 ? 0 : l) * anchors + p % anchors != r) continue;
        x += moved[2 * (q * total + i)] * Real(in.levels[l].cols);
        y += moved[2 * (q * total + i) + 1] * Real(in.levels[l].rows);
      }
      x = group_sum(x, kWarp);
      y = group_sum(y, kWarp);
      if (lane == 0) {
        const int64_t to = 2 * (q * in.reference_levels * anchors + r);
        store_any(in.reference_dtype, args.grad_reference, to, x);
        store_any(in.reference_dtype, args.grad_reference, to + 1, y);
      }
    }
  }
}

// ptr[i] = how many points are in cells before i; cells may be many more than points, or all points in one.
__global__ void find_cells(const uint32_t* __restrict__ key, int64_t points, int64_t cells, int32_t* __restrict__ ptr) {
  for (int64_t i = first_thread(); i <= cells; i += all_threads())
    ptr[i] = int32_t(lower_bound(key, points, uint32_t(i)));
}

template <typename Real>
__global__ void lay_out(const Scratch<Real> scratch, int64_t points, int count) {
  for (int64_t i = first_thread(); i < points; i += all_threads()) {
    const uint32_t id = scratch.sorted_id[i];
    const Note<Real> note = scratch.note[id];
    scratch.sorted[i] = {note.attention, note.fx, note.fy, int32_t(id / uint32_t(count))};
  }
}

// A warp for each pixel of each head of each map: its groups of lanes take turns at the points, and are then added up.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads) own_pixels(
    const __grid_constant__ DeformAttnBackward args, const SortedPoint<typename Compute<T>::Real>* __restrict__ points,
    const int32_t* __restrict__ ptr, const int lanes, const int64_t cells) {
  typedef typename Compute<T>::Real Real;
  const DeformAttn& in = args.in;
  const int groups = kWarp / lanes, group = threadIdx.x % kWarp / lanes, lane = threadIdx.x % lanes;
  const int64_t total = in.maps * in.heads * in.area, warps = int64_t(gridDim.x) * (kThreads / kWarp);
  const int64_t packs = in.channels / N;
  const Pack<T, N>* __restrict__ grad = static_cast<const Pack<T, N>*>(args.grad_out);
  for (int64_t i = blockIdx.x * int64_t(kThreads / kWarp) + threadIdx.x / kWarp; i < total; i += warps) {
    const int64_t head = i / in.area;  // map * heads + head
    const int32_t pixel = int32_t(i % in.area);
    int64_t before = 0;
    int l = 0;
    for (; l + 1 < in.num_levels && pixel >= in.levels[l + 1].start; ++l) before += deform_level_cells(in.levels[l]);
    const DeformLevel& level = in.levels[l];
    const int32_t within = pixel - int32_t(level.start), x = within % level.cols, y = within / level.cols;
    for (int64_t c = lane; c - lane < packs; c += lanes) {
      Real sum[N] = {};
#pragma unroll
      for (int below = 0; below < 2; ++below) {  // points of the row of cells that ends at this pixel; that begins at it
        const int64_t cell = head * cells + deform_cell(level, before, x, y - 1 + below);
        const int32_t middle = ptr[cell], end = ptr[cell + 1];
        for (int32_t p = ptr[cell - 1] + group; p < end; p += groups) {
          const SortedPoint<Real> point = points[p];
          const Real weight = point.attention * (p < middle ? point.fx : 1 - point.fx) * (below ? 1 - point.fy : point.fy);
          if (c < packs) {
            const Pack<T, N> g = grad[int64_t(point.row) * packs + c];
#pragma unroll
            for (int n = 0; n < N; ++n) sum[n] += weight * widen(g.value[n]);
          }
        }
      }
      __syncwarp();
#pragma unroll
      for (int n = 0; n < N; ++n)
        for (int step = kWarp / 2; step >= lanes; step /= 2) sum[n] += __shfl_xor_sync(kAll, sum[n], step);
      if (group == 0 && c < packs) {
        const int64_t map = head / in.heads, h = head % in.heads;
        write_row<T, N>(
            static_cast<Pack<T, N>*>(args.grad_value) + ((map * in.area + pixel) * in.heads + h) * packs + c, sum);
      }
    }
  }
}

// Where each array of the scratch memory lies. All pointers are null while the size is looked for.
template <typename Real>
cudaError_t divide(const DeformAttnBackward& args, int64_t points, int64_t cells, void* memory, Scratch<Real>& scratch) {
  Arena arena(memory);
  scratch.key = arena.take<uint32_t>(points);
  scratch.sorted_key = arena.take<uint32_t>(points);
  scratch.id = arena.take<uint32_t>(points);
  scratch.sorted_id = arena.take<uint32_t>(points);
  scratch.note = arena.take<Note<Real>>(points);
  scratch.sorted = arena.take<SortedPoint<Real>>(points);
  scratch.ptr = arena.take<int32_t>(cells + 1);
  const bool same = args.in.offset_dtype == (sizeof(Real) == 8 ? Dtype::kFloat64 : Dtype::kFloat32);
  scratch.moved = same ? static_cast<Real*>(args.grad_offsets) : arena.take<Real>(points * 2);
  scratch.key_bits = key_bits(uint64_t(cells));  // the last key, of points in no cell, is the number of cells
  scratch.sort_bytes = 0;
  const cudaError_t error = cub::DeviceRadixSort::SortPairs(
      nullptr, scratch.sort_bytes, scratch.key, scratch.sorted_key, scratch.id, scratch.sorted_id, int(points), 0,
      scratch.key_bits);
  scratch.sort = arena.take<unsigned char>(int64_t(scratch.sort_bytes));
  scratch.bytes = arena.bytes();
  return error;
}

template <typename T, int N>
cudaError_t launch(const DeformAttnBackward& args, void* memory, size_t* bytes, cudaStream_t stream) {
  typedef typename Compute<T>::Real Real;
  const DeformAttn& in = args.in;
  const int64_t points = in.queries * in.heads * in.num_levels * in.points;
  const int64_t cells = deform_cells(in), all_cells = in.maps * in.heads * cells;
  Scratch<Real> scratch;
  cudaError_t error = divide(args, points, all_cells, memory, scratch);
  *bytes = scratch.bytes;
  if (error != cudaSuccess || memory == nullptr) return error;
  const int lanes = deform_lanes(in.channels, N);
  if (points > 0) {
    error = deform_launch<Real>(own_points<T, N>, in, lanes, stream, args, scratch, cells);
    if (error != cudaSuccess) return error;
    error = cub::DeviceRadixSort::SortPairs(
        scratch.sort, scratch.sort_bytes, scratch.key, scratch.sorted_key, scratch.id, scratch.sorted_id, int(points), 0,
        scratch.key_bits, stream);
    if (error != cudaSuccess) return error;
    lay_out<Real><<<unsigned(blocks_for(points, kThreads)), kThreads, 0, stream>>>(
        scratch, points, int(in.num_levels * in.points));
  }
  if (in.queries > 0)  // without heads too: then there is nothing to sum up
    own_references<Real>
        <<<unsigned(blocks_for(in.queries, kThreads / kWarp)), kThreads, 0, stream>>>(args, scratch.moved);
  if (in.maps * in.heads * in.area * in.channels > 0) {
    find_cells<<<unsigned(blocks_for(all_cells + 1, kThreads)), kThreads, 0, stream>>>(
        scratch.sorted_key, points, all_cells, scratch.ptr);
    own_pixels<T, N>
        <<<unsigned(blocks_for(in.maps * in.heads * in.area, kThreads / kWarp)), kThreads, 0, stream>>>(
            args, scratch.sorted, scratch.ptr, lanes, cells);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t backward(const DeformAttnBackward& args, void* memory, size_t* bytes, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  return in_packs<kPack, T>(args.in.channels, {args.in.value, args.grad_out, args.grad_value})
             ? launch<T, kPack>(args, memory, bytes, stream)
             : launch<T, 1>(args, memory, bytes, stream);
}

}  // namespace

int deform_attn_backward_cuda(
    const DeformAttnBackward& args, void* scratch, size_t* scratch_bytes, cudaStream_t stream) {
  return for_dtype(args.in.dtype, [&](auto zero) {
    return backward<decltype(zero)>(args, scratch, scratch_bytes, stream);
  });
}

}  // namespace fusion3d
