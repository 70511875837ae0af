// The gate of Eq. 1 in vectors: alpha and its slope.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "matrix.h"
#include "vector_math.h"

namespace egcnn::EGCNN_ISA {

// Sums below count as this one. With ReLU that is 0; else the sigmoid is about 1e-38 from here
// down, so that one scale factor does for its exponential.
template <class Acc>
constexpr Acc lowest(bool relu) {
  return relu ? 0 : sizeof(Acc) == 4 ? -87 : -1000;
}

static inline Vector<float> reciprocal(Vector<float> x) {
#if defined(__AVX512F__)
  // 14 bits, and Newton's step to 23: a third of the time that the division takes.
  const Vector<float> guess = (Vector<float>)_mm512_maskz_rcp14_ps(-1, (__m512)x);
  return guess + guess * (1 - guess * x);
#else
  return 1 / x;
#endif
}

template <class Acc>
static inline Vector<Acc> sigmoid(Vector<Acc> sum, Acc low) {
  sum = sum < low ? Vector<Acc>{} + low : sum;  // a NaN compares false and stays
  if constexpr (sizeof(Acc) == 8) {
    for (int i = 0; i < kLanes<Acc>; ++i) sum[i] = vector::sigmoid(sum[i]);
    return sum;
  } else {
    typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
    sum = sum > 87.0f ? Vector<float>{} + 87.0f : sum;
    // exp(-sum) = 2^n exp(r), where adding 1.5 * 2^23 rounds to a whole n. The polynomial is fitted
    // to 9e-8 of exp(r), about what the sum with 1 leaves of it.
    const Vector<float> shifted = sum * -1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const Vector<float> r = -(n * 0.693147181f) - sum;
    const Vector<float> scale = (Vector<float>)(((Bits)shifted << 23) + 0x3F800000);
    Vector<float> p = r * 8.2902720656e-3f + 4.1898159641e-2f;
    p = p * r + 1.6667638128e-1f;
    p = p * r + 4.9999147841e-1f;
    p = p * r + 9.9999970631e-1f;
    p = p * r + 1.0f;
    return reciprocal(p * scale + 1.0f);
  }
}

template <class Acc>
static inline Vector<Acc> slope(Vector<Acc> sum, Vector<Acc> alpha, Acc low) {
  return sum <= low ? Vector<Acc>{} : alpha * (1 - alpha);
}

}  // namespace egcnn::EGCNN_ISA
