// Gumbel-softmax samples (Eq. 8) of listed voxels, some at a time so that all stays in the
// first-level cache.
#pragma once

#include "../math/philox.h"
#include "consistency_plan.h"
#include "vector_math.h"
#include "voxel_sets.h"

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

// math::philox of as many voxels as a vector has 64-bit lanes. Only the lower halves count, which
// is all that an instruction for the product of two halves looks at; the compiler finds no such.
typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kWide = kVectorBytes / 8;

static inline Wide multiply(Wide a, uint64_t b) {
#if defined(__AVX512F__)
  return Wide(_mm512_maskz_mul_epu32(0xFF, __m512i(a), __m512i(Wide{} + b)));
#elif defined(__AVX2__)
  return Wide(_mm256_mul_epu32(__m256i(a), __m256i(Wide{} + b)));
#elif defined(__SSE2__)
  return Wide(_mm_mul_epu32(__m128i(a), __m128i(Wide{} + b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

static inline void philox(const uint64_t* keys, Wide voxel, uint32_t block, Wide (&words)[4]) {
  Wide c0 = voxel, c1 = voxel >> 32, c2 = Wide{} + block, c3 = {};
  for (int i = 0; i < math::kPhiloxKeys; i += 2) {
    const Wide product0 = multiply(c0, math::kPhiloxFactor0);
    const Wide product1 = multiply(c2, math::kPhiloxFactor1);
    c0 = (product1 >> 32) ^ c1 ^ (Wide{} + keys[i]);
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ (Wide{} + keys[i + 1]);
    c3 = product0;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

struct GumbelKeys {
  uint64_t keys[math::kPhiloxKeys];  // of a lane's width each

  explicit GumbelKeys(int64_t seed) {
    for (int i = 0; i < math::kPhiloxKeys; ++i) keys[i] = math::philox_key(uint64_t(seed), i);
  }
};

// body(group, next, n) for some groups after the others that together have n voxels, up to kVoxels
// less what the last one's vector may reach beyond them.
template <class Body>
static inline void for_some(const Group* group, const Group* end, Body&& body) {
  while (group < end) {
    const Group* next = group + 1;
    while (next < end && next->index - group->index + kGroup <= kVoxels) ++next;
    body(group, next, next->index - group->index);
    group = next;
  }
}

template <class Acc, class Code>
struct GumbelSampler {
  const Consistency& p;
  GumbelKeys keys;
  uint32_t* words;     // (4, kVoxels)
  Acc* noisy;          // (classes, kVoxels)
  Acc *best, *sum;     // kVoxels each
  int32_t *voxel, *code;  // kVoxels each

  // The groups' voxels, counted from `first`, of a volume whose classes are the channels from
  // `channel`. hard[voxel] gets the sample's code, soft[c * pitch + index] its values; either may
  // be null. What lies in the kGroup beyond a list is overwritten: no vector is cut short.
  void draw(int64_t batch, int64_t channel, int64_t classes, int64_t first, const Group* group,
            const Group* end, Code* hard, Acc* soft, int64_t pitch) {
    for_some(group, end, [&](const Group* some, const Group* next, int64_t exact) {
      const int64_t n = (exact + kGroup - 1) / kGroup * kGroup;
      const uint64_t index = uint64_t(batch * p.size.voxels() + first);
      for (const Group* g = some; g < next; ++g) {
        compress_range(g->first, g->bits, voxel + g->index - some->index);
      }
      for (int64_t c = 0; c < classes; ++c) {
        if (c % 4 == 0) draw_words(index, uint32_t((channel + c) / 4), n);
        Acc* z = noisy + c * kVoxels;
        load(offset(p.logits, batch, channel + c, first), some, next, exact, z);
        add_noise(p.softmax, words + (channel + c) % 4 * kVoxels, n, z);
        decide(c, z, n, best, code);
      }
      if (hard != nullptr) {
        for (const Group* g = some; g < next; ++g) {
          place(code + g->index - some->index, g->bits, hard + g->first);
        }
      }
      if (soft != nullptr) soften(classes, n, soft + some->index, pitch);
    });
  }

 private:
  void load(int64_t start, const Group* group, const Group* end, int64_t n, Acc* z) const {
    if (!kCompresses || p.logits.voxel_stride != 1) {
      return load_listed(p.logits, start, voxel, n, z);
    }
    const int32_t index = group->index;
    with_float(p.logits.dtype, [&](auto* type) {
      const auto* logits = static_cast<decltype(type)>(p.logits.data) + start;
      for (const Group* g = group; g < end; ++g) {
        compress(logits + g->first, g->bits, z + g->index - index);
      }
    });
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

  void draw_words(uint64_t index, uint32_t block, int64_t n) {
    for (int64_t i = 0; i < n; i += kWide) {
      Wide at, drawn[4];
      for (int64_t k = 0; k < kWide; ++k) at[k] = index + uint64_t(voxel[i + k]);
      philox(keys.keys, at, block, drawn);
      for (int j = 0; j < 4; ++j) {
        for (int64_t k = 0; k < kWide; ++k) words[j * kVoxels + i + k] = uint32_t(drawn[j][k]);
      }
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
