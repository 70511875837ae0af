// Stands in for CUDA's header of this name.
#pragma once

#include "cuda_runtime.h"

struct alignas(2) __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
  const unsigned sign = unsigned(value.bits & 0x8000u) << 16;
  const unsigned rest = unsigned(value.bits & 0x7FFFu) << 13;
  // Scaling by 2^112 rebiases the exponent and normalizes denormals; infinity and NaN are set
  // separately.
  const unsigned finite = __float_as_uint(__uint_as_float(rest) * 0x1p112f);
  return __uint_as_float(sign | (rest >= 0x0F800000u ? rest | 0x7F800000u : finite));
}

inline __half __float2half_rn(float value) {
  const unsigned bits = __float_as_uint(value);
  const unsigned sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return {0x7FFF};                             // NaN
  if (rest >= 0x477FF000u) return {(unsigned short)(sign | 0x7C00u)};  // too large: inf
  // Adding a power of two lets the FPU round a denormal result at the right bit.
  const unsigned denormal = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3F000000u;
  const unsigned normal = (rest - 0x38000000u + 0x0FFFu + (rest >> 13 & 1u)) >> 13;
  return {(unsigned short)(sign | (rest < 0x38800000u ? denormal : normal))};
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline float2 __half22float2(__half2 value) {
  return {__half2float(value.x), __half2float(value.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
