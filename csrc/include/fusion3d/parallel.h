// How a CPU kernel of several passes gets its threads, without knowing torch.
#pragma once

#include <cstdint>
#include <functional>

namespace fusion3d {

using Range = std::function<void(int64_t begin, int64_t end)>;

// Calls range(b, e) on pieces of [begin, end), at least `grain` long but for the last, side by side; returns when all are done.
using ParallelFor = std::function<void(int64_t begin, int64_t end, int64_t grain, const Range& range)>;

}  // namespace fusion3d
