// A run of voxels, all channels of which lie in scratch, each in a row of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/stream.h"
#include "../simd/vector_math.h"

namespace egcnn::EGCNN_ISA {

// The sigmoid p of z, 1 - p without cancellation, and what log(p) and log(1 - p) have in common.
template <class Acc>
struct Logistic {
  Acc p, complement, softplus;  // softplus of -|z|
};

template <bool entropy, class Acc>
static inline Logistic<Acc> logistic(Acc z) {
  const Acc e = vector::exp_of_negative(z < 0 ? z : -z), one_more = 1 + e, inverse = 1 / one_more;
  const Acc small = e * inverse;
  Acc softplus = 0;
  // What rounding took from 1 + e is given back, since most terms are tiny.
  if constexpr (entropy) softplus = vector::log(one_more) + (e - (one_more - 1)) * inverse;
  return {z < 0 ? small : inverse, z < 0 ? inverse : small, softplus};
}

// How many voxels a run has, in whole lines: as many as the first-level cache holds of all
// channels.
static inline int64_t run_voxels(int64_t channels) {
  constexpr int64_t kElements = 4096;
  return std::clamp<int64_t>(kElements / std::max<int64_t>(channels, 1) / 64 * 64, 64, 1024);
}

// The scratch of a run: two rows of each channel, and two that all share.
static inline size_t run_bytes(int64_t channels, int64_t voxels, int64_t element) {
  return (2 * channels + 2) * voxels * element + kLine;
}

template <class Acc>
class Run {
 public:
  Run(const RegionSums& p, int64_t pitch, char* scratch)
      : p_(p), channels_(p.size.channels), pitch_(pitch),
        probabilities_(reinterpret_cast<Acc*>(scratch)), truth_(probabilities_ + channels_ * pitch),
        spare_(truth_ + channels_ * pitch) {}

  // Reads n voxels, and turns logits into probabilities unless they are independent.
  void read(int64_t batch, int64_t voxel, int64_t n) {
    read(batch, voxel, n, [&](int64_t c, Acc*) { read_truth(batch, c, voxel); });
  }

  // The same with put_truth(c, row), which puts into the row of channel c what the target says: 1
  // inside the region, 0 outside.
  template <class Truth>
  void read(int64_t batch, int64_t voxel, int64_t n, Truth&& put_truth) {
    n_ = n;
    for (int64_t c = 0; c < channels_; ++c) {
      load(p_.logits.dtype, p_.logits.data, p_.logits.offset(batch, c, voxel),
           p_.logits.voxel_stride, n, logits(c));
      put_truth(c, truth(c));
    }
    if (p_.softmax) softmax();
  }

  // Adds the sums of a channel over the run.
  void add_sums(int64_t channel, double* totals) const {
    if (p_.softmax) {
      add_row<false, true>(channel, totals);
    } else if (p_.entropy) {
      add_row<true, false>(channel, totals);
    } else {
      add_row<false, false>(channel, totals);
    }
  }

  // Replaces the logits by their gradients, given those of the sums of all channels.
  void differentiate(const Acc* grads) {
    if (p_.softmax) return differentiate_softmax(grads);
    for (int64_t c = 0; c < channels_; ++c) {
      if (p_.entropy) {
        differentiate_row<true>(c, grads + c * p_.sum_count());
      } else {
        differentiate_row<false>(c, grads + c * p_.sum_count());
      }
    }
  }

  // Writes the rows that differentiate() made.
  void write(const Tensor& out, int64_t batch, int64_t voxel, bool stream) {
    char* const data = static_cast<char*>(out.data);
    const int64_t element = float_bytes(out.dtype);
    if (out.voxel_stride == 1) {
      for (int64_t c = 0; c < channels_; ++c) {
        ByteStream to(data + out.offset(batch, c, voxel) * element, stream);
        to.put_as(out.dtype, logits(c), n_);
      }
      return;
    }
    // The rows of the truth are not needed any more.
    Acc* const interleaved = truth_;
    for (int64_t c = 0; c < channels_; ++c) {
      const Acc* const row = logits(c);
      for (int64_t i = 0; i < n_; ++i) interleaved[i * channels_ + c] = row[i];
    }
    ByteStream to(data + out.offset(batch, 0, voxel) * element, stream);
    to.put_as(out.dtype, interleaved, n_ * channels_);
  }

  // A channel's logits, then probabilities, then gradients.
  Acc* logits(int64_t channel) const { return probabilities_ + channel * pitch_; }

 private:
  Acc* truth(int64_t channel) const { return truth_ + channel * pitch_; }

  // 1 inside the region, 0 outside, and kUncounted where the voxel does not count.
  static constexpr Acc kUncounted = -1;

