// Elementary functions without branches or calls. Those of float, in the namespace `vector`, are
// for loops that the compiler vectorizes, and accurate to two units in the last place. Those of
// double are the library's, since double is only for gradcheck.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>

#include "../../math/common.h"
#include "elements.h"
#include "vectors.h"

namespace egcnn::EGCNN_ISA {

constexpr float kLog2E = 1.44269504f;
// ln 2 in two parts: a whole number times the first is exact.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
// 1.5 * 2^23: adding it rounds to a whole number in every instruction set.
constexpr float kRounding = 0x1.8p23f;

namespace vector {

// exp(r) for r from -ln 2 / 2 to ln 2 / 2.
static inline float exp_near_zero(float r) {
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r + 1.0f;
}

// x = n ln 2 + r, with a whole n.
static inline float split_exponent(float x, float& n) {
  n = (x * kLog2E + kRounding) - kRounding;
  return (x - n * kLn2High) - n * kLn2Low;
}

static inline float exp(float x) {
  // Beyond these the result is 0 or infinite. A NaN compares false and is kept.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  float n;
  const float p = exp_near_zero(split_exponent(x, n));
  // 2^n in two factors, since for denormal and infinite results a single factor is not
  // representable.
  const int32_t whole = int32_t(n), half = whole >> 1;
  return p * from_bits(uint32_t(half + 127) << 23) * from_bits(uint32_t(whole - half + 127) << 23);
}

// Of a number that is not above 0, in fewer steps. Below -87 it is about 1e-38.
static inline float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n;
  const float p = exp_near_zero(split_exponent(x, n));
  return p * from_bits(uint32_t(int32_t(n) + 127) << 23);
}

// For positive, normal numbers.
static inline float log(float x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)): near 1, where the result is small, e is 0.
  constexpr uint32_t kRootOfHalf = 0x3F3504F3u;  // its bits
  const uint32_t bits = to_bits(x) - kRootOfHalf;
  const float e = float(int32_t(bits) >> 23);
  const float f = from_bits((bits & 0x007FFFFFu) + kRootOfHalf) - 1.0f;
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
  return p * f * square + e * kLn2Low - 0.5f * square + f + e * kLn2High;
}

static inline double exp(double x) { return math::exp(x); }
static inline double exp_of_negative(double x) { return math::exp(x); }
static inline double log(double x) { return math::log(x); }

}  // namespace vector

static inline Vector<float> reciprocal(Vector<float> x) {
#if defined(__AVX512F__)
  // 14 bits, then a Newton step to 23, in a third of the time of a division.
  const Vector<float> guess = (Vector<float>)_mm512_maskz_rcp14_ps(-1, (__m512)x);
  return guess + guess * (1 - guess * x);
#else
  return 1 / x;
#endif
}

// Below this the sigmoid is about 1e-38, or 0 for double. Arguments are clamped to it, so that the
// exponential needs only one scale factor.
template <class Acc>
constexpr Acc kSigmoidLowest = sizeof(Acc) == 4 ? -87 : -1000;

// Above this the sigmoid is 1.
constexpr float kSigmoidHighest = 87;

// The sigmoid; arguments are clamped to `low`, which is at least kSigmoidLowest.
template <class Acc>
static inline Vector<Acc> sigmoid(Vector<Acc> x, Acc low) {
  x = x < low ? Vector<Acc>{} + low : x;  // a NaN compares false and is kept
  if constexpr (sizeof(Acc) == 8) {
    for (int i = 0; i < kLanes<Acc>; ++i) x[i] = math::sigmoid(x[i]);
    return x;
  } else {
    typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
    x = x > kSigmoidHighest ? Vector<float>{} + kSigmoidHighest : x;
    // exp(-x) = 2^n exp(r). The polynomial's relative error is 9e-8, about the rounding error of
    // adding 1.
    const Vector<float> shifted = x * -kLog2E + kRounding, n = shifted - kRounding;
    const Vector<float> r = -(n * 0.693147181f) - x;
    const Vector<float> scale = (Vector<float>)(((Ints)shifted << 23) + 0x3F800000);
    Vector<float> p = r * 8.2902720656e-3f + 4.1898159641e-2f;
    p = p * r + 1.6667638128e-1f;
    p = p * r + 4.9999147841e-1f;
    p = p * r + 9.9999970631e-1f;
    p = p * r + 1.0f;
    return reciprocal(p * scale + 1.0f);
  }
}

// Whether inverse_root() is faster than a square root and a division.
#ifdef __AVX512F__
template <class T>
constexpr bool kInverseRoot = sizeof(T) == 4;

// 1 / sqrt(x), and 0 for zeros, infinities and NaN (mask 0x9F). One Newton step brings the estimate
// from 14 bits to full float precision.
static inline Vector<float> inverse_root(Vector<float> x) {
  using V = Vector<float>;
  const __mmask16 regular = _mm512_fpclass_ps_mask(__m512(x), 0x9F) ^ 0xFFFF;
  const V estimate = V(_mm512_maskz_rsqrt14_ps(regular, __m512(x)));
  const V error = 1.0f - x * estimate * estimate;
  return V(_mm512_maskz_mov_ps(regular, __m512(estimate + estimate * 0.5f * error)));
}
#else
template <class T>
constexpr bool kInverseRoot = false;
#endif

// The full products of the lanes' lower halves. Hardware has an instruction for this, which
// compilers do not find by themselves.
static inline Vector<uint64_t> multiply_low(Vector<uint64_t> a, uint64_t b) {
  using V = Vector<uint64_t>;
#if defined(__AVX512F__)
  return V(_mm512_maskz_mul_epu32(0xFF, __m512i(a), __m512i(V{} + b)));
#elif defined(__AVX2__)
  return V(_mm256_mul_epu32(__m256i(a), __m256i(V{} + b)));
#elif defined(__SSE2__)
  return V(_mm_mul_epu32(__m128i(a), __m128i(V{} + b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

}  // namespace egcnn::EGCNN_ISA
