// The march of one thread along z over a strip: each plane goes through five stages, each some
// planes behind the previous one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../ops.h"
#include "../simd/bits.h"
#include "../simd/compress.h"
#include "band.h"
#include "candidates.h"
#include "gradient.h"
#include "plan.h"
#include "sampler.h"
#include "samples.h"
#include "shared.h"
#include "terms.h"
#include "zero_fill.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
class March {
 public:
  March(const ConsistencyBackward& p, const ConsistencyPlan& plan,
        const ConsistencyShared<Acc>& shared, bool backward, Arena& arena)
      : p_(p), plan_(plan), shared_(shared), backward_(backward), reach_(backward ? 1 : 0),
        strip_(p.size), candidates_(p, plan, strip_, shared.drawn, arena),
        band_(plan, strip_, arena), sampler_(p, plan, strip_, arena),
        samples_(p, plan, strip_, shared.drawn, backward, arena),
        terms_(p, plan, strip_, candidates_, samples_, shared.scales, backward, arena),
        gradient_(p, plan, strip_, band_, samples_, backward, arena) {}
  March(const March&) = delete;  // the stages hold pointers to one another

  // Draws the hard sample of all of a plane; planes are counted over all strips.
  void draw(int64_t plane) {
    strip_.enter(p_, plan_, plane);
    const int64_t z = strip_.z_of(plane), width = strip_.width;
    const Group* end = band_.list_all((strip_.end - strip_.begin) * width);
    const int64_t first = (z * strip_.height + strip_.begin) * width;
    sampler_.draw(first, band_.begin(0), end, shared_.drawn + first, nullptr, 0);
  }

  // Processes a plane, counted over all strips. The successor of the last plane is the cheapest.
  void visit(int64_t plane) {
    enter(plane);
    const int64_t z = strip_.z_of(plane);
    if (backward_ && !gradient_.zeros_first(p_)) zeros_ = gradient_.zeros(z);
    compare(plane);
    if (!backward_) return;
    zeros_.fill_rest();
    gradient_.differentiate(z);
    gradient_.write(z);
  }

  // visit() without writing the gradient, which add_gradient() gives.
  void visit_unwritten(int64_t plane) {
    enter(plane);
    compare(plane);
    if (backward_) gradient_.differentiate(strip_.z_of(plane));
  }

  // Adds the gradient of class c to n voxels of plane z from a position on, which begin and end
  // with rows or with whole groups of one row. Up to kGroup - 1 zeros are added beyond.
  void add_gradient(int64_t z, int64_t c, int64_t position, int64_t n, Acc* out) const {
    gradient_.add(z, c, position, n, out);
  }

  // Of the plane visited last, by position: the target's codes, and with plan.mark_edges where
  // class c has edges, as bytes.
  const uint8_t* codes(int64_t z) const { return candidates_.codes(z, strip_.base); }
  const uint8_t* edges(int64_t z, int64_t c) const { return terms_.marked(z, c); }
  const Strip& strip() const { return strip_; }

  // Sets the gradient of a plane, counted over all strips, to 0.
  void clear(int64_t plane) {
    strip_.enter(p_, plan_, plane);
    gradient_.zeros(strip_.z_of(plane)).fill_rest();
  }

  // Whether the logits of a hard sample were NaN, and so is the loss.
  bool invalid() const { return sampler_.invalid(); }

 private:
  const ConsistencyBackward& p_;
  const ConsistencyPlan& plan_;
  const ConsistencyShared<Acc>& shared_;
  const bool backward_;
  const int64_t reach_;  // rows and planes on each side whose edges have gradients here
  Strip strip_;

  Candidates candidates_;
  Band band_;
  GumbelSampler<Acc> sampler_;
  Samples<Acc> samples_;
  Terms<Acc> terms_;
  LogitGradient<Acc> gradient_;
  ZeroFill zeros_;

  int64_t last_plane_ = -2;
  int64_t next_sampled_, next_compared_;  // the next plane of these stages

  void enter(int64_t plane) {
    const int64_t z = strip_.z_of(plane);
    if (z == 0 || plane != last_plane_ + 1) {
      strip_.enter(p_, plan_, plane);
      begin(std::max<int64_t>(z - reach_, 0));
    }
    last_plane_ = plane;
  }

  void compare(int64_t plane) {
    const int64_t last = strip_.above_by(strip_.z_of(plane), reach_), at = plane * plan_.classes;
    for (; next_compared_ <= last; ++next_compared_) {
      advance_samples(strip_.above_by(next_compared_, 1));
      terms_.compare(next_compared_, reach_, shared_.sums + at, shared_.counts + at);
    }
  }

  void begin(int64_t z) {
    next_compared_ = z;
    next_sampled_ = below(z);
    candidates_.begin(below(next_sampled_));
  }

  void advance_samples(int64_t z) {
    for (; next_sampled_ <= z; ++next_sampled_) {
      candidates_.advance(strip_.above_by(next_sampled_, 1), [&] { zeros_.fill_part(); });
      band_.list(next_sampled_, candidates_);
      sample(next_sampled_);
    }
  }

  // Samples the band of plane z, spreads the soft sample and clears the gradient there.
  void sample(int64_t z) {
    const bool soft = backward_ || !p_.hard;
    if (p_.support_both && !soft) return;
    const Group *group = band_.begin(z), *end = band_.end(z);
    sampler_.draw(strip_.voxel(z), group, end, p_.support_both ? nullptr : samples_.hard(z),
                  soft ? samples_.packed(z, 0) : nullptr, plan_.plane);
    // From here on groups are written whole; what spills past a row's end is overwritten by the
    // next row.
    for (int64_t c = 0; c < plan_.classes; ++c) {
      if (!p_.hard) {
        const Acc* packed = samples_.packed(z, c);
        Acc* spread = samples_.soft(z, c);
        for (const Group* g = group; g < end; ++g) {
          expand(packed + g->index, g->bits, spread + g->first);
        }
      }
      if (backward_) {
        Acc* grad = samples_.grad(z, c);
        for (const Group* g = group; g < end; ++g) {
          for (int64_t k = 0; k < kGroup; ++k) grad[g->first + k] = 0;
        }
      }
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
