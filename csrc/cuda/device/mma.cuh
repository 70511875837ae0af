// Matmuls of small fragments by a warp on tensor cores, to several precisions.
#pragma once

#include "ptx.cuh"

namespace egcnn::cuda {

// The architecture that device code is compiled for, such as 75. Host code is compiled once for
// all, and must not depend on it.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
constexpr int kArchitecture = 0;
#endif

// Rounds to TF32, which is float32 with a ten-bit mantissa; f16 and bf16 are exact in it. The first
// product loses the last 13 bits of x; the second, which is exact, subtracts all but x again.
// Overflows beyond 4e34.
__device__ __forceinline__ float to_tf32(float x) { return fmaf(-8192.0f, x, 8193.0f * x); }

// One product in TF32, with the fragments of ptx::mma_m16n8k8_tf32.
__device__ __forceinline__ void mma(float& d0, float& d1, float& d2, float& d3, const float (&a)[4],
                                    const float (&b)[2]) {
  ptx::mma_m16n8k8_tf32(
      d0, d1, d2, d3,
      {__float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]), __float_as_uint(a[3])},
      {__float_as_uint(b[0]), __float_as_uint(b[1])});
}

// The same to about float32 precision. Splits a factor into the sum of two TF32 numbers; a factor
// that is not split must already be one. The product of the two remainders is omitted: it is about
// as small as float32's rounding error.
template <bool split_a, bool split_b>
__device__ __forceinline__ void mma_split(float& d0, float& d1, float& d2, float& d3,
                                          const float (&a)[4], const float (&b)[2]) {
  float a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a_high[i] = split_a ? to_tf32(a[i]) : a[i];
    a_low[i] = a[i] - a_high[i];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    b_high[i] = split_b ? to_tf32(b[i]) : b[i];
    b_low[i] = b[i] - b_high[i];
  }
  // Small products first, while the sum is small.
  if constexpr (split_a) mma(d0, d1, d2, d3, a_low, b_high);
  if constexpr (split_b) mma(d0, d1, d2, d3, a_high, b_low);
  mma(d0, d1, d2, d3, a_high, b_high);
}

}  // namespace egcnn::cuda
