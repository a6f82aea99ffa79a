// Points in boxes on CUDA. A thread owns a point and walks the boxes, which its block holds in shared memory; a circle around
// each box, in float, turns nearly all away. Counts are whole numbers, so the order in which they are added does not matter.
#include "fusion3d/points_in_boxes.h"

#include <cstdint>

#include "rectangles.cuh"

namespace fusion3d {
namespace {

constexpr int kThreads = 256;
constexpr int kBoxes = 128;  // held at a time

__global__ void __launch_bounds__(kThreads) assign_points(PointsInBoxes args) {
  __shared__ Cuboid boxes[kBoxes];
  __shared__ float3 circles[kBoxes];  // x, y, squared radius, a little more than exact
  __shared__ int64_t batches[kBoxes];
  __shared__ int counts[kBoxes];
  for (int64_t chunk = blockIdx.x * int64_t(kThreads); chunk < args.num_points; chunk += all_threads()) {
    const int64_t p = chunk + threadIdx.x;
    const bool real = p < args.num_points;
    double at[3] = {NAN, NAN, NAN};
    if (real)
      for (int n = 0; n < 3; ++n) at[n] = load_any<double>(args.dtype, args.points, p * args.stride + n);
    const float x = float(at[0]), y = float(at[1]);
    const int64_t batch = real && args.point_batch ? args.point_batch[p] : 0;
    int64_t found = -1;
    for (int64_t first = 0; first < args.num_boxes; first += kBoxes) {
      const int held = args.num_boxes - first < kBoxes ? int(args.num_boxes - first) : kBoxes;
      if (threadIdx.x < held) {
        double v[7];
        for (int n = 0; n < 7; ++n) v[n] = load_any<double>(args.dtype, args.boxes, 7 * (first + threadIdx.x) + n);
        const Cuboid box = cuboid_of(v[0], v[1], v[2], v[3], v[4], v[5], v[6], args.margin);
        const double radius = sqrt(box.half_length * box.half_length + box.half_width * box.half_width);
        const float reach = float(radius + 1e-6 * (fabs(box.x) + fabs(box.y) + radius) + 1e-18);
        boxes[threadIdx.x] = box;
        circles[threadIdx.x] = make_float3(float(box.x), float(box.y), reach * reach);
        batches[threadIdx.x] = args.box_batch ? args.box_batch[first + threadIdx.x] : 0;
        counts[threadIdx.x] = 0;
      }
      __syncthreads();
      for (int n = 0; n < held; ++n) {
        const float dx = x - circles[n].x, dy = y - circles[n].y;
        if (!(dx * dx + dy * dy <= circles[n].z)) continue;  // NaN is nowhere
        if (batches[n] != batch || !holds(boxes[n], at[0], at[1], at[2])) continue;
        atomicAdd(&counts[n], 1);
        if (found < 0) found = first + n;
      }
      __syncthreads();
      if (threadIdx.x < held && counts[threadIdx.x])
        atomicAdd(
            reinterpret_cast<unsigned long long*>(args.count) + first + threadIdx.x,
            static_cast<unsigned long long>(counts[threadIdx.x]));
      __syncthreads();
    }
    if (real) args.box[p] = found;
  }
}

}  // namespace

int points_in_boxes_cuda(const PointsInBoxes& args, cudaStream_t stream) {
  if (args.num_boxes > 0) {
    const cudaError_t error = cudaMemsetAsync(args.count, 0, args.num_boxes * sizeof(int64_t), stream);
    if (error != cudaSuccess) return error;
  }
  if (args.num_points == 0) return cudaSuccess;
  assign_points<<<unsigned(blocks_for(args.num_points, kThreads)), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fusion3d
