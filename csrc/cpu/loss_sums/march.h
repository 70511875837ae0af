// The march of one thread through a strip of a sample: the consistency loss's marches through its
// volumes side by side, and with each plane the sums of its logits and edge logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "../../ops.h"
#include "../consistency/march.h"
#include "../consistency/plan.h"
#include "../consistency/shared.h"
#include "../region_sums/run.h"
#include "../simd/elements.h"
#include "../simd/stream.h"

namespace egcnn::EGCNN_ISA {

// The parameters of each part, as its own kernel gets them.
struct LossParts {
  ConsistencyBackward consistency;
  RegionSumsBackward regions, edges;

  explicit LossParts(const LossSumsBackward& p)
      : consistency{p.consistency, p.grad_consistency, p.grad_logits},
        regions{p.regions, p.grad_regions, p.grad_logits},
        edges{p.edges, p.grad_edges, p.grad_edge_logits} {
    consistency.resources = p.resources;
  }

  int64_t channels() const { return regions.size.channels; }
  int64_t edge_channels() const { return edges.size.channels; }
  int64_t element() const { return accumulator_bytes(regions.logits.dtype); }
  // Sums of a plane: of the regions, then of the edges.
  int64_t region_columns() const { return channels() * regions.sum_count(); }
  int64_t columns() const { return region_columns() + edge_channels() * edges.sum_count(); }
};

// Volumes of the consistency loss in a sample.
static inline int64_t volumes_at_once(const LossParts& p) {
  return p.consistency.softmax ? 1 : p.channels();
}

template <class Acc>
class LossMarch {
 public:
  LossMarch(const LossParts& p, const ConsistencyPlan& plan, const ConsistencyShared<Acc>& shared,
            bool backward, Arena& arena)
      : p_(p), plan_(plan), voxels_(run_voxels(p.channels())),
        regions_(p.regions, voxels_, take_run(p.channels(), arena)),
        edges_(p.edges, voxels_, take_run(p.edge_channels(), arena)) {
    for (int64_t i = 0; i < volumes_at_once(p); ++i) {
      marches_.emplace_back(p.consistency, plan, shared, backward, arena);
    }
  }

  // Processes a plane, counted over all strips of all samples, and adds up its sums.
  void add_sums(int64_t plane, double* totals) {
    std::fill_n(totals, p_.columns(), 0.0);
    visit(plane, [&](int64_t batch, int64_t voxel, int64_t position, int64_t n) {
      read(batch, voxel, position, n);
      for (int64_t c = 0; c < p_.channels(); ++c) {
        regions_.add_sums(c, totals + c * p_.regions.sum_count());
      }
      for (int64_t c = 0; c < p_.edge_channels(); ++c) {
        edges_.add_sums(c, totals + p_.region_columns() + c * p_.edges.sum_count());
      }
    });
  }

  // Processes such a plane, and writes its gradients.
  void differentiate(int64_t plane, bool stream) {
    const Acc* const grads = static_cast<const Acc*>(p_.regions.grad);
    const Acc* const edge_grads = static_cast<const Acc*>(p_.edges.grad);
    visit(plane, [&](int64_t batch, int64_t voxel, int64_t position, int64_t n) {
      read(batch, voxel, position, n);
      regions_.differentiate(grads + batch * p_.region_columns());
      for (int64_t c = 0; c < p_.channels(); ++c) {
        const March<Acc>& march = marches_[c / plan_.classes];
        march.add_gradient(z_, c % plan_.classes, position, n, regions_.logits(c));
      }
      regions_.write(p_.regions.grad_logits, batch, voxel, stream);
      edges_.differentiate(edge_grads + batch * (p_.columns() - p_.region_columns()));
      edges_.write(p_.edges.grad_logits, batch, voxel, stream);
    });
  }

  // Whether the logits of a hard sample were NaN, and so is the consistency loss.
  bool invalid() const {
    return std::any_of(marches_.begin(), marches_.end(),
                       [](const March<Acc>& march) { return march.invalid(); });
  }

 private:
  const LossParts& p_;
  const ConsistencyPlan& plan_;
  const int64_t voxels_;  // of a run
  Run<Acc> regions_, edges_;
  std::deque<March<Acc>> marches_;  // which cannot be moved
  int64_t z_ = 0;

  char* take_run(int64_t channels, Arena& arena) const {
    char* scratch;
    arena.take(scratch, run_bytes(channels, voxels_, p_.element()));
    return scratch;
  }

  // Brings the marches to a plane, and calls body(batch, voxel, position, n) for its runs: whole
  // rows, or parts of one row that begin with whole groups.
  template <class Body>
  void visit(int64_t plane, Body&& body) {
    const int64_t at_once = int64_t(marches_.size());
    const int64_t planes = plan_.planes / plan_.volumes;  // of a volume
    for (int64_t i = 0; i < at_once; ++i) {
      marches_[i].visit_unwritten((plane / planes * at_once + i) * planes + plane % planes);
    }
    const Strip& strip = marches_[0].strip();
    z_ = strip.z_of(plane);
    const int64_t rows = std::max<int64_t>(voxels_ / strip.width, 1);
    for (int64_t y = strip.begin; y < strip.end; y += rows) {
      const int64_t first = strip.position(y);
      const int64_t last = strip.position(std::min(y + rows, strip.end));
      for (int64_t at = first; at < last; at += voxels_) {
        body(strip.batch, strip.voxel(z_) + at, at, std::min(voxels_, last - at));
      }
    }
  }

  // Reads the logits and edge logits of a run, and what the target says of them.
  void read(int64_t batch, int64_t voxel, int64_t position, int64_t n) {
    regions_.read(batch, voxel, n, [&](int64_t c, Acc* truth) {
      const uint8_t* const codes = marches_[c / plan_.classes].codes(z_) + position;
      if (p_.regions.softmax) {
        for (int64_t i = 0; i < n; ++i) truth[i] = codes[i] == uint8_t(c);
      } else {
        for (int64_t i = 0; i < n; ++i) truth[i] = codes[i] != 0;
      }
    });
    edges_.read(batch, voxel, n, [&](int64_t c, Acc* truth) {
      const uint8_t* edges = marked(c, position);
      for (int64_t i = 0; i < n; ++i) truth[i] = edges[i];
      if (p_.edge_channels() == p_.channels()) return;
      for (c = 1; c < p_.channels(); ++c) {
        edges = marked(c, position);
        for (int64_t i = 0; i < n; ++i) truth[i] = edges[i] != 0 ? 1 : truth[i];
      }
    });
  }

  const uint8_t* marked(int64_t channel, int64_t position) const {
    return marches_[channel / plan_.classes].edges(z_, channel % plan_.classes) + position;
  }
};

}  // namespace egcnn::EGCNN_ISA
