// What the threads of a call share where e is at another resolution than m.
#pragma once

#include <cstdint>
#include <memory>

#include "../../ops.h"
#include "axis.h"
#include "blocks.h"
#include "coarse_gradient.h"
#include "plan.h"
#include "upsampled.h"

namespace egcnn::EGCNN_ISA {

// Hands out null where e is at the resolution of m.
template <class Acc>
class Resampled {
 public:
  Resampled(const EdgeGate& p, const Size* coarse, const EdgeGatePlan& plan)
      : plan_(plan), e_(p.e) {
    if (coarse) grid_ = std::make_unique<Grid<Acc>>(*coarse, p.size);
  }

  // `borders` follows the scratch of all threads.
  Resampled(const EdgeGateBackward& p, const Size* coarse, const EdgeGatePlan& plan,
            const Output& grad_e, Acc* borders)
      : Resampled(p, coarse, plan) {
    if (coarse) {
      gradient_ =
          std::make_unique<CoarseGradientPlan<Acc>>(*grid_, plan.resampling, grad_e, borders);
    }
  }

  // For a thread with such scratch.
  std::unique_ptr<Upsampled<Acc>> upsampled(Acc* scratch) const {
    if (!grid_) return nullptr;
    return std::make_unique<Upsampled<Acc>>(*grid_, plan_.resampling, e_,
                                            scratch + plan_.resampled);
  }

  std::unique_ptr<CoarseGradient<Acc>> gradient(Acc* scratch) const {
    if (!gradient_) return nullptr;
    const ResamplingPlan& plan = plan_.resampling;
    return std::make_unique<CoarseGradient<Acc>>(
        *gradient_, scratch + plan_.resampled + plan.lines + plan.run, scratch + plan_.transit);
  }

  // Stores what chunks share; called by all threads, when all chunks have been added up.
  void store_borders(Acc* scratch) const {
    if (!gradient_) return;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
      gradient_->store_border(chunk, scratch + plan_.transit);
    }
  }

 private:
  const EdgeGatePlan& plan_;
  const Tensor& e_;
  std::unique_ptr<Grid<Acc>> grid_;
  std::unique_ptr<CoarseGradientPlan<Acc>> gradient_;
};

}  // namespace egcnn::EGCNN_ISA
