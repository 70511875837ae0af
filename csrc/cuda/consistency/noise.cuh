// The noise of the consistency loss (Eq. 8; Jang et al., 2016).
#pragma once

#include "../../math/philox.h"
#include "../device/fast_math.cuh"
#include "../device/launch.cuh"

namespace egcnn::cuda {
namespace {

template <class Acc>
__device__ Acc sigmoid(Acc x) {
  return divide(Acc(1), Acc(1) + math::exp(-x));
}

// -log(u) for u from uniform().
__device__ __forceinline__ float minus_log(float u) { return minus_log(u, 1.0f - u); }

// Equals math::uniform, without a conversion: the word becomes the mantissa of a number in [1, 2).
__device__ __forceinline__ float uniform(uint32_t word) {
  return __uint_as_float(word >> 9 | 0x3F800000u) - 0x1.FFFFFEp-1f;
}

// Standard Gumbel noise; the second argument selects the type.
__device__ __forceinline__ float gumbel(uint32_t word, float) {
  return -0.69314718f * fast_log2(minus_log(uniform(word)));
}
__device__ __forceinline__ double gumbel(uint32_t word, double) {
  return -math::log(-math::log(math::uniform<double>(word)));
}

// Standard logistic noise, the difference of two Gumbel variables.
__device__ __forceinline__ float logistic(uint32_t word, float) {
  const float u = uniform(word);
  return minus_log(1.0f - u) - minus_log(u);
}
__device__ __forceinline__ double logistic(uint32_t word, double) {
  const double u = math::uniform<double>(word);
  return math::log(u) - math::log1p(-u);
}

}  // namespace
}  // namespace egcnn::cuda
