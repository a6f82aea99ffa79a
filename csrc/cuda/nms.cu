// Suppression on CUDA, in four launches without a host read:
//   order   each box counts the boxes before it, by score among all and among those of its label; it moves to the latter place
//   clash   tiles of 64 x 64 boxes: which earlier boxes of its label are too close to each box, as bits
//   choose  a block for each label decides its boxes, 64 at a time; labels go side by side
//   list    the kept boxes by score among all
#include "fusion3d/nms.h"

#include <cstdint>

#include "rectangles.cuh"
#include "scratch.cuh"

namespace fusion3d {
namespace {

typedef unsigned long long Bits;  // 64 boxes

constexpr int kTile = 64;
constexpr int kOrderParts = 32;      // warps that share the counting for one warp of boxes
constexpr int kOrderThreads = kWarp * kOrderParts;
constexpr int kClashThreads = 128;
constexpr int kChooseThreads = 512;
constexpr int kLater = 2;            // boxes behind a tile that each of these threads looks at ahead of time
constexpr int kListThreads = 1024;

// Scratch memory, by place: boxes ordered by label, then by score. `chosen` is by score among all.
struct Work {
  int64_t count, words, bytes;
  Rectangle* box;
  double* radius;
  double* limit;   // NaN: no box
  int64_t* label;  // the largest of all for what is no box
  Bits* clash;     // [words, count] earlier boxes of a tile that are too close; written where a tile has the box's label
  int32_t* source;  // index in the input
  int32_t* rank;    // by score among all
  int32_t* chosen;  // source of the box of each rank, or -1 where it is not kept
};

Work work_of(void* scratch, int64_t count) {
  Arena arena(scratch);
  Work work;
  work.count = count;
  work.words = (count + kTile - 1) / kTile;
  work.box = arena.take<Rectangle>(count);
  work.radius = arena.take<double>(count);
  work.limit = arena.take<double>(count);
  work.label = arena.take<int64_t>(count);
  work.clash = arena.take<Bits>(count * work.words);
  work.source = arena.take<int32_t>(count);
  work.rank = arena.take<int32_t>(count);
  work.chosen = arena.take<int32_t>(count);
  work.bytes = int64_t(arena.bytes());
  return work;
}

// Label by which a box is ordered.
__device__ int64_t label_of(const Nms& args, int64_t i) {
  const double limit = nms_threshold(args, args.labels[i]);
  return limit == limit ? args.labels[i] : INT64_MAX;
}

// By what boxes are ordered. Past the last box both are larger than any; NaN, the last score, is not.
struct Order {
  uint64_t label, key;
};

__device__ Order order_of(const Nms& args, int64_t i) {
  if (i >= args.count) return {~uint64_t(0), ~uint64_t(0)};
  const uint64_t key = nms_key(load_any<double>(args.score_dtype, args.scores, i));
  return {uint64_t(label_of(args, i)), key - (key == ~uint64_t(0))};
}

__global__ void __launch_bounds__(kOrderThreads) order_boxes(const __grid_constant__ Nms args, Work work) {
  __shared__ Order others[kOrderThreads];
  __shared__ int32_t ranks[kOrderThreads], places[kOrderThreads];
  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp;
  const int64_t i = blockIdx.x * int64_t(kWarp) + lane;
  const bool real = i < args.count;
  const Order own = order_of(args, i);
  int32_t rank = 0, place = 0;
  Order next = order_of(args, threadIdx.x);
  for (int64_t first = 0; first < args.count; first += kOrderThreads) {
    others[threadIdx.x] = next;
    __syncthreads();
    next = order_of(args, first + kOrderThreads + threadIdx.x);  // on its way while these are counted
    const int64_t from = first + part * kWarp;
#pragma unroll 8
    for (int n = 0; n < kWarp; ++n) {  // the same for the whole warp
      const Order other = others[part * kWarp + n];
      const bool before = other.key < own.key + (from + n < i);  // of equal scores the lower index
      rank += before;
      place += other.label < own.label + before;  // of equal labels the better
    }
    __syncthreads();
  }
  ranks[threadIdx.x] = rank;
  places[threadIdx.x] = place;
  __syncthreads();
  if (part != 0 || !real) return;
  for (int n = 1; n < kOrderParts; ++n) {
    rank += ranks[n * kWarp + lane];
    place += places[n * kWarp + lane];
  }
  const double limit = nms_threshold(args, args.labels[i]);
  Rectangle box;
  if (args.metric == NmsMetric::kCircle) {
    box.x = load_any<double>(args.dtype, args.boxes, 5 * i), box.y = load_any<double>(args.dtype, args.boxes, 5 * i + 1);
    box.half_length = box.half_width = box.sin = 0, box.cos = 1;
    if (!(is_finite(box.x) && is_finite(box.y))) box.x = NAN;
  } else {
    box = load_rectangle(args.boxes, args.dtype, i, args.metric == NmsMetric::kAxis);
  }
  work.box[place] = box;
  work.radius[place] = args.metric == NmsMetric::kCircle ? limit / 2 : radius_of(box);
  work.limit[place] = limit;
  work.label[place] = int64_t(own.label);
  work.source[place] = int32_t(i);
  work.rank[place] = rank;
}

__global__ void __launch_bounds__(kClashThreads) find_clashes(Work work, bool circle) {
  const int64_t first_row = blockIdx.y * int64_t(kTile), first_column = blockIdx.x * int64_t(kTile);
  if (first_column > first_row) return;  // columns are the earlier boxes
  const int64_t last_column = first_column + kTile - 1 < work.count ? first_column + kTile - 1 : work.count - 1;
  if (work.label[last_column] < work.label[first_row]) return;  // no label is in both
  __shared__ Rectangle boxes[2 * kTile];  // columns, then rows
  __shared__ double radius[2 * kTile];
  __shared__ int64_t label[2 * kTile];
  __shared__ double limit[kTile];
  __shared__ Bits bits[kTile];
  __shared__ uint16_t near[kTile * kTile];
  __shared__ int count;
  const int thread = threadIdx.x;
  {
    const int64_t i = thread < kTile ? first_column + thread : first_row + thread - kTile;
    const bool real = i < work.count;
    if (real) boxes[thread] = work.box[i];
    else boxes[thread].x = NAN;
    radius[thread] = real ? work.radius[i] : 0;
    label[thread] = real ? work.label[i] : -1;
    if (thread < kTile) bits[thread] = 0;
    else limit[thread - kTile] = real ? work.limit[i] : NAN;
    if (thread == 0) count = 0;
  }
  __syncthreads();
  const int row = thread % kTile;
  const Rectangle own = boxes[kTile + row];
  const double own_radius = radius[kTile + row];
  const int64_t own_label = label[kTile + row];
  const int columns = first_column == first_row ? row : kTile;  // those before it
  for (int n = 0; n < kTile / 2; ++n) {
    const int column = thread / kTile * (kTile / 2) + n;  // the same for the whole warp
    const double reach = own_radius + radius[column];
    if (column < columns && label[column] == own_label && squared_distance(own, boxes[column]) < reach * reach)
      near[atomicAdd(&count, 1)] = uint16_t(row * kTile + column);  // in any order: it sets bits
  }
  __syncthreads();
  for (int n = thread; n < count; n += kClashThreads) {
    const int r = near[n] / kTile, c = near[n] % kTile;
    // The better box is the one that stays, as in the other kernels: the overlap is computed in its frame.
    if (circle || box_iou(boxes[c], boxes[kTile + r]) > limit[r]) atomicOr(&bits[r], Bits(1) << c);
  }
  __syncthreads();
  if (thread < kTile && first_row + thread < work.count)
    work.clash[blockIdx.x * work.count + first_row + thread] = bits[thread];
}

// Which of the 64 boxes of a tile are kept, of those in `open`, when `before` has the earlier ones of the tile that clash with
// the two boxes of each lane. A box is kept once no box before it that clashes is kept or undecided; the first undecided
// one is decided in every round, and mostly all are in two or three. For one whole warp.
__device__ Bits resolve(Bits open, Bits before_low, Bits before_high, int lane) {
  Bits kept = 0;
  while (open) {
    const bool low = open >> lane & 1, high = open >> (lane + kWarp) & 1;
    const Bits keep = __ballot_sync(kAll, low && !(before_low & (open | kept))) |
                      Bits(__ballot_sync(kAll, high && !(before_high & (open | kept)))) << kWarp;
    const Bits drop = __ballot_sync(kAll, low && (before_low & kept)) |
                      Bits(__ballot_sync(kAll, high && (before_high & kept))) << kWarp;
    kept |= keep;
    open &= ~(keep | drop);
  }
  return kept;
}

// What a thread reads of a tile's clashes: those of two boxes of the tile (warp 0), and those of some behind the tile.
struct Column {
  Bits low, high, later[kLater];
};

__device__ Column load_column(const Work& work, int64_t first, int64_t end) {
  const Bits* __restrict__ bits = work.clash + first / kTile * work.count;
  const auto load = [&](int64_t i) { return i < end ? bits[i] : 0; };
  Column column;
  const bool decides = threadIdx.x < kWarp;
  column.low = decides ? load(first + threadIdx.x) : 0;
  column.high = decides ? load(first + threadIdx.x + kWarp) : 0;
#pragma unroll
  for (int n = 0; n < kLater; ++n) column.later[n] = load(first + kTile + n * kChooseThreads + threadIdx.x);
  return column;
}

// A block for each label, by the tile that it begins in. Tile after tile is decided by one warp, and then all take those
// out that clash with what is kept. No load waits for a decision, so each tile's are on their way a tile ahead.
__global__ void __launch_bounds__(kChooseThreads) choose_boxes(Work work) {
  extern __shared__ unsigned state[];  // 32 boxes each from the block's tile on: not yet out; once decided, kept
  __shared__ Bits kept;                // of the tile at hand
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int64_t own = blockIdx.x * int64_t(kTile);
  for (int64_t start = own; start < own + kTile && start < work.count; ++start) {
    const int64_t label = work.label[start];
    if (start > 0 && work.label[start - 1] == label) continue;  // it begins further left: another block's
    int64_t end = own;
    for (; end < work.count && (end <= start || work.label[end] == label); end += kChooseThreads) {
      const int64_t i = end + thread;
      const bool member = i >= start && i < work.count && work.label[i] == label;
      const unsigned open = __ballot_sync(kAll, member && work.limit[i] == work.limit[i]);
      if (lane == 0) state[(i - own) / kWarp] = open;
    }
    if (end > work.count) end = work.count;
    __syncthreads();
    Column next = load_column(work, own, end);
    for (int64_t first = own; first < end; first += kTile) {
      const Column column = next;
      if (first + kTile < end) next = load_column(work, first + kTile, end);
      unsigned* const tile = state + (first - own) / kWarp;
      const Bits open = Bits(tile[1]) << kWarp | tile[0];
      if (open == 0) continue;  // the same for the whole block
      if (thread < kWarp) {
        const Bits result = resolve(open, column.low, column.high, lane);
        if (lane == 0) kept = result;
      }
      __syncthreads();
      if (thread < 2) tile[thread] = unsigned(kept >> thread * kWarp);
      const auto take_out = [&](int64_t i, Bits clash) {  // a warp's 32 boxes are of one owner
        const unsigned out = __ballot_sync(kAll, (clash & kept) != 0);
        if (lane == 0 && out) state[(i - own) / kWarp] &= ~out;
      };
      const int64_t behind = first + kTile + thread;
#pragma unroll
      for (int n = 0; n < kLater; ++n)
        if (behind - lane + n * kChooseThreads < end) take_out(behind + n * kChooseThreads, column.later[n]);
      for (int64_t i = behind + kLater * kChooseThreads; i - lane < end; i += kChooseThreads)
        take_out(i, i < end ? work.clash[first / kTile * work.count + i] : 0);
      __syncthreads();
    }
    for (int64_t i = own + thread; i < end; i += kChooseThreads)
      if (i >= start && work.label[i] == label)
        work.chosen[work.rank[i]] = state[(i - own) / kWarp] >> i % kWarp & 1 ? work.source[i] : -1;
    __syncthreads();  // before `state` serves the next label
  }
}

__global__ void __launch_bounds__(kListThreads) list_kept(Nms args, Work work) {
  __shared__ int32_t counts[kListThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t total = 0;
  for (int64_t first = 0; first < args.count && total < args.max_out; first += kListThreads) {
    const int64_t i = first + threadIdx.x;
    const int32_t source = i < args.count ? work.chosen[i] : -1;
    const unsigned kept = __ballot_sync(kAll, source >= 0);
    if (lane == 0) counts[warp] = __popc(kept);
    __syncthreads();
    int64_t place = total + __popc(kept & ((1u << lane) - 1));
    for (int n = 0; n < kListThreads / kWarp; ++n) {
      if (n < warp) place += counts[n];
      total += counts[n];
    }
    if (source >= 0 && place < args.max_out) args.keep[place] = source;
    __syncthreads();
  }
  if (total > args.max_out) total = args.max_out;
  for (int64_t i = total + threadIdx.x; i < args.max_out; i += kListThreads) args.keep[i] = -1;
  if (threadIdx.x == 0) *args.num_keep = total;
}

}  // namespace

int64_t nms_cuda_bytes(int64_t count) { return work_of(nullptr, count).bytes; }

int nms_cuda(const Nms& args, void* scratch, cudaStream_t stream) {
  const Work work = work_of(scratch, args.count);
  if (args.count > 0) {
    const unsigned tiles = unsigned(work.words);
    order_boxes<<<unsigned((args.count + kWarp - 1) / kWarp), kOrderThreads, 0, stream>>>(args, work);
    find_clashes<<<dim3(tiles, tiles), kClashThreads, 0, stream>>>(work, args.metric == NmsMetric::kCircle);
    const size_t state = (work.words * kTile + kChooseThreads) / kWarp * sizeof(unsigned);
    choose_boxes<<<tiles, kChooseThreads, state, stream>>>(work);
  }
  list_kept<<<1, kListThreads, 0, stream>>>(args, work);
  return cudaGetLastError();
}

}  // namespace fusion3d
