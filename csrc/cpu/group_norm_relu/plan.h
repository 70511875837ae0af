// How GroupNorm cuts a sample into jobs, and the memory of a call. The jobs do not depend on the
// number of threads, and so neither do sums over them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

// Elements of a row.
struct NormJob {
  int64_t row, first, n;
};

// In memory a sample is one row after another: each a channel, or in channels_last_3d a single one,
// where all channels alternate. Element i of row r belongs to channel r + i % members.
struct NormPlan {
  int64_t members;  // channels of a row
  int64_t row;      // elements of a row
  // Elements after which both columns (columns.h) and channels repeat: members, times a power of 2.
  int64_t period;
  int64_t chunk;   // elements of a job, whole periods; the last of a row has fewer
  int64_t chunks;  // jobs of a row
  int64_t jobs;    // of a sample
  int64_t block;   // elements that are summed in the accumulation type, whole periods
  int64_t piece;   // elements that are written at a time, whole periods

  explicit NormPlan(const GroupNormReLU& p) {
    const int64_t channels = p.size.channels, elements = channels * p.size.voxels();
    members = p.x.voxel_stride == 1 ? 1 : channels;
    row = members * p.size.voxels();
    period = std::lcm(members, kWidest);
    chunk = std::max(divide_up(elements, kEnoughJobs), kLeastElements);
    chunk = round_up(std::min(chunk, row), period);
    chunks = divide_up(row, chunk);
    jobs = channels / members * chunks;
    block = round_up(kBlock, period);
    piece = round_up(kPiece, period);
  }

  NormJob job(int64_t index) const {
    const int64_t first = index % chunks * chunk;
    return {index / chunks, first, std::min(chunk, row - first)};
  }

 private:
  static constexpr int64_t kWidest = 64;  // a multiple of any column
  static constexpr int64_t kEnoughJobs = 256, kLeastElements = 16 << 10;
  static constexpr int64_t kBlock = 16 << 10, kPiece = 1 << 10;
};

// The memory of a call.
template <class Acc>
class NormMemory {
 public:
  static constexpr int64_t kPatterns = 5;  // of a thread

  double* totals;         // two sums of each channel over the samples
  Acc *slopes, *offsets;  // of each channel of a sample

  NormMemory(const GroupNormReLU& p, const NormPlan& plan)
      : plan_(plan), channels_(p.size.channels) {
    const int64_t of_all = p.size.batch * channels_;
    partials_ = static_cast<double*>(p.resources.workspace);
    totals = partials_ + 2 * plan.jobs * plan.members;
    means_ = reinterpret_cast<Acc*>(totals + 2 * channels_), scales_ = means_ + of_all;
    slopes = scales_ + of_all, offsets = slopes + channels_;
    patterns_ = align_up<Acc>(offsets + channels_);
  }

  static size_t bytes(const GroupNormReLU& p, const NormPlan& plan) {
    const int64_t channels = p.size.channels;
    const int64_t doubles = 2 * plan.jobs * plan.members + 2 * channels;
    const int64_t values = 2 * (p.size.batch + 1) * channels;
    return doubles * sizeof(double) + kLine +
           (values + p.resources.threads * scratch(plan)) * sizeof(Acc);
  }

  // Sums of the channels of a job, of one kind and of another.
  double* first(int64_t job) const { return partials_ + 2 * job * plan_.members; }
  double* second(int64_t job) const { return first(job) + plan_.members; }

  // Of a sample's channels.
  Acc* means(int64_t sample) const { return means_ + sample * channels_; }
  Acc* scales(int64_t sample) const { return scales_ + sample * channels_; }

  // Sets both from the moments of its groups.
  void set_scales(const GroupNormReLU& p, int64_t sample) const {
    const int64_t members = channels_ / p.groups;
    for (int64_t c = 0; c < channels_; ++c) {
      const int64_t group = sample * p.groups + c / members;
      means(sample)[c] = static_cast<const Acc*>(p.mean)[group];
      scales(sample)[c] =
          static_cast<const Acc*>(p.rstd)[group] * static_cast<const Acc*>(p.weight)[c];
    }
  }

  // A value of each slot of a period.
  Acc* pattern(int thread, int64_t index) const {
    return patterns_ + thread * scratch(plan_) + index * plan_.period;
  }

  // Room for plan.piece elements.
  template <class T>
  T* piece(int thread) const {
    return reinterpret_cast<T*>(pattern(thread, kPatterns));
  }

 private:
  const NormPlan& plan_;
  const int64_t channels_;
  double* partials_;
  Acc *means_, *scales_, *patterns_;

  static int64_t scratch(const NormPlan& plan) { return kPatterns * plan.period + plan.piece; }
};

}  // namespace egcnn::EGCNN_ISA
