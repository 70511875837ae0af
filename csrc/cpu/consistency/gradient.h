// Stage 5: the gradient of the logits, from that of the sample; 0 outside the band.
#pragma once

#include <cstdint>

#include "../../ops.h"
#include "../simd/bits.h"
#include "../simd/compress.h"
#include "../simd/elements.h"
#include "../simd/stream.h"
#include "band.h"
#include "plan.h"
#include "samples.h"
#include "zero_fill.h"

namespace egcnn::EGCNN_ISA {

static inline int64_t grad_bytes(const ConsistencyBackward& p) {
  return p.size.batch * p.size.channels * p.size.voxels() * float_bytes(p.grad_logits.dtype);
}

template <class Acc>
class LogitGradient {
 public:
  LogitGradient(const ConsistencyBackward& p, const ConsistencyPlan& plan, const Strip& strip,
                const Band& band, const Samples<Acc>& samples, bool backward, Arena& arena)
      : p_(p), plan_(plan), strip_(strip), band_(band), samples_(samples) {
    arena.take(grad_, backward ? plan.classes * kBatch : 0);
    arena.take(mean_, backward ? kBatch : 0);
  }

  // Whether zeros are written before anything else: if regions are interleaved, a volume's zeros
  // would overwrite the values of others.
  static bool zeros_first(const ConsistencyBackward& p) {
    return !p.softmax && p.grad_logits.voxel_stride > 1;
  }

  // The zero fill of the strip's plane.
  ZeroFill zeros(int64_t z) const {
    const Tensor& out = p_.grad_logits;
    const int64_t element = float_bytes(out.dtype), rows = strip_.end - strip_.begin;
    const bool interleaved = out.voxel_stride > 1;
    if (interleaved && strip_.channel > 0) return ZeroFill();  // filled with the first channel
    const int64_t first = (z * strip_.height + strip_.begin) * strip_.width;
    return ZeroFill(
        static_cast<uint8_t*>(out.data) + out.offset(strip_.batch, strip_.channel, first) * element,
        rows * strip_.width * out.voxel_stride * element, interleaved ? 1 : plan_.classes,
        out.channel_stride * element, rows, grad_bytes(p_) > kStreamed);
  }

  // Computes the gradient in the band of the strip's plane z from that of the sample.
  void differentiate(int64_t z) {
    const Group *begin = band_.begin(z, strip_.begin), *end = band_.begin(z, strip_.end);
    for_batches(begin, end, kBatch, [&](const Group* group, const Group* next, int64_t n) {
      differentiate(z, group, next, n);
    });
  }

  // Writes the band of plane z, which already holds zeros.
  void write(int64_t z) {
    const Group *begin = band_.begin(z, strip_.begin), *end = band_.begin(z, strip_.end);
    for (int64_t c = 0; c < plan_.classes; ++c) store_channel(z, c, begin, end);
  }

  // Adds it to others instead; see March::add_gradient().
  void add(int64_t z, int64_t c, int64_t position, int64_t n, Acc* out) const {
    const int64_t row = strip_.base + position / strip_.width;
    const int64_t last_row = strip_.base + (position + n - 1) / strip_.width;
    const Acc* values = samples_.packed(z, c);
    const Group *g = band_.begin(z, row), *end = band_.begin(z, last_row + 1);
    for (; g < end; ++g) {
      const int64_t at = g->first - position;
      if (at < 0 || at >= n) continue;
      Acc dense[kGroup];
      expand(values + g->index, g->bits, dense);
      for (int64_t k = 0; k < kGroup; ++k) out[at + k] += dense[k];
    }
  }

 private:
  const ConsistencyBackward& p_;
  const ConsistencyPlan& plan_;
  const Strip& strip_;
  const Band& band_;
  const Samples<Acc>& samples_;
  Acc *grad_, *mean_;  // (classes, kBatch), (kBatch)

  // Replaces the soft sample of the groups' n voxels by the gradient of their logits.
  void differentiate(int64_t z, const Group* group, const Group* next, int64_t n) {
    const Acc inverse_tau = Acc(1 / p_.tau);
    const int32_t first = group->index;
    Acc* mean = mean_;
    for (int64_t k = 0; k < n; ++k) mean[k] = 0;
    for (int64_t c = 0; c < plan_.classes; ++c) {
      Acc* grad = grad_ + c * kBatch;
      const Acc *q = samples_.packed(z, c) + first, *dense = samples_.grad(z, c);
      for (const Group* g = group; g < next; ++g) {
        compress(dense + g->first, g->bits, grad + g->index - first);
      }
      for (int64_t k = 0; k < n; ++k) mean[k] += q[k] * grad[k];
    }
    for (int64_t c = 0; c < plan_.classes; ++c) {
      const Acc* grad = grad_ + c * kBatch;
      Acc* q = samples_.packed(z, c) + first;
      if (p_.softmax) {
        for (int64_t k = 0; k < n; ++k) q[k] *= inverse_tau * (grad[k] - mean[k]);
      } else {
        for (int64_t k = 0; k < n; ++k) q[k] *= inverse_tau * grad[k] * (1 - q[k]);
      }
    }
  }

  void store_channel(int64_t z, int64_t c, const Group* begin, const Group* end) {
    const Tensor& out = p_.grad_logits;
    const Acc* values = samples_.packed(z, c);
    with_float(out.dtype, [&](auto* type) {
      auto* at = static_cast<decltype(type)>(out.data) +
                 out.offset(strip_.batch, strip_.channel + c, strip_.voxel(z));
      for (const Group* g = begin; g < end; ++g) {
        if (out.voxel_stride == 1) {
          expand_store(values + g->index, g->bits, at + g->first);
        } else {
          const Acc* value = values + g->index;
          for (uint32_t bits = g->bits; bits != 0; bits &= bits - 1) {
            at[(g->first + lowest_bit(bits)) * out.voxel_stride] = narrow(*value++, type);
          }
        }
      }
    });
  }
};

}  // namespace egcnn::EGCNN_ISA
