// GroupNorm and ReLU. A sample is read for the moments of its groups, and again to be normalised.
//
// Sums are of the accumulation type within a block, and double beyond, over jobs in their order.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../ops.h"
#include "../simd/elements.h"
#include "columns.h"
#include "jobs.h"
#include "moments.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// Moments of each channel of a job. A block's are summed around a pivot, the mean of an eighth of
// it: that is within three standard deviations of the mean, whatever the values, so that no digits
// are lost where the mean is large.
template <class T, class Acc>
static void sum_job(const NormThread<T, Acc>& t, int64_t sample, int64_t index) {
  const NormPlan& plan = t.plan;
  const NormJob job = plan.job(index);
  const int64_t members = plan.members;
  const T* x = t.read(t.p.x, sample, job);
  Acc *const pivots = t.pattern(0), *const sums = t.pattern(1), *const squares = t.pattern(2);
  double *const means = t.memory.first(index), *const distances = t.memory.second(index);
  for (int64_t i = 0; i < job.n; i += plan.block) {
    const int64_t n = std::min(plan.block, job.n - i);
    const int64_t eighth = std::min(n, round_up(divide_up(n, 8), plan.period));
    std::fill_n(pivots, plan.period, Acc(0));
    sum_moments(x + i, eighth, plan.period, pivots, sums, squares);
    t.fold(sums);
    for (int64_t m = 0; m < members; ++m) pivots[m] = sums[m] / Acc(eighth / members);
    t.repeat(pivots);

    sum_moments(x + i, n, plan.period, pivots, sums, squares);
    t.fold(sums);
    t.fold(squares);
    const double count = double(n / members);
    const JoinMoments join(double(i / members), count);
    for (int64_t m = 0; m < members; ++m) {
      const double shift = sums[m] / count;
      if (i == 0) means[m] = distances[m] = 0;
      join(pivots[m] + shift, squares[m] - sums[m] * shift, means[m], distances[m]);
    }
  }
}

template <class Acc>
static void finish_moments(const GroupNormReLU& p, const NormPlan& plan,
                           const NormMemory<Acc>& memory, int64_t sample) {
  const int64_t members = p.size.channels / p.groups;
  for (int64_t group = 0; group < p.groups; ++group) {
    double all = 0, mean = 0, squares = 0;
    for (int64_t c = group * members; c < (group + 1) * members; ++c) {
      for_jobs_of(plan, c, [&](int64_t job, int64_t member) {
        const double count = double(plan.job(job).n / plan.members);
        const JoinMoments join(all, count);
        join(memory.first(job)[member], memory.second(job)[member], mean, squares);
        all += count;
      });
    }
    static_cast<Acc*>(p.mean)[sample * p.groups + group] = Acc(mean);
    static_cast<Acc*>(p.rstd)[sample * p.groups + group] =
        Acc(1 / std::sqrt(squares / all + p.eps));
  }
  memory.set_scales(p, sample);
}

template <class T, class Acc>
static void normalize_job(const NormThread<T, Acc>& t, bool stream, int64_t sample, int64_t index) {
  const NormJob job = t.plan.job(index);
  const NormPatterns<Acc> patterns = t.fill_normal(sample, job);
  const T* x = t.read(t.p.x, sample, job);
  t.write(t.p.out, stream, sample, job,
          [&](int64_t i, int64_t n, T* to) { normalize(x + i, n, t.plan.period, patterns, to); });
}

template <class T, class Acc>
static void group_norm_relu(const GroupNormReLU& p) {
  const NormPlan plan(p);
  const NormMemory<Acc> memory(p, plan);
  const bool stream = prepare_output(p.out, p.size);
#pragma omp parallel num_threads(p.resources.threads)
  {
    const NormThread<T, Acc> t(p, plan, memory);
    t.run([&](int64_t sample, int64_t job) { sum_job(t, sample, job); },
          [&](int64_t sample) { finish_moments(p, plan, memory, sample); },
          [&](int64_t sample, int64_t job) { normalize_job(t, stream, sample, job); });
  }
}

size_t group_norm_relu_workspace(const GroupNormReLU& p) {
  return p.size.empty() ? 0 : NormMemory<double>::bytes(p, NormPlan(p));
}

void group_norm_relu_launch(const GroupNormReLU& p) {
  with_accumulator(p.x.dtype, [&](auto acc) {
    using Acc = decltype(acc);
    if (p.size.empty()) {
      std::fill_n(static_cast<Acc*>(p.mean), p.size.batch * p.groups, Acc(0));
      std::fill_n(static_cast<Acc*>(p.rstd), p.size.batch * p.groups, Acc(0));
      return;
    }
    with_float_of<Acc>(p.x.dtype, [&](auto* type) {
      group_norm_relu<std::remove_pointer_t<decltype(type)>, Acc>(p);
    });
  });
}

}  // namespace egcnn::EGCNN_ISA