  void read_truth(int64_t batch, int64_t channel, int64_t voxel) {
    const int64_t stride = p_.target.voxel_stride;
    const uint8_t* const in =
        static_cast<const uint8_t*>(p_.target.data) + p_.target.offset(batch, channel, voxel);
    Acc* const row = truth(channel);
    if (stride == 1) {
      for (int64_t i = 0; i < n_; ++i) row[i] = in[i] > 1 ? kUncounted : Acc(in[i]);
    } else {
      for (int64_t i = 0; i < n_; ++i)
        row[i] = in[i * stride] > 1 ? kUncounted : Acc(in[i * stride]);
    }
  }

  void softmax() {
    Acc* const highest = spare_;
    Acc* const total = spare_ + pitch_;
    std::copy_n(logits(0), n_, highest);
    for (int64_t c = 1; c < channels_; ++c) {
      const Acc* const row = logits(c);
      for (int64_t i = 0; i < n_; ++i) highest[i] = row[i] > highest[i] ? row[i] : highest[i];
    }
    std::fill_n(total, n_, Acc(0));
    for (int64_t c = 0; c < channels_; ++c) {
      Acc* const row = logits(c);
      for (int64_t i = 0; i < n_; ++i)
        total[i] += row[i] = vector::exp_of_negative(row[i] - highest[i]);
    }
    for (int64_t i = 0; i < n_; ++i) total[i] = 1 / total[i];
    for (int64_t c = 0; c < channels_; ++c) {
      Acc* const row = logits(c);
      for (int64_t i = 0; i < n_; ++i) row[i] *= total[i];
    }
  }

  template <bool entropy, bool ready>
  void add_row(int64_t channel, double* totals) const {
    constexpr int64_t kPart = 256;  // so short that roundings of a sum do not add up
    for (int64_t i = 0; i < n_; i += kPart) {
      add_part<entropy, ready>(logits(channel) + i, truth(channel) + i, std::min(kPart, n_ - i),
                               totals);
    }
  }

  template <bool entropy, bool ready>
  static void add_part(const Acc* row, const Acc* truth, int64_t n, double* totals) {
    Acc overlap = 0, squares = 0, inside = 0, inside_entropy = 0, outside_entropy = 0;
#pragma omp simd reduction(+ : overlap, squares, inside, inside_entropy, outside_entropy)
    for (int64_t i = 0; i < n; ++i) {
      const Acc z = row[i], is_inside = truth[i] > 0 ? 1 : 0;
      Logistic<Acc> found{z, 0, 0};
      if constexpr (!ready) found = logistic<entropy>(z);
      const Acc p = truth[i] < 0 ? 0 : found.p;
      overlap += p * is_inside;
      squares += p * p;
      inside += is_inside;
      if constexpr (entropy) {
        const Acc positive = z < 0 ? 0 : z;
        inside_entropy += truth[i] > 0 ? found.softplus + (positive - z) : 0;
        outside_entropy += truth[i] == 0 ? found.softplus + positive : 0;
      }
    }
    totals[0] += overlap;
    totals[1] += squares;
    totals[2] += inside;
    if constexpr (entropy) {
      totals[3] += inside_entropy;
      totals[4] += outside_entropy;
    }
  }

  template <bool entropy>
  void differentiate_row(int64_t channel, const Acc* grads) {
    Acc* const row = logits(channel);
    const Acc* const truth = this->truth(channel);
    const Acc overlap = grads[0], squares = 2 * grads[1];
    const Acc inside = entropy ? grads[3] : 0, outside = entropy ? grads[4] : 0;
    for (int64_t i = 0; i < n_; ++i) {
      const Logistic<Acc> found = logistic<false>(row[i]);
      Acc grad = ((truth[i] > 0 ? overlap : 0) + squares * found.p) * found.p * found.complement;
      if constexpr (entropy) {
        grad += truth[i] > 0 ? -inside * found.complement : outside * found.p;
      }
      row[i] = truth[i] < 0 ? 0 : grad;
    }
  }

  // dz = p (dp - sum over channels of p dp).
  void differentiate_softmax(const Acc* grads) {
    Acc* const mean = spare_;
    std::fill_n(mean, n_, Acc(0));
    for (int64_t c = 0; c < channels_; ++c) {
      Acc* const p = logits(c);
      Acc* const slope = truth(c);
      const Acc* const grad = grads + c * p_.sum_count();
      const Acc overlap = grad[0], squares = 2 * grad[1];
      for (int64_t i = 0; i < n_; ++i) {
        p[i] = slope[i] < 0 ? 0 : p[i];  // NaN may be where voxels do not count
        slope[i] = (slope[i] > 0 ? overlap : 0) + squares * p[i];
        mean[i] += slope[i] * p[i];
      }
    }
    for (int64_t c = 0; c < channels_; ++c) {
      Acc* const p = logits(c);
      const Acc* const slope = truth(c);
      for (int64_t i = 0; i < n_; ++i) p[i] *= slope[i] - mean[i];
    }
  }

  const RegionSums& p_;
  int64_t channels_, pitch_, n_ = 0;
  Acc* probabilities_;  // or logits, or gradients: (channels, pitch)
  Acc* truth_;          // or slopes: (channels, pitch)
  Acc* spare_;          // two more rows
};

}  // namespace egcnn::EGCNN_ISA
