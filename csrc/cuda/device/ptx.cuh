// PTX instructions that CUDA C++ has no function for. tests/cuda_on_cpu emulates each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifdef __CUDACC__

namespace egcnn::cuda::ptx {

// d += a b on the tensor cores, where a is 16x8, b 8x8 and d 16x8, distributed over the warp as the
// PTX ISA says under "Matrix Fragments for mma.m16n8k8". With r = lane / 4 and q = lane % 4 a lane
// holds, of TF32 numbers,
//   a  at (r, q), (r + 8, q), (r, q + 4), (r + 8, q + 4),
//   b  at (q, r), (q + 4, r),
//   d  at (r, 2q), (r, 2q + 1), (r + 8, 2q), (r + 8, 2q + 1).
// Ignores the last 13 bits of a and b. Needs sm_80.
__device__ __forceinline__ void mma_m16n8k8_tf32(float& d0, float& d1, float& d2, float& d3,
                                                 const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of float16 numbers, two to a word, the first in its lower half; here a lane holds
//   a  at (r, 2q) and (r, 2q + 1), (r + 8, 2q) and (r + 8, 2q + 1),
//   b  at (2q, r) and (2q + 1, r),
// and of d the same elements. Needs sm_75.
__device__ __forceinline__ void mma_m16n8k8_f16(float& d0, float& d1, float& d2, float& d3,
                                                const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// --- Approximations. Subnormal arguments and results are 0. ---

// The logarithm to base 2, within 2^-22 of it, or of 1 for arguments between 0.5 and 2.
__device__ __forceinline__ float lg2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The square root, within 2^-23 of it.
__device__ __forceinline__ float sqrt_approx(float x) {
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / sqrt(x), within 2^-22.9 of it.
__device__ __forceinline__ float rsqrt_approx(float x) {
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 2^x, within two units in the last place.
__device__ __forceinline__ float ex2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / x, within one unit in the last place.
__device__ __forceinline__ float rcp_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace egcnn::cuda::ptx

#else

namespace egcnn::cuda {
namespace ptx = cuda_on_cpu::ptx;
}

#endif
