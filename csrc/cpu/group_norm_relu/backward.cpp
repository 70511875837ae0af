// The gradient of GroupNorm and ReLU. x and the gradient are read for the sums of each channel, and
// again for the gradient of x. Whether the ReLU let a value pass is computed again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../ops.h"
#include "../simd/elements.h"
#include "columns.h"
#include "jobs.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// Sums of g, the gradient before the ReLU, and of g (x - mean), of each channel of a job.
template <class T, class Acc>
static void sum_job(const NormThread<T, Acc>& t, const GroupNormReLUBackward& p, int64_t sample,
                    int64_t index) {
  const NormPlan& plan = t.plan;
  const NormJob job = plan.job(index);
  const NormPatterns<Acc> patterns = t.fill_normal(sample, job);
  const T *x = t.read(p.x, sample, job), *grad = t.read(p.grad, sample, job);
  Acc *const sums = t.pattern(3), *const products = t.pattern(4);
  double *const to_bias = t.memory.first(index), *const to_weight = t.memory.second(index);
  std::fill_n(to_bias, 2 * plan.members, 0.0);
  for (int64_t i = 0; i < job.n; i += plan.block) {
    const int64_t n = std::min(plan.block, job.n - i);
    sum_gradients(x + i, grad + i, n, plan.period, patterns, sums, products);
    t.fold(sums);
    t.fold(products);
    for (int64_t m = 0; m < plan.members; ++m) {
      to_bias[m] += sums[m];
      to_weight[m] += products[m];
    }
  }
}

// With h = (x - mean) * rstd and means over the group:
// dx = rstd * (w g - mean(w g) - h * mean(w g h)) = g * scale + (x - mean) * slope + offset.
template <class Acc>
static void finish_gradients(const GroupNormReLUBackward& p, const NormPlan& plan,
                             const NormMemory<Acc>& memory, int64_t sample) {
  const int64_t members = p.size.channels / p.groups;
  const double values = double(members * p.size.voxels());
  for (int64_t group = 0; group < p.groups; ++group) {
    const double rstd = static_cast<const Acc*>(p.rstd)[sample * p.groups + group];
    double of_wg = 0, of_wgh = 0;
    for (int64_t c = group * members; c < (group + 1) * members; ++c) {
      double sum = 0, product = 0;
      for_jobs_of(plan, c, [&](int64_t job, int64_t member) {
        sum += memory.first(job)[member];
        product += memory.second(job)[member];
      });
      const double weight = static_cast<const Acc*>(p.weight)[c];
      of_wg += weight * sum / values;
      of_wgh += weight * product * rstd / values;
      memory.totals[2 * c] += product * rstd;
      memory.totals[2 * c + 1] += sum;
    }
    const double slope = -rstd * rstd * of_wgh, offset = -rstd * of_wg;
    for (int64_t c = group * members; c < (group + 1) * members; ++c) {
      memory.slopes[c] = Acc(slope);
      memory.offsets[c] = Acc(offset);
    }
  }
}

template <class T, class Acc>
static void write_job(const NormThread<T, Acc>& t, const GroupNormReLUBackward& p, bool stream,
                      int64_t sample, int64_t index) {
  const NormJob job = t.plan.job(index);
  NormPatterns<Acc> patterns = t.fill_normal(sample, job);
  patterns.slope = t.fill(3, job, t.memory.slopes);
  patterns.offset = t.fill(4, job, t.memory.offsets);
  const T *x = t.read(p.x, sample, job), *grad = t.read(p.grad, sample, job);
  t.write(p.grad_x, stream, sample, job, [&](int64_t i, int64_t n, T* to) {
    normalize_backward(x + i, grad + i, n, t.plan.period, patterns, to);
  });
}

template <class T, class Acc>
static void group_norm_relu_backward(const GroupNormReLUBackward& p) {
  const NormPlan plan(p);
  const NormMemory<Acc> memory(p, plan);
  const bool stream = prepare_output(p.grad_x, p.size);
  std::fill_n(memory.totals, 2 * p.size.channels, 0.0);
  for (int64_t sample = 0; sample < p.size.batch; ++sample) memory.set_scales(p, sample);
#pragma omp parallel num_threads(p.resources.threads)
  {
    const NormThread<T, Acc> t(p, plan, memory);
    t.run([&](int64_t sample, int64_t job) { sum_job(t, p, sample, job); },
          [&](int64_t sample) { finish_gradients(p, plan, memory, sample); },
          [&](int64_t sample, int64_t job) { write_job(t, p, stream, sample, job); });
  }
  for (int64_t c = 0; c < p.size.channels; ++c) {
    static_cast<Acc*>(p.grad_weight)[c] = Acc(memory.totals[2 * c]);
    static_cast<Acc*>(p.grad_bias)[c] = Acc(memory.totals[2 * c + 1]);
  }
}

size_t group_norm_relu_backward_workspace(const GroupNormReLUBackward& p) {
  return p.size.empty() ? 0 : NormMemory<double>::bytes(p, NormPlan(p));
}

void group_norm_relu_backward_launch(const GroupNormReLUBackward& p) {
  with_accumulator(p.x.dtype, [&](auto acc) {
    using Acc = decltype(acc);
    if (p.size.empty()) {
      std::fill_n(static_cast<Acc*>(p.grad_weight), p.size.channels, Acc(0));
      std::fill_n(static_cast<Acc*>(p.grad_bias), p.size.channels, Acc(0));
      return;
    }
    with_float_of<Acc>(p.x.dtype, [&](auto* type) {
      group_norm_relu_backward<std::remove_pointer_t<decltype(type)>, Acc>(p);
    });
  });
}

}  // namespace egcnn::EGCNN_ISA
