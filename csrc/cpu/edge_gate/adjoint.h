// The adjoint of the interpolation along one axis.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../simd/isa.h"
#include "../simd/vectors.h"
#include "axis.h"
#include "resampling.h"

namespace egcnn::EGCNN_ISA {

// Adds up what was interpolated from each coarse position: a run of fine ones, each times the
// weight that the coarse one has in it.
template <class Acc>
class Adjoint {
 public:
  explicit Adjoint(const Axis<Acc>& axis)
      : coarse_(axis.coarse), start_(axis.coarse + kMostLanes), pitch_(start_.size()) {
    for (int64_t i = 0; i < pitch_; ++i) {
      const int64_t at = std::min(i, coarse_ - 1);
      start_[i] = Index(axis.first(at - 1));
      taps_ = std::max(taps_, axis.first(at + 1) - start_[i]);
    }
    for (int64_t i = 0; i < coarse_; ++i) {
      in_vectors_ &= start_[i + kLanes<Acc> - 1] - start_[i] < 2 * kLanes<Acc>;
    }
    weights_.resize(taps_ * pitch_);
    for (int64_t i = 0; i < coarse_; ++i) {
      for (int64_t x = start_[i]; x < axis.first(i + 1); ++x) {
        const Acc after = axis.weight[x];
        Acc& weight = weights_[(x - start_[i]) * pitch_ + i];
        if (axis.index[x] == i) weight += 1 - after;
        if (axis.after(x) == i) weight += after;
      }
    }
  }

  // out = a coarse row, of a fine one that can be read in whole vectors.
  void add_up(const Acc* in, Acc* out) const {
    int64_t i = 0;
    if (in_vectors_) {
      for (; i + kLanes<Acc> <= coarse_; i += kLanes<Acc>) store_vector(out + i, sums(in, i));
    }
    if (in_vectors_ && i < coarse_) {
      const Vector<Acc> last = sums(in, i);
      for (int64_t k = 0; i + k < coarse_; ++k) out[i + k] = last[k];
      return;
    }
    for (; i < coarse_; ++i) {
      Acc sum = 0;
      for (int64_t t = 0; t < taps_; ++t) {
        const Acc weight = weights_[t * pitch_ + i];
        if (weight != 0) sum += weight * in[start_[i] + t];
      }
      out[i] = sum;
    }
  }

 private:
  using Index = typename Axis<Acc>::Index;

  int64_t coarse_;
  std::vector<Index> start_;  // of each coarse position's run; the last is repeated
  int64_t pitch_, taps_ = 0;
  std::vector<Acc> weights_;  // (taps, pitch)
  bool in_vectors_ = true;    // whether a vector of runs lies within two vectors for each tap

  // Of a vector of coarse positions. Fine ones of weight 0 do not count, even if they are NaN.
  Vector<Acc> sums(const Acc* in, int64_t i) const {
    const auto lane = load_vector(start_.data() + i) - start_[i];
    Vector<Acc> sum = {};
    for (int64_t t = 0; t < taps_; ++t) {
      const Acc* from = in + start_[i] + t;
      const auto weight = load_vector(weights_.data() + t * pitch_ + i);
      const auto x = permute(load_vector(from), load_vector(from + kLanes<Acc>), lane);
      sum += weight != 0 ? weight * x : Vector<Acc>{};
    }
    return sum;
  }
};

}  // namespace egcnn::EGCNN_ISA
