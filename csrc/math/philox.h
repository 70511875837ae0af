// Philox 4x32-10 (Salmon et al., SC 2011): counter-based noise without stored state.
#pragma once

#include <cstdint>

#include "common.h"

namespace egcnn::math {

struct Words {
  uint32_t word[4];
};

// The high half of a product. For a shifted 64-bit product nvcc emits a needless addition of zero.
EGCNN_MATH uint32_t multiply_high(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return uint32_t(uint64_t(a) * b >> 32);
#endif
}

constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;

// The keys of the ten rounds, two per round; they are the same for all voxels.
constexpr int kPhiloxKeys = 20;

EGCNN_MATH uint32_t philox_key(uint64_t seed, int i) {
  return uint32_t(i % 2 == 0 ? seed : seed >> 32) +
         uint32_t(i / 2) * (i % 2 == 0 ? 0x9E3779B9u : 0xBB67AE85u);
}

EGCNN_MATH Words philox(const uint32_t keys[kPhiloxKeys], uint64_t voxel, uint32_t block) {
  uint32_t c0 = uint32_t(voxel), c1 = uint32_t(voxel >> 32), c2 = block, c3 = 0;
  for (int i = 0; i < kPhiloxKeys; i += 2) {
    const uint32_t high0 = multiply_high(kPhiloxFactor0, c0), low0 = kPhiloxFactor0 * c0;
    const uint32_t high1 = multiply_high(kPhiloxFactor1, c2), low1 = kPhiloxFactor1 * c2;
    c0 = high1 ^ c1 ^ keys[i];
    c1 = low1;
    c2 = high0 ^ c3 ^ keys[i + 1];
    c3 = low0;
  }
  return {{c0, c1, c2, c3}};
}

// A uniform number in (0, 1), exact in float: (23 bits + 1/2) / 2^23.
template <class T>
EGCNN_MATH T uniform(uint32_t word) {
  return (T(word >> 9) + T(0.5)) * T(1.0 / 8388608.0);
}

}  // namespace egcnn::math
