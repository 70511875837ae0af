// The length of the Sobel kernels' marches through a volume.
#pragma once

#include <algorithm>

#include "../device/launch.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kThreads = 128;

// The length of a part if n is cut into the fewest equal parts of at most `most`.
inline int64_t equal_part(int64_t n, int64_t most) { return divide_up(n, divide_up(n, most)); }

// How many of n rows or planes a thread marches over, if `blocks` blocks march over all of them and
// the device holds `resident` at a time. Long marches waste less, since each reads two extra rows;
// short ones keep every multiprocessor busy.
inline int64_t march_length(int64_t n, int64_t blocks, int64_t resident) {
  const int64_t parts = divide_up(resident, blocks);
  return equal_part(n, std::clamp<int64_t>(n / parts, 8, 32));
}

template <class Int>
__device__ __forceinline__ Int clamp(Int i, Int n) {
  return min(max(i, Int(0)), n - 1);
}

}  // namespace
}  // namespace egcnn::cuda
