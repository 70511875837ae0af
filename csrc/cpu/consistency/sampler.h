// Stage 3: Gumbel-softmax samples (Eq. 8) of listed voxels, in batches that fit in the first-level
// cache.
#pragma once

#include <cstdint>

#include "../../math/common.h"
#include "../../math/philox.h"
#include "../../ops.h"
#include "../simd/bits.h"
#include "../simd/compress.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/vector_math.h"
#include "../simd/vectors.h"
#include "band.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

struct PhiloxKeys {
  uint64_t key[math::kPhiloxKeys];  // each in a 64-bit lane

  explicit PhiloxKeys(int64_t seed) {
    for (int i = 0; i < math::kPhiloxKeys; ++i) key[i] = math::philox_key(uint64_t(seed), i);
  }
};

// math::philox for as many voxels as a vector has 64-bit lanes, whose lower halves are used.
using Lanes = Vector<uint64_t>;

static inline void philox(const PhiloxKeys& keys, Lanes voxel, uint32_t block, Lanes (&words)[4]) {
  Lanes c0 = voxel, c1 = voxel >> 32, c2 = Lanes{} + block, c3 = {};
  for (int i = 0; i < math::kPhiloxKeys; i += 2) {
    const Lanes product0 = multiply_low(c0, math::kPhiloxFactor0);
    const Lanes product1 = multiply_low(c2, math::kPhiloxFactor1);
    c0 = (product1 >> 32) ^ c1 ^ (Lanes{} + keys.key[i]);
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ (Lanes{} + keys.key[i + 1]);
    c3 = product0;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// Adds noise to each voxel's logit: Gumbel noise, or logistic noise in the two-class form.
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

// Loads the n voxels at start + position[i] voxels.
template <class Acc>
EGCNN_OUT_OF_LINE void load_listed(const Tensor& tensor, int64_t start, const int32_t* position,
                                   int64_t n, Acc* __restrict out) {
  if (n > 0 && position[n - 1] - position[0] == n - 1) {
    return load(tensor.dtype, tensor.data, start + position[0] * tensor.voxel_stride,
                tensor.voxel_stride, n, out);
  }
  with_float(tensor.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(tensor.data) + start;
    const int64_t stride = tensor.voxel_stride;
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[position[i]]);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[position[i] * stride]);
    }
  });
}

template <class Acc>
class GumbelSampler {
 public:
  GumbelSampler(const Consistency& p, const ConsistencyPlan& plan, const Strip& strip, Arena& arena)
      : p_(p), strip_(strip), classes_(plan.classes) {
    arena.take(words_, 4 * kBatch);
    arena.take(noisy_, classes_ * kBatch);
    arena.take(best_, kBatch);
    arena.take(sum_, kBatch);
    arena.take(voxel_, kBatch);
    arena.take(code_, kBatch);
  }

  // Samples the groups' voxels, counted from `first`. hard[voxel] gets the sample's code, soft[c *
  // pitch + index] its values; either may be null. Up to kGroup elements beyond a list are
  // overwritten, since vectors are not clipped.
  void draw(int64_t first, const Group* group, const Group* end, uint8_t* hard, Acc* soft,
            int64_t pitch) {
    const PhiloxKeys keys(p_.seed[p_.seed_per_sample ? strip_.batch : 0]);
    for_batches(group, end, kBatch, [&](const Group* batch, const Group* next, int64_t exact) {
      const int64_t n = round_up(exact, kGroup);
      for (const Group* g = batch; g < next; ++g) {
        compress_range(g->first, g->bits, voxel_ + g->index - batch->index);
      }
      for (int64_t c = 0; c < classes_; ++c) {
        const int64_t channel = strip_.channel + c;
        Acc* z = noisy_ + c * kBatch;
        if (c % 4 == 0) draw_words(keys, first, uint32_t(channel / 4), n);
        load_logits(p_.logits.offset(strip_.batch, channel, first), batch, next, exact, z);
        add_noise(p_.softmax, words_ + channel % 4 * kBatch, n, z);
        decide(c, z, n, best_, code_);
        if (hard != nullptr) invalid_ = invalid_ || any_nan(z, exact);
      }
      if (hard != nullptr) {
        for (const Group* g = batch; g < next; ++g) {
          expand_store(code_ + g->index - batch->index, g->bits, hard + g->first);
        }
      }
      if (soft != nullptr) soften(classes_, n, soft + batch->index, pitch);
    });
  }

