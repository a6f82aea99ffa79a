// Which box holds each point, and how many points each box holds; boxes turn about z only.
//
// A point is in a box when it is at most half a size (and the margin) from its centre along each of its axes. The arithmetic
// is in double: faces belong to the box. Nothing is in a box with NaN or a size that stays negative with the margin.
#pragma once

#include <cmath>
#include <cstdint>

#include "fusion3d/dtype.h"
#include "fusion3d/parallel.h"
#include "fusion3d/portable.h"

namespace fusion3d {

struct PointsInBoxes {
  Dtype dtype;  // of points and boxes
  int64_t num_points;
  int64_t num_boxes;
  int64_t stride;  // columns of points, at least 3
  double margin;   // [m] on every side
  const void* points;          // [P, stride] x, y, z, ...
  const void* boxes;           // [N, 7] x, y, z, length, width, height, yaw
  const int64_t* point_batch;  // [P], or null: one batch
  const int64_t* box_batch;    // [N], or null
  int64_t* box;                // [P] first box that holds the point, or -1
  int64_t* count;              // [N] points in each box
};

// A box made ready: half sizes with the margin, direction, and the square of the radius seen from above.
struct Cuboid {
  double x, y, z, half_length, half_width, half_height, cos, sin;
};

FUSION3D_SHARED Cuboid cuboid_of(
    double x, double y, double z, double length, double width, double height, double yaw, double margin) {
  return {x, y, z, length / 2 + margin, width / 2 + margin, height / 2 + margin, cos(yaw), sin(yaw)};
}

FUSION3D_SHARED bool holds(const Cuboid& box, double px, double py, double pz) {
  const double x = px - box.x, y = py - box.y;
  return fabs(pz - box.z) <= box.half_height && fabs(box.cos * x + box.sin * y) <= box.half_length &&
         fabs(box.cos * y - box.sin * x) <= box.half_width;
}

void points_in_boxes_cpu(const PointsInBoxes& args, const ParallelFor& parallel);

// CUDA, on device pointers and the given stream, without synchronisation. Returns a cudaError_t.
int points_in_boxes_cuda(const PointsInBoxes& args, cudaStream_t stream);

}  // namespace fusion3d
