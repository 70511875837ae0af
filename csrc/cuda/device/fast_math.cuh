// Fast scalar math. In float a few units in the last place suffice; correct rounding would cost
// branches, calls and registers, and subnormal numbers count as 0. In double these are the
// library's functions.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "../../math/common.h"
#include "ptx.cuh"

namespace egcnn::cuda {
namespace {

__device__ __forceinline__ float fast_log2(float x) { return ptx::lg2_approx(x); }
__device__ __forceinline__ float fast_exp2(float x) { return ptx::ex2_approx(x); }
__device__ __forceinline__ float reciprocal(float x) { return ptx::rcp_approx(x); }
__device__ __forceinline__ float root(float x) { return ptx::sqrt_approx(x); }
__device__ __forceinline__ float inverse_root(float x) { return ptx::rsqrt_approx(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }
__device__ __forceinline__ float divide(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ double divide(double a, double b) { return a / b; }

// -log(u) with a relative error of 4e-7, for normal u up to 1 and w = 1 - u. Near 1, where the
// logarithm's error would be large, a polynomial in w; it is fitted to 4e-8.
__device__ __forceinline__ float minus_log(float u, float w) {
  float p = 0.3398001f;
  p = p * w + 0.14391336f;
  p = p * w + 0.2577998f;
  p = p * w + 0.3328566f;
  p = p * w + 0.5000105f;
  p = p * w + 0.99999994f;
  return w < 0.25f ? w * p : -0.69314718f * fast_log2(u);
}
__device__ __forceinline__ double minus_log(double, double w) { return -math::log1p(-w); }

}  // namespace
}  // namespace egcnn::cuda
