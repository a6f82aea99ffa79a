// The points of each voxel written out, on the CPU. Every row of the output has one point at most, and so one writer.
#include <algorithm>
#include <cstring>

#include "fusion3d/voxelize.h"
#include "pages.h"

namespace fusion3d {
namespace {

constexpr int64_t kZeros = 1 << 16;     // bytes worth a thread
constexpr int64_t kPointGrain = 8192;  // fewest points worth one
constexpr int64_t kBlock = 256;        // points of which those that are kept are listed at once

// The rows of points [begin, end), of kBytes each, or of any size where that is 0.
template <int64_t kBytes>
void put_rows(const VoxelGather& args, int64_t begin, int64_t end) {
  const int64_t bytes = kBytes ? kBytes : args.channels * size_of(args.dtype);
  const char* values = static_cast<const char*>(args.values);
  char* out = static_cast<char*>(args.out);
  int64_t from[kBlock], to[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    int64_t count = 0;
    for (int64_t i = first; i < std::min(first + kBlock, end); ++i) {  // without branches: nothing foretells what is kept
      from[count] = i;
      to[count] = slot_of(args, i);
      count += to[count] >= 0;
    }
    for (int64_t k = 0; k < count; ++k) std::memcpy(out + to[k] * bytes, values + from[k] * bytes, bytes);
  }
}

}  // namespace

void voxel_gather_cpu(const VoxelGather& args, const ParallelFor& parallel_for) {
  const int64_t row = args.channels * size_of(args.dtype), bytes = args.voxels * args.max_points * row;
  char* out = static_cast<char*>(args.out);
  expect_writes(out, bytes);
  parallel_for(0, bytes, kZeros, [&](int64_t begin, int64_t end) { std::memset(out + begin, 0, end - begin); });
  const auto put = row == 16 ? put_rows<16> : row == 20 ? put_rows<20> : put_rows<0>;  // x, y, z and one or two more
  parallel_for(0, args.rows, kPointGrain, [&](int64_t begin, int64_t end) { put(args, begin, end); });
}

}  // namespace fusion3d
