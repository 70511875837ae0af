// exp and log of floats without branches or calls, so that loops over them become vectors; within
// two units in the last place. double's are the library's own: they serve gradcheck, not speed.
#pragma once

#include <cstring>

#include "../math/common.h"
#include "rows.h"

namespace egcnn::EGCNN_ISA::vector {

// Of |x| <= ln 2 / 2, a float or a vector of them.
template <class V>
static inline V exp_near_zero(V x) {
  V p = x * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * x + 8.3334519073e-3f;
  p = p * x + 4.1665795894e-2f;
  p = p * x + 1.6666665459e-1f;
  p = p * x + 5.0000001201e-1f;
  return p * x * x + x + 1.0f;
}

static inline float exp(float x) {
  // Beyond these the result is 0 or infinite. A NaN compares false and stays.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // x = n ln 2 + r; adding 1.5 * 2^23 rounds to a whole number in every instruction set.
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  const float p = exp_near_zero(r);
  // 2^n in two factors, since denormal and infinite results have no single one.
  const int32_t whole = int32_t(n), half = whole >> 1;
  return p * from_bits(uint32_t(half + 127) << 23) * from_bits(uint32_t(whole - half + 127) << 23);
}

// Of a positive, normal number.
static inline float log(float x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)): near 1, where the result is small, e is 0.
  const uint32_t bits = to_bits(x) - 0x3F3504F3u;
  const float e = float(int32_t(bits) >> 23);
  const float f = from_bits((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  return p * f * square + e * -2.12194440e-4f - 0.5f * square + f + e * 0.693359375f;
}

static inline double exp(double x) { return ::exp(x); }
static inline double log(double x) { return ::log(x); }

// Below -87 the result is that at -87, about 1e-38, so that one scale factor does.
static inline float sigmoid(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 87.0f ? 87.0f : x;
  const float shifted = x * -1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const float r = (-x - n * 0.693359375f) - n * -2.12194440e-4f;
  const float scale = from_bits((to_bits(shifted) << 23) + 0x3F800000u);
  return 1.0f / (1.0f + exp_near_zero(r) * scale);
}

static inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

}  // namespace egcnn::EGCNN_ISA::vector