  // Whether a hard sample was drawn of NaN; codes cannot say so.
  bool invalid() const { return invalid_; }

 private:
  const Consistency& p_;
  const Strip& strip_;
  const int64_t classes_;
  uint32_t* words_;         // (4, kBatch)
  Acc* noisy_;              // (classes, kBatch)
  Acc *best_, *sum_;        // (kBatch)
  int32_t *voxel_, *code_;  // (kBatch)
  bool invalid_ = false;

  void load_logits(int64_t start, const Group* group, const Group* end, int64_t n, Acc* z) const {
    if (!kHasCompress || p_.logits.voxel_stride != 1) {
      return load_listed(p_.logits, start, voxel_, n, z);
    }
    const int32_t index = group->index;
    with_float(p_.logits.dtype, [&](auto* type) {
      const auto* logits = static_cast<decltype(type)>(p_.logits.data) + start;
      for (const Group* g = group; g < end; ++g) {
        compress(logits + g->first, g->bits, z + g->index - index);
      }
    });
  }

  // Updates the hard sample with class c.
  void decide(int64_t c, const Acc* __restrict z, int64_t n, Acc* __restrict highest,
              int32_t* __restrict of) const {
    if (!p_.softmax) {
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

  static bool any_nan(const Acc* __restrict z, int64_t n) {
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < n; ++i) any |= z[i] != z[i];
    return any != 0;
  }

  // Draws four words for each voxel.
  void draw_words(const PhiloxKeys& keys, int64_t first, uint32_t block, int64_t n) {
    const int64_t before = p_.seed_per_sample ? 0 : strip_.batch * p_.size.voxels();
    const uint64_t start = uint64_t(before + first);
    constexpr int64_t lanes = kLanes<uint64_t>;
    for (int64_t i = 0; i < n; i += lanes) {
      Lanes at, drawn[4];
      for (int64_t k = 0; k < lanes; ++k) at[k] = start + uint64_t(voxel_[i + k]);
      philox(keys, at, block, drawn);
      for (int j = 0; j < 4; ++j) {
        for (int64_t k = 0; k < lanes; ++k) words_[j * kBatch + i + k] = uint32_t(drawn[j][k]);
      }
    }
  }

  void soften(int64_t classes, int64_t n, Acc* soft, int64_t pitch) {
    const Acc inverse_tau = Acc(1 / p_.tau);
    if (!p_.softmax) {
      for (int64_t i = 0; i < n; i += kLanes<Acc>) {
        const Vector<Acc> z = load_vector(noisy_ + i) * inverse_tau;
        store_vector(soft + i, sigmoid(z, kSigmoidLowest<Acc>));
      }
      return;
    }
    const Acc* highest = best_;
    Acc* all = sum_;
    for (int64_t i = 0; i < n; ++i) all[i] = 0;
    for (int64_t c = 0; c < classes; ++c) {
      Acc* z = noisy_ + c * kBatch;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        z[i] = vector::exp((z[i] - highest[i]) * inverse_tau);
        all[i] += z[i];
      }
    }
    for (int64_t i = 0; i < n; ++i) all[i] = 1 / all[i];
    for (int64_t c = 0; c < classes; ++c) {
      const Acc* z = noisy_ + c * kBatch;
      Acc* out = soft + c * pitch;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = z[i] * all[i];
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
