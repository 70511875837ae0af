// The PTX instructions that the sources use, named as in csrc/cuda/device/ptx.cuh.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "scheduler.h"

#define CUDA_ON_CPU_PTX(instruction) const Site& site = here(instruction)

namespace cuda_on_cpu::ptx {

// --- Tensor cores: d += a b, with a 16x8 and b 8x8, of which each lane of the warp brings its part
// in the layout of the PTX ISA, "Matrix Fragments for mma.m16n8k8" (tensor_core.cpp) ---

void mma_m16n8k8_tf32(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],
                      const uint32_t (&b)[2], CUDA_ON_CPU_PTX("mma.m16n8k8.tf32"));

// Each word of a and b holds two numbers, the first in its lower half.
void mma_m16n8k8_f16(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[2], uint32_t b,
                     CUDA_ON_CPU_PTX("mma.m16n8k8.f16"));

// --- Approximations ---

// The PTX ISA gives bounds of their errors and no more. Results here are wrong by up to as much, by
// an amount that hangs on the argument's bits, so that no test passes by luck.
inline float wrong_by(double most, double exact, float argument) {
  uint32_t bits;
  std::memcpy(&bits, &argument, sizeof bits);
  bits = (bits ^ bits >> 15) * 0x2C1B3C6Du;
  bits = (bits ^ bits >> 12) * 0x297A2D39u;
  return float(exact + most * (double(bits) / 2147483648.0 - 1));
}

// .ftz: subnormal arguments and results become 0.
inline float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }

// lg2.approx.ftz.f32: within 2^-22 of the result, or of 1 for arguments between 0.5 and 2. (Some of
// either bound is left for rounding to float.)
inline float lg2_approx(float x) {
  const double exact = log2(double(flushed(x)));
  if (!isfinite(exact)) return float(exact);
  return flushed(wrong_by(0x1.8p-23 * (x > 0.5f && x < 2.0f ? 1 : fabs(exact)), exact, x));
}

// sqrt.approx.ftz.f32: within 2^-23 of the result.
inline float sqrt_approx(float x) {
  const double exact = sqrt(double(flushed(x)));
  return isfinite(exact) ? flushed(wrong_by(0x1p-24 * exact, exact, x)) : float(exact);
}

// rsqrt.approx.ftz.f32: within 2^-22.9 of the result.
inline float rsqrt_approx(float x) {
  const double exact = 1 / sqrt(double(flushed(x)));
  return isfinite(exact) ? flushed(wrong_by(0x1p-24 * exact, exact, x)) : float(exact);
}

// ex2.approx.ftz.f32: within two units in the last place.
inline float ex2_approx(float x) {
  const double exact = exp2(double(flushed(x)));
  return isfinite(exact) ? flushed(wrong_by(0x1.8p-24 * exact, exact, x)) : float(exact);
}

// rcp.approx.ftz.f32: within one unit in the last place.
inline float rcp_approx(float x) {
  const double exact = 1 / double(flushed(x));
  return isfinite(exact) ? flushed(wrong_by(0x1p-25 * exact, exact, x)) : float(exact);
}

}  // namespace cuda_on_cpu::ptx

#undef CUDA_ON_CPU_PTX
