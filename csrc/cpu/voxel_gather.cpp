// The points of each voxel written out, on the CPU. Every row of the output has one point at most, and so one writer.
#include <algorithm>
#include <cstring>

#include "fusion3d/voxelize.h"
#include "pages.h"

namespace fusion3d {
namespace {

constexpr int64_t kZeros = 1 << 16;     // bytes worth a thread
constexpr int64_t kPointGrain = 8192;  // fewest points worth one

}  // namespace

void voxel_gather_cpu(const VoxelGather& args, const ParallelFor& parallel_for) {
  const int64_t row = args.channels * size_of(args.dtype), bytes = args.voxels * args.max_points * row;
  const char* values = static_cast<const char*>(args.values);
  char* out = static_cast<char*>(args.out);
  expect_writes(out, bytes);
  parallel_for(0, bytes, kZeros, [&](int64_t begin, int64_t end) { std::memset(out + begin, 0, end - begin); });
  parallel_for(0, args.rows, kPointGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (const int64_t slot = slot_of(args, i); slot >= 0) std::memcpy(out + slot * row, values + i * row, row);
  });
}

}  // namespace fusion3d
