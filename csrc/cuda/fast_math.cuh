// Fast scalar math. In float a few units in the last place suffice; correct rounding would cost
// branches, calls and registers, and subnormal numbers count as 0. In double these are the
// library's functions.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

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

}  // namespace
}  // namespace egcnn::cuda
