// The lanes of a warp.
#pragma once

#include <cuda_runtime.h>

namespace egcnn::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarpSize; }

}  // namespace egcnn::cuda
