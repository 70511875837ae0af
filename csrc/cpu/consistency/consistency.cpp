// The consistency loss (Eqs. 7 and 8). Only edge voxels count and only their 3x3x3 neighbourhoods
// are read, so noise and softmax are computed in that band alone. A thread marches along z over a
// strip of rows. Each plane goes through these stages, each some planes behind the previous one:
//   candidates  voxels whose 3x3x3 neighbourhood is not constant, all edges among them
//   band        candidates and their neighbours
//   sampler     the Gumbel-softmax sample in the band
//   terms       at each edge: | ‖∇p‖ - ‖∇y‖ |, summed, or its gradient scattered around
//   gradient    from the gradient of the sample to that of the logits
// Backward gets the number of edges, which scales its gradients, from forward, and fills the output
// with zeros in between. With support "both" the hard sample is first drawn everywhere, and its
// edges are candidates too.
//
// The order of all sums is independent of how the planes are distributed over threads.
#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "gradient.h"
#include "march.h"
#include "plan.h"
#include "shared.h"

namespace egcnn::EGCNN_ISA {

// One thread's work on all volumes.
template <class Acc>
static void march_all(const ConsistencyBackward& p, const ConsistencyPlan& plan,
                      const ConsistencyShared<Acc>& shared, March<Acc>& march, bool backward) {
  const int64_t planes = plan.planes / plan.volumes;
  if (backward && LogitGradient<Acc>::zeros_first(p)) {
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < plan.planes; ++plane) march.clear(plane);
  }
  for (int64_t volume = 0; volume < plan.volumes; volume += plan.together) {
    const int64_t first = volume * planes, last = (volume + plan.together) * planes;
    if (p.support_both) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t plane = first; plane < last; ++plane) march.draw(plane);
    }
    shared.share_planes(first, last);
    stream_fence();
#pragma omp barrier
    for (int64_t plane; (plane = shared.next_plane()) >= 0;) march.visit(plane);
    stream_fence();
#pragma omp barrier
  }
}

// The size of a thread's scratch: lay it out from null on.
template <class Acc>
static size_t scratch_bytes(const ConsistencyBackward& p, const ConsistencyPlan& plan,
                            const ConsistencyShared<Acc>& shared, bool backward) {
  Arena arena(nullptr);
  March<Acc>(p, plan, shared, backward, arena);
  return arena.bytes();
}

template <class Acc>
static void run(const ConsistencyBackward& p, bool backward) {
  const ConsistencyPlan plan(p);
  Arena arena(p.resources.workspace);
  const ConsistencyShared<Acc> shared(p, plan, backward, arena);
  const size_t scratch = scratch_bytes(p, plan, shared, backward);
  if (backward) shared.set_scales(p, plan);
  bool invalid = false;
#pragma omp parallel num_threads(p.resources.threads) reduction(|| : invalid)
  {
    Arena own = arena;
    own.skip(omp_get_thread_num() * scratch);
    March<Acc> march(p, plan, shared, backward, own);
    march_all(p, plan, shared, march, backward);
    invalid = march.invalid();
  }
  if (!backward) shared.reduce(p, plan, invalid);
}

// The workspace's size: what the threads share, then the scratch of each.
template <class Acc>
static size_t workspace(const ConsistencyBackward& p, bool backward) {
  if (p.size.empty()) return 0;
  const ConsistencyPlan plan(p);
  Arena arena(nullptr);
  const ConsistencyShared<Acc> shared(p, plan, backward, arena);
  return arena.bytes() + p.resources.threads * scratch_bytes(p, plan, shared, backward);
}

size_t consistency_workspace(const Consistency& p) {
  const ConsistencyBackward q{p, nullptr, {}};
  return with_accumulator(p.logits.dtype,
                          [&](auto acc) { return workspace<decltype(acc)>(q, false); });
}

size_t consistency_backward_workspace(const ConsistencyBackward& p) {
  return with_accumulator(p.logits.dtype,
                          [&](auto acc) { return workspace<decltype(acc)>(p, true); });
}

template <class Acc>
static void launch(const Consistency& p) {
  if (p.size.empty()) {
    std::fill_n(p.edges, p.size.batch * p.size.channels, 0);
    *static_cast<Acc*>(p.loss) = 0;
  } else {
    run<Acc>({p, nullptr, {}}, false);
  }
}

void consistency_launch(const Consistency& p) {
  with_accumulator(p.logits.dtype, [&](auto acc) { launch<decltype(acc)>(p); });
}

void consistency_backward_launch(const ConsistencyBackward& p) {
  if (p.size.empty()) return;
  advise_huge(p.grad_logits.data, grad_bytes(p));
  with_accumulator(p.logits.dtype, [&](auto acc) { run<decltype(acc)>(p, true); });
}

}  // namespace egcnn::EGCNN_ISA
