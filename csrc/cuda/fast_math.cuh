// Fast scalar math. In float a few units in the last place suffice; correct rounding would cost
// branches, calls and registers, and numbers too small for a normal float count as 0. In double
// everything is exact.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace egcnn::cuda {
namespace {

#ifdef __CUDA_ARCH__
// Accurate to 2^-22 of the result or of 1, whichever is larger.
__device__ __forceinline__ float fast_log2(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float root(float x) {
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float inverse_root(float x) {
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#else
__device__ __forceinline__ float fast_log2(float x) { return log2f(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ float inverse_root(float x) { return rsqrt(x); }
#endif
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }
__device__ __forceinline__ float divide(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ double divide(double a, double b) { return a / b; }

}  // namespace
}  // namespace egcnn::cuda
