// The planes in flight between the stages: samples of the band and their gradients.
#pragma once

#include <cstdint>

#include "../../ops.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
class Samples {
 public:
  // `drawn` is the hard sample of the volume if it is drawn everywhere, else null.
  Samples(const Consistency& p, const ConsistencyPlan& plan, const Strip& strip, uint8_t* drawn,
          bool backward, Arena& arena)
      : plan_(plan), strip_(strip), drawn_(p.support_both ? drawn : nullptr) {
    const int64_t all = kRing * plan.classes * plan.plane;
    arena.take(hard_, p.support_both ? 0 : kRing * plan.plane);
    arena.take(packed_, backward || !p.hard ? all : 0);
    arena.take(soft_, p.hard ? 0 : all);
    arena.take(grad_, backward ? all : 0);
  }

  // The hard sample's codes, by position.
  uint8_t* hard(int64_t z) const {
    return drawn_ != nullptr ? drawn_ + strip_.voxel(z) : hard_ + z % kRing * plan_.plane;
  }
  // Class c of the soft sample: packed over the band's voxels, and by position.
  Acc* packed(int64_t z, int64_t c) const { return plane(packed_, z, c); }
  Acc* soft(int64_t z, int64_t c) const { return plane(soft_, z, c); }
  // The gradient with respect to it, by position.
  Acc* grad(int64_t z, int64_t c) const { return plane(grad_, z, c); }

 private:
  const ConsistencyPlan& plan_;
  const Strip& strip_;
  uint8_t* drawn_;               // (D, H, W)
  uint8_t* hard_;                // (kRing, plane)
  Acc *packed_, *soft_, *grad_;  // (kRing, classes, plane) if needed

  Acc* plane(Acc* of, int64_t z, int64_t c) const {
    return of + (z % kRing * plan_.classes + c) * plan_.plane;
  }
};

}  // namespace egcnn::EGCNN_ISA
