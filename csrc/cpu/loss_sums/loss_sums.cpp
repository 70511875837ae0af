// The sums of the total loss (Eq. 3) in one pass over logits and edge logits, and their gradients
// in another. A thread marches through planes as the consistency loss does; what that loss knows of
// a plane, the regions and their edges, is the target of the sums over the same plane. Only bytes
// of some planes are kept of it.
//
// The order of all sums is independent of how the planes are distributed over threads.
#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../math/sobel.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "march.h"

namespace egcnn::EGCNN_ISA {

static inline ConsistencyPlan loss_plan(const LossParts& p, double threshold) {
  ConsistencyPlan plan(p.consistency, volumes_at_once(p));
  plan.mark_edges = true;
  plan.most = math::sobel_largest_below(float(threshold));
  return plan;
}

// The workspace: what the threads share, then the scratch of each.
template <class Acc>
struct LossMemory {
  double* totals;  // (planes of all samples, columns), in forward
  ConsistencyShared<Acc> shared;
  size_t scratch;  // bytes of a thread

  LossMemory(const LossParts& p, const ConsistencyPlan& plan, bool backward, Arena& arena)
      : totals(take_totals(p, plan, backward, arena)),
        shared(p.consistency, plan, backward, arena) {
    Arena own(nullptr);  // only counts
    LossMarch<Acc>(p, plan, shared, backward, own);
    scratch = own.bytes();
  }

  static int64_t jobs(const LossParts& p, const ConsistencyPlan& plan) {
    return plan.planes / volumes_at_once(p);
  }

 private:
  static double* take_totals(const LossParts& p, const ConsistencyPlan& plan, bool backward,
                             Arena& arena) {
    double* totals;
    arena.take(totals, backward ? 0 : jobs(p, plan) * p.columns());
    return totals;
  }
};

// Adds the planes' sums of each sample in order.
template <class Acc>
static void reduce_planes(const LossParts& p, int64_t planes, const double* totals) {
  const int64_t columns = p.columns(), region_columns = p.region_columns();
  for (int64_t batch = 0; batch < p.regions.size.batch; ++batch) {
    Acc* const regions = static_cast<Acc*>(p.regions.sums) + batch * region_columns;
    Acc* const edges = static_cast<Acc*>(p.edges.sums) + batch * (columns - region_columns);
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0;
      for (int64_t i = 0; i < planes; ++i) sum += totals[(batch * planes + i) * columns + column];
      (column < region_columns ? regions[column] : edges[column - region_columns]) = Acc(sum);
    }
  }
}

template <class Acc>
static void loss_sums(const LossSumsBackward& params, bool backward) {
  const LossParts p(params);
  const ConsistencyPlan plan = loss_plan(p, params.threshold);
  Arena arena(params.resources.workspace);
  const LossMemory<Acc> memory(p, plan, backward, arena);
  const ConsistencyShared<Acc>& shared = memory.shared;
  if (backward) shared.set_scales(p.consistency, plan);
  const int64_t jobs = memory.jobs(p, plan);
  const int64_t bytes = float_bytes(p.regions.logits.dtype) * p.regions.size.voxels();
  const bool stream = bytes * p.regions.size.batch * p.channels() > kStreamed;
  bool invalid = false;
#pragma omp parallel num_threads(params.resources.threads) reduction(|| : invalid)
  {
    Arena own = arena;
    own.skip(omp_get_thread_num() * memory.scratch);
    LossMarch<Acc> march(p, plan, shared, backward, own);
    shared.share_planes(0, jobs);
#pragma omp barrier
    for (int64_t plane; (plane = shared.next_plane()) >= 0;) {
      if (backward) {
        march.differentiate(plane, stream);
      } else {
        march.add_sums(plane, memory.totals + plane * p.columns());
      }
    }
    stream_fence();
    invalid = march.invalid();
  }
  if (backward) return;
  shared.reduce(p.consistency, plan, invalid);
  reduce_planes<Acc>(p, jobs / p.regions.size.batch, memory.totals);
}

template <class Acc>
static size_t loss_workspace(const LossSumsBackward& params, bool backward) {
  if (params.regions.size.empty()) return 0;
  const LossParts p(params);
  const ConsistencyPlan plan = loss_plan(p, params.threshold);
  Arena arena(nullptr);
  const LossMemory<Acc> memory(p, plan, backward, arena);
  return arena.bytes() + params.resources.threads * memory.scratch;
}

size_t loss_sums_workspace(const LossSums& p) {
  const LossSumsBackward q{p, nullptr, nullptr, nullptr, {}, {}};
  return with_accumulator(p.regions.logits.dtype,
                          [&](auto acc) { return loss_workspace<decltype(acc)>(q, false); });
}

size_t loss_sums_backward_workspace(const LossSumsBackward& p) {
  return with_accumulator(p.regions.logits.dtype,
                          [&](auto acc) { return loss_workspace<decltype(acc)>(p, true); });
}

template <class Acc>
static void launch(const LossSums& p) {
  const LossSumsBackward q{p, nullptr, nullptr, nullptr, {}, {}};
  if (!p.regions.size.empty()) return loss_sums<Acc>(q, false);
  const LossParts parts(q);
  const int64_t batch = p.regions.size.batch;
  std::fill_n(p.consistency.edges, batch * parts.channels(), 0);
  *static_cast<Acc*>(p.consistency.loss) = 0;
  std::fill_n(static_cast<Acc*>(p.regions.sums), batch * parts.region_columns(), Acc(0));
  std::fill_n(static_cast<Acc*>(p.edges.sums), batch * (parts.columns() - parts.region_columns()),
              Acc(0));
}

void loss_sums_launch(const LossSums& p) {
  with_accumulator(p.regions.logits.dtype, [&](auto acc) { launch<decltype(acc)>(p); });
}

void loss_sums_backward_launch(const LossSumsBackward& p) {
  if (p.regions.size.empty()) return;
  const int64_t bytes =
      float_bytes(p.regions.logits.dtype) * p.regions.size.batch * p.regions.size.voxels();
  advise_huge(p.grad_logits.data, bytes * p.regions.size.channels);
  advise_huge(p.grad_edge_logits.data, bytes * p.edges.size.channels);
  with_accumulator(p.regions.logits.dtype, [&](auto acc) { loss_sums<decltype(acc)>(p, true); });
}

}  // namespace egcnn::EGCNN_ISA
