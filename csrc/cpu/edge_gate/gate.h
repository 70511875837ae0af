// The gate of Eq. 1 at one voxel, and its two forms.
#pragma once

#include "../../ops.h"
#include "../simd/vector_math.h"
#include "../simd/vectors.h"

namespace egcnn::EGCNN_ISA {

// Sums below this are clamped to it.
template <class Acc>
constexpr Acc lowest(bool relu) {
  return relu ? 0 : kSigmoidLowest<Acc>;
}

// d alpha / d sum, from alpha.
template <class Acc>
static inline Vector<Acc> slope(Vector<Acc> sum, Vector<Acc> alpha, Acc low) {
  return sum <= low ? Vector<Acc>{} : alpha * (1 - alpha);
}

// One attention value per voxel, or one per channel; with the size of e where it is another one
// than that of m.
void voxel_gate(const EdgeGate& p, const Size* coarse);
void voxel_gate_backward(const EdgeGateBackward& p, const Size* coarse);
void channel_gate(const EdgeGate& p, const Size* coarse);
void channel_gate_backward(const EdgeGateBackward& p, const Size* coarse);

}  // namespace egcnn::EGCNN_ISA
