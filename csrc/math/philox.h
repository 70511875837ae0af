// Philox 4x32-10 (Salmon et al., SC 2011): noise from a counter, nothing of it stored.
#pragma once

#include "common.h"

namespace egcnn::math {

struct Words {
  uint32_t word[4];
};

EGCNN_MATH Words philox(uint64_t seed, uint64_t voxel, uint32_t block) {
  uint32_t c0 = uint32_t(voxel), c1 = uint32_t(voxel >> 32), c2 = block, c3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A uniform number in (0, 1), exact in float: 23 bits and a half.
template <class T>
EGCNN_MATH T uniform(uint32_t word) {
  return (T(word >> 9) + T(0.5)) * T(1.0 / 8388608.0);
}

}  // namespace egcnn::math
