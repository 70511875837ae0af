// Matmuls of small fragments by a warp, on tensor cores where there are any.
#pragma once

#include "ptx.cuh"
#include "warp.cuh"

namespace egcnn::cuda {

// d += a b, where a is 16x8, b 8x8 and d 16x8, distributed over the warp as in PTX's mma.m16n8k8.
// With r = lane / 4 and q = lane % 4 a lane holds
//   a  at (r, q), (r + 8, q), (r, q + 4), (r + 8, q + 4),
//   b  at (q, r), (q + 4, r),
//   d  at (r, 2q), (r, 2q + 1), (r + 8, 2q), (r + 8, 2q + 1).
template <class Acc>
__device__ __forceinline__ void mma_by_shuffles(Acc& d0, Acc& d1, Acc& d2, Acc& d3,
                                                const Acc (&a)[4], const Acc (&b)[2]) {
  const int row = lane_index() / 4 * 4, column = lane_index() % 4 * 8;
#pragma unroll 1  // speed does not matter here, short code does
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Acc top = __shfl_sync(kAllLanes, a[2 * half], row + k);
      const Acc bottom = __shfl_sync(kAllLanes, a[2 * half + 1], row + k);
      const Acc left = __shfl_sync(kAllLanes, b[half], column + k);
      const Acc right = __shfl_sync(kAllLanes, b[half], column + 4 + k);
      d0 += top * left;
      d1 += top * right;
      d2 += bottom * left;
      d3 += bottom * right;
    }
  }
}

// Rounds to TF32, which is float32 with a mantissa of ten bits; f16 and bf16 are exact in it. The
// first product loses the last 13 bits of x; the second, which is exact, subtracts all but x again.
// Overflows beyond 4e34.
__device__ __forceinline__ float to_tf32(float x) { return fmaf(-8192.0f, x, 8193.0f * x); }

// One product in TF32. Ignores the bits of a and b that TF32 lacks.
__device__ __forceinline__ void mma(float& d0, float& d1, float& d2, float& d3, const float (&a)[4],
                                    const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  ptx::mma_m16n8k8_tf32(d0, d1, d2, d3,
                        {__float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]),
                         __float_as_uint(a[3])},
                        {__float_as_uint(b[0]), __float_as_uint(b[1])});
#else
  const auto read = [](float x) { return __uint_as_float(__float_as_uint(x) & 0xFFFFE000u); };
  mma_by_shuffles(d0, d1, d2, d3, {read(a[0]), read(a[1]), read(a[2]), read(a[3])},
                  {read(b[0]), read(b[1])});
#endif
}

// Without tensor cores: double serves gradient checks, where speed does not matter.
__device__ __forceinline__ void mma(double& d0, double& d1, double& d2, double& d3,
                                    const double (&a)[4], const double (&b)[2]) {
  mma_by_shuffles(d0, d1, d2, d3, a, b);
}

// The same to about the precision of float32. Splits a factor into the sum of two TF32 numbers; a
// factor that is not split must be one already. The product of the two remainders is left out: it
// is about as small as the rounding error of float32.
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

// A double is never split.
template <bool, bool>
__device__ __forceinline__ void mma_split(double& d0, double& d1, double& d2, double& d3,
                                          const double (&a)[4], const double (&b)[2]) {
  mma(d0, d1, d2, d3, a, b);
}

}  // namespace egcnn::cuda
