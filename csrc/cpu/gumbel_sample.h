// Gumbel-softmax samples (Eq. 8) of listed voxels, some at a time so that all stays in the
// first-level cache.
#pragma once

#include "../math/philox.h"
#include "consistency_plan.h"
#include "vector_math.h"

namespace egcnn::EGCNN_ISA {

// Adds each voxel's noise to its logit: Gumbel's, or in the two-class form the difference of two.
template <class Acc>
static inline void add_noise(bool softmax, const uint32_t* __restrict words, int64_t n,
                             Acc* __restrict z) {
  if (softmax) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      z[i] -= vector::log(-vector::log(math::uniform<Acc>(words[i])));
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const Acc u = math::uniform<Acc>(words[i]);
      z[i] += vector::log(u) - vector::log(1 - u);  // 1 - u is exact
    }
  }
}

struct GumbelKeys {
  uint32_t keys[math::kPhiloxKeys];

  explicit GumbelKeys(int64_t seed) {
    for (int i = 0; i < math::kPhiloxKeys; ++i) keys[i] = math::philox_key(uint64_t(seed), i);
  }
};

template <class Acc, class Code>
struct GumbelSampler {
  const Consistency& p;
  GumbelKeys keys;
  uint32_t* words;     // (4, kVoxels)
  Acc* noisy;          // (classes, kVoxels)
  Acc *best, *sum;     // kVoxels each
  int32_t* code;       // kVoxels

  // n voxels at first + position[i] of a volume, whose classes are the channels from `channel`.
  // hard[position[i]] gets the sample's code, soft[c * pitch + i] its values; either may be null.
  // All arrays have kLanes beyond n, which are filled with anything: no vector is cut short.
  void draw(int64_t batch, int64_t channel, int64_t classes, int64_t first,
            const int32_t* position, int64_t n, Code* hard, Acc* soft, int64_t pitch) {
    for (int64_t i = 0; i < n; i += kVoxels) {
      draw_some(batch, channel, classes, first, position + i, n - i < kVoxels ? n - i : kVoxels,
                hard, soft == nullptr ? nullptr : soft + i, pitch);
    }
  }

 private:
  void draw_some(int64_t batch, int64_t channel, int64_t classes, int64_t first,
                 const int32_t* position, int64_t exact, Code* hard, Acc* soft, int64_t pitch) {
    const int64_t n = (exact + kLanes - 1) / kLanes * kLanes;
    const uint64_t index = uint64_t(batch * p.size.voxels() + first);
    for (int64_t c = 0; c < classes; ++c) {
      if (c % 4 == 0) draw_words(index, uint32_t((channel + c) / 4), position, n);
      Acc* __restrict z = noisy + c * kVoxels;
      load_listed(p.logits, offset(p.logits, batch, channel + c, first), position, exact, z);
      add_noise(p.softmax, words + (channel + c) % 4 * kVoxels, n, z);
      decide(c, z, n, best, code);
    }
    if (hard != nullptr) {
      for (int64_t i = 0; i < exact; ++i) hard[position[i]] = Code(code[i]);
    }
    if (soft != nullptr) soften(classes, n, soft, pitch);
  }

  // Takes class c into account.
  void decide(int64_t c, const Acc* __restrict z, int64_t n, Acc* __restrict highest,
              int32_t* __restrict of) const {
    if (!p.softmax) {
      for (int64_t i = 0; i < n; ++i) of[i] = z[i] > 0;
      return;
    }
    if (c == 0) {
      for (int64_t i = 0; i < n; ++i) highest[i] = z[i], of[i] = 0;
      return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const bool better = z[i] > highest[i];
      highest[i] = better ? z[i] : highest[i];
      of[i] = better ? int32_t(c) : of[i];
    }
  }

  void draw_words(uint64_t index, uint32_t block, const int32_t* __restrict position, int64_t n) {
    const GumbelKeys copy = keys;  // which the compiler sees that no word overwrites
    uint32_t *__restrict w0 = words, *__restrict w1 = w0 + kVoxels;
    uint32_t *__restrict w2 = w1 + kVoxels, *__restrict w3 = w2 + kVoxels;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const math::Words drawn = math::philox(copy.keys, index + uint64_t(position[i]), block);
      w0[i] = drawn.word[0], w1[i] = drawn.word[1], w2[i] = drawn.word[2], w3[i] = drawn.word[3];
    }
  }

  void soften(int64_t classes, int64_t n, Acc* soft, int64_t pitch) {
    const Acc inverse_tau = Acc(1 / p.tau);
    if (!p.softmax) {
      const Acc* z = noisy;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) soft[i] = vector::sigmoid(z[i] * inverse_tau);
      return;
    }
    const Acc* highest = best;
    Acc* all = sum;
    for (int64_t i = 0; i < n; ++i) all[i] = 0;
    for (int64_t c = 0; c < classes; ++c) {
      Acc* z = noisy + c * kVoxels;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        z[i] = vector::exp((z[i] - highest[i]) * inverse_tau);
        all[i] += z[i];
      }
    }
    for (int64_t i = 0; i < n; ++i) all[i] = 1 / all[i];
    for (int64_t c = 0; c < classes; ++c) {
      const Acc* z = noisy + c * kVoxels;
      Acc* out = soft + c * pitch;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = z[i] * all[i];
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
