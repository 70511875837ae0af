// What the threads share: the planes left to each, and the sums of each plane.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstdint>

#include "../../ops.h"
#include "../simd/threads.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
struct ConsistencyShared {
  double* sums;         // (planes, classes) mismatch
  int64_t* counts;      // (planes, classes) edges
  Acc* scales;          // (volumes, classes) d loss / d mismatch
  int64_t *next, *end;  // (threads) the planes left to each thread
  uint8_t* drawn;       // (D, H, W) the hard sample of a volume if it is drawn everywhere

  ConsistencyShared(const Consistency& p, const ConsistencyPlan& plan, bool backward,
                    Arena& arena) {
    arena.take(sums, backward ? 0 : plan.planes * plan.classes);
    arena.take(counts, backward ? 0 : plan.planes * plan.classes);
    arena.take(scales, backward ? plan.volumes * plan.classes : 0);
    arena.take(next, p.resources.threads);
    arena.take(end, p.resources.threads);
    arena.take(drawn, p.support_both ? p.size.voxels() + kSlack : 0);
  }

  // Gives the calling thread its part of the planes [first, last). A barrier must follow.
  void share_planes(int64_t first, int64_t last) const {
    const int thread = omp_get_thread_num();
    share(last - first, omp_get_num_threads(), thread, &next[thread], &end[thread]);
    next[thread] += first, end[thread] += first;
  }

  // Returns the calling thread's next plane, or -1. A thread works through its own share, then
  // steals half of the most loaded thread's remainder.
  int64_t next_plane() const {
    // Fewer planes are not worth the ones before them that a second thread computes again.
    constexpr int64_t kWorthSharing = 8;
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t plane = -1;
#pragma omp critical(egcnn_consistency)
    {
      int64_t &own_next = next[thread], &own_end = end[thread];
      if (own_next == own_end) {
        int most = thread;
        for (int i = 0; i < threads; ++i) {
          if (end[i] - next[i] > end[most] - next[most]) most = i;
        }
        if (end[most] - next[most] >= kWorthSharing) {
          own_end = end[most];
          own_next = end[most] = (next[most] + own_end) / 2;
        }
      }
      if (own_next < own_end) plane = own_next++;
    }
    return plane;
  }

  // Computes forward's results by adding the planes' sums in order; an invalid sample's loss is
  // NaN.
  void reduce(const Consistency& p, const ConsistencyPlan& plan, bool invalid) const {
    const int64_t pairs = plan.volumes * plan.classes, planes = plan.planes / plan.volumes;
    double total = 0;
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t first = i / plan.classes * planes;
      int64_t edges = 0;
      double mismatch = 0;
      for (int64_t plane = first; plane < first + planes; ++plane) {
        edges += counts[plane * plan.classes + i % plan.classes];
        mismatch += sums[plane * plan.classes + i % plan.classes];
      }
      p.edges[i] = edges;
      if (edges > 0) total += mismatch / double(edges);
    }
    *static_cast<Acc*>(p.loss) = invalid ? Acc(NAN) : Acc(total / double(pairs));
  }

  void set_scales(const ConsistencyBackward& p, const ConsistencyPlan& plan) const {
    const int64_t pairs = plan.volumes * plan.classes;
    const double grad = double(*static_cast<const Acc*>(p.grad));
    for (int64_t i = 0; i < pairs; ++i) {
      scales[i] = p.edges[i] > 0 ? Acc(grad / (double(pairs) * double(p.edges[i]))) : Acc(0);
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
