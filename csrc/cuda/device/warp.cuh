// The lanes of a warp.
#pragma once

#include <cuda_runtime.h>

namespace egcnn::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarpSize; }

// The sum over the lanes, in each of them.
template <class V>
__device__ __forceinline__ V warp_sum(V value) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ unsigned warp_sum(unsigned value) {
  return __reduce_add_sync(kAllLanes, value);
}
#endif

}  // namespace egcnn::cuda
