// What forward and backward do with a job, and in which order.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "../simd/threads.h"
#include "columns.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// A thread of a call with elements T.
template <class T, class Acc>
class NormThread {
 public:
  NormThread(const GroupNormReLU& p, const NormPlan& plan, const NormMemory<Acc>& memory)
      : p(p), plan(plan), memory(memory), thread_(omp_get_thread_num()) {}

  const GroupNormReLU& p;
  const NormPlan& plan;
  const NormMemory<Acc>& memory;

  // Calls sum(sample, job) and then write(sample, job) for this thread's jobs of each sample. In
  // between one thread calls finish(sample), while the others wait. The jobs read last are written
  // first: they may still be cached.
  template <class Sum, class Finish, class Write>
  void run(Sum&& sum, Finish&& finish, Write&& write) const {
    int64_t first, last;
    share(plan.jobs, omp_get_num_threads(), thread_, &first, &last);
    for (int64_t sample = 0; sample < p.size.batch; ++sample) {
      for (int64_t job = first; job < last; ++job) sum(sample, job);
#pragma omp barrier
#pragma omp single
      finish(sample);
      for (int64_t job = last - 1; job >= first; --job) write(sample, job);
    }
    stream_fence();
  }

  Acc* pattern(int64_t index) const { return memory.pattern(thread_, index); }

  // Repeats the values of a job's channels in a pattern.
  const Acc* fill(int64_t index, const NormJob& job, const Acc* of_channels) const {
    std::copy_n(of_channels + job.row, plan.members, pattern(index));
    return repeat(pattern(index));
  }

  // Repeats what the first slots of a pattern hold, one for each of a row's channels.
  Acc* repeat(Acc* slots) const {
    if (plan.members == 1) {
      std::fill_n(slots, plan.period, Acc(slots[0]));
    } else {
      for (int64_t n = plan.members; n < plan.period; n *= 2) std::copy_n(slots, n, slots + n);
    }
    return slots;
  }

  // The inverse: the first slots become the sums of each channel's.
  void fold(Acc* slots) const {
    for (int64_t n = plan.period / 2; n >= plan.members; n /= 2) {
      for (int64_t i = 0; i < n; ++i) slots[i] += slots[n + i];
    }
  }

  // The patterns of forward, in the first three places.
  NormPatterns<Acc> fill_normal(int64_t sample, const NormJob& job) const {
    NormPatterns<Acc> patterns{};
    patterns.mean = fill(0, job, memory.means(sample));
    patterns.scale = fill(1, job, memory.scales(sample));
    patterns.bias = fill(2, job, static_cast<const Acc*>(p.bias));
    return patterns;
  }

  const T* read(const Tensor& t, int64_t sample, const NormJob& job) const {
    return start(t, sample, job);
  }

  // Writes a job's elements, piece by piece: make(i, n, to) makes n from i on.
  template <class Make>
  void write(const Tensor& t, bool stream, int64_t sample, const NormJob& job, Make&& make) const {
    T *const out = start(t, sample, job), *const piece = memory.template piece<T>(thread_);
    ByteStream bytes(out, stream);
    for (int64_t i = 0; i < job.n; i += plan.piece) {
      const int64_t n = std::min(plan.piece, job.n - i);
      make(i, n, stream ? piece : out + i);
      if (stream) bytes.put(piece, n * sizeof(T));
    }
  }

 private:
  int thread_;

  T* start(const Tensor& t, int64_t sample, const NormJob& job) const {
    return static_cast<T*>(t.data) + sample * t.batch_stride + job.row * plan.row + job.first;
  }
};

// Calls use(job, member) for each job that has elements of a channel, its `member` there.
template <class Use>
static inline void for_jobs_of(const NormPlan& plan, int64_t channel, Use&& use) {
  const int64_t row = channel / plan.members, member = channel % plan.members;
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) use(row * plan.chunks + chunk, member);
}

// Prepares an output, and tells whether it is streamed.
static inline bool prepare_output(const Tensor& t, const Size& size) {
  const int64_t bytes = size.batch * t.batch_stride * float_bytes(t.dtype);
  advise_huge(t.data, bytes);
  return bytes > kStreamed;
}

}  // namespace egcnn::EGCNN_ISA
