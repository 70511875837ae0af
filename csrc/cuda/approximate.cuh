// Functions of floats in one instruction of the multifunction unit. The twins for the CPU drop
// bits, to be off by at least as much as PTX allows a device: 2^-22 of the result for ex2, 2^-23
// for rcp.
#pragma once

#include "../math/common.h"

namespace egcnn::cuda {

#ifndef __CUDA_ARCH__
__device__ inline float drop_bits(float x, uint32_t bits) {
  return __uint_as_float(__float_as_uint(x) & ~bits);
}
#endif

// 2^x. Subnormal results are 0.
__device__ __forceinline__ float exp2(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return drop_bits(::exp2f(x), 3);
#endif
}

// 1 / x. Subnormal results are 0.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return drop_bits(1.0f / x, 1);
#endif
}

}  // namespace egcnn::cuda
