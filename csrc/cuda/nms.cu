// Suppression on CUDA, in four launches without a host read:
//   order   each box counts the boxes before it, by score among all and among those of its label; it moves to the latter place
//   clash   tiles of 64 x 64 boxes: which earlier boxes of its label are too close to each box, as bits
//   choose  a block for each label walks its boxes 64 at a time; labels go side by side
//   list    the kept boxes by score among all
#include "fusion3d/nms.h"

#include <cstdint>

#include "rectangles.cuh"
#include "scratch.cuh"

namespace fusion3d {
namespace {

typedef unsigned long long Bits;  // 64 boxes

constexpr int kTile = 64;
constexpr int kOrderParts = 8;       // warps that share the counting for one warp of boxes
constexpr int kOrderThreads = kWarp * kOrderParts;
constexpr int kClashThreads = 128;
constexpr int kChooseThreads = 512;  // 4 boxes of a tile for each warp
constexpr int kListThreads = 1024;

// Scratch memory, by place: boxes ordered by label, then by score. `chosen` is by score among all.
struct Work {
  int64_t count, words, bytes;
  Rectangle* box;
  double* radius;
  double* limit;   // NaN: no box
  int64_t* label;  // the largest of all for what is no box
  Bits* clash;     // [count, words] earlier boxes that are too close; only words that hold boxes of the label are written
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

__global__ void __launch_bounds__(kOrderThreads) order_boxes(const __grid_constant__ Nms args, Work work) {
  __shared__ uint64_t keys[kOrderThreads];
  __shared__ int64_t labels[kOrderThreads];
  __shared__ int32_t ranks[kOrderThreads], places[kOrderThreads];
  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp;
  const int64_t i = blockIdx.x * int64_t(kWarp) + lane;
  const bool real = i < args.count;
  const uint64_t key = real ? nms_key(load_any<double>(args.score_dtype, args.scores, i)) : 0;
  const int64_t label = real ? label_of(args, i) : 0;
  int32_t rank = 0, place = 0;
  for (int64_t first = 0; first < args.count; first += kOrderThreads) {
    const int64_t own = first + threadIdx.x;
    if (own < args.count) {
      keys[threadIdx.x] = nms_key(load_any<double>(args.score_dtype, args.scores, own));
      labels[threadIdx.x] = label_of(args, own);
    }
    __syncthreads();
    for (int n = part * kWarp; n < (part + 1) * kWarp; ++n) {  // the same for the whole warp
      const int64_t j = first + n;
      if (j >= args.count) break;
      const bool before = keys[n] < key || (keys[n] == key && j < i);
      rank += before;
      place += labels[n] < label || (labels[n] == label && before);
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
  work.label[place] = label;
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
    work.clash[(first_row + thread) * work.words + blockIdx.x] = bits[thread];
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

__global__ void __launch_bounds__(kChooseThreads) choose_boxes(Work work) {
  extern __shared__ Bits kept[];  // [words] of the label at hand
  __shared__ Bits before[kTile];
  __shared__ bool open[kTile];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t own = blockIdx.x * int64_t(kTile);
  for (int64_t start = own; start < own + kTile && start < work.count; ++start) {
    const int64_t label = work.label[start];
    if (start > 0 && work.label[start - 1] == label) continue;  // it begins further left: another block's
    const int64_t first_word = start / kTile;
    for (int64_t word = first_word; word < work.words; ++word) {
      const int64_t first = word * kTile;
      if (first > start && work.label[first] != label) break;
      for (int row = warp; row < kTile; row += kChooseThreads / kWarp) {
        const int64_t i = first + row;  // the same for the whole warp
        const bool member = i >= start && i < work.count && work.label[i] == label;
        bool hit = false;
        if (member)
          for (int64_t w = first_word + lane; w < word; w += kWarp) hit |= (work.clash[i * work.words + w] & kept[w]) != 0;
        hit = __any_sync(kAll, hit);
        if (lane == 0) {
          open[row] = member && !hit && work.limit[i] == work.limit[i];
          before[row] = member ? work.clash[i * work.words + word] : 0;
        }
      }
      __syncthreads();
      if (warp == 0) {
        const Bits undecided =
            __ballot_sync(kAll, open[lane]) | Bits(__ballot_sync(kAll, open[lane + kWarp])) << kWarp;
        const Bits result = resolve(undecided, before[lane], before[lane + kWarp], lane);
        if (lane == 0) kept[word] = result;
      }
      __syncthreads();
      if (threadIdx.x < kTile) {
        const int64_t i = first + threadIdx.x;
        if (i >= start && i < work.count && work.label[i] == label)
          work.chosen[work.rank[i]] = kept[word] >> threadIdx.x & 1 ? work.source[i] : -1;
      }
      // The next round writes `open` and `before` only, which nobody reads here, and `kept` of another word.
    }
    __syncthreads();  // before `kept` serves the next label
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
    choose_boxes<<<tiles, kChooseThreads, size_t(work.words) * sizeof(Bits), stream>>>(work);
  }
  list_kept<<<1, kListThreads, 0, stream>>>(args, work);
  return cudaGetLastError();
}

}  // namespace fusion3d
