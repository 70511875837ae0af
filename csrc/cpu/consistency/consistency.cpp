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
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "../simd/threads.h"
#include "gradient.h"
#include "march.h"
#include "plan.h"
#include "sampler.h"

namespace egcnn::EGCNN_ISA {

// Returns a thread's next plane, or -1. A thread works through its own share, then steals half of
// the most loaded thread's remainder.
template <class Acc>
static int64_t next_plane(const ConsistencyShared<Acc>& shared, int threads, int thread) {
  // Fewer planes are not worth the ones before them that a second thread computes again.
  constexpr int64_t kWorthSharing = 8;
  int64_t plane = -1;
#pragma omp critical(egcnn_consistency)
  {
    int64_t &next = shared.next[thread], &end = shared.end[thread];
    if (next == end) {
      int most = thread;
      for (int i = 0; i < threads; ++i) {
        if (shared.end[i] - shared.next[i] > shared.end[most] - shared.next[most]) most = i;
      }
      if (shared.end[most] - shared.next[most] >= kWorthSharing) {
        end = shared.end[most];
        next = shared.end[most] = (shared.next[most] + end) / 2;
      }
    }
    if (next < end) plane = next++;
  }
  return plane;
}

// One thread's work on all volumes.
template <class Acc>
static void march_all(const ConsistencyBackward& p, const ConsistencyPlan& plan,
                      const ConsistencyShared<Acc>& shared, March<Acc>& march, bool backward) {
  const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
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
    share(last - first, threads, thread, &shared.next[thread], &shared.end[thread]);
    shared.next[thread] += first, shared.end[thread] += first;
    stream_fence();
#pragma omp barrier
    for (int64_t plane; (plane = next_plane(shared, threads, thread)) >= 0;) march.visit(plane);
    stream_fence();
#pragma omp barrier
  }
}

// Computes forward's results by adding the planes' sums in order; an invalid sample's loss is NaN.
template <class Acc>
static void reduce(const Consistency& p, const ConsistencyPlan& plan,
                   const ConsistencyShared<Acc>& shared, bool invalid) {
  const int64_t pairs = plan.volumes * plan.classes, planes = plan.planes / plan.volumes;
  double total = 0;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t first = i / plan.classes * planes;
    int64_t edges = 0;
    double mismatch = 0;
    for (int64_t plane = first; plane < first + planes; ++plane) {
      edges += shared.counts[plane * plan.classes + i % plan.classes];
      mismatch += shared.sums[plane * plan.classes + i % plan.classes];
    }
    p.edges[i] = edges;
    if (edges > 0) total += mismatch / double(edges);
  }
  *static_cast<Acc*>(p.loss) = invalid ? Acc(NAN) : Acc(total / double(pairs));
}

template <class Acc>
static void set_scales(const ConsistencyBackward& p, const ConsistencyPlan& plan, Acc* scales) {
  const int64_t pairs = plan.volumes * plan.classes;
  const double grad = double(*static_cast<const Acc*>(p.grad));
  for (int64_t i = 0; i < pairs; ++i) {
    scales[i] = p.edges[i] > 0 ? Acc(grad / (double(pairs) * double(p.edges[i]))) : Acc(0);
  }
}

// The size of a thread's scratch: lay it out from null on.
template <class Acc>
static size_t scratch_bytes(const ConsistencyBackward& p, const ConsistencyPlan& plan,
                            const ConsistencyShared<Acc>& shared, bool backward) {
  const PhiloxKeys keys(0);
  Arena arena(nullptr);
  March<Acc>(p, plan, shared, keys, backward, arena);
  return arena.bytes();
}

template <class Acc>
static void run(const ConsistencyBackward& p, bool backward) {
  const ConsistencyPlan plan(p);
  const PhiloxKeys keys(*p.seed);
  Arena arena(p.resources.workspace);
  const ConsistencyShared<Acc> shared(p, plan, backward, arena);
  const size_t scratch = scratch_bytes(p, plan, shared, backward);
  if (backward) set_scales(p, plan, shared.scales);
  bool invalid = false;
#pragma omp parallel num_threads(p.resources.threads) reduction(|| : invalid)
  {
    Arena own = arena;
    own.skip(omp_get_thread_num() * scratch);
    March<Acc> march(p, plan, shared, keys, backward, own);
    march_all(p, plan, shared, march, backward);
    invalid = march.invalid();
  }
  if (!backward) reduce(p, plan, shared, invalid);
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
