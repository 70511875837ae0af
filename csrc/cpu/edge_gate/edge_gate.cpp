// The edge-gated layer (Eqs. 1 and 2), in blocks of voxels that stay in the second-level cache from
// the load to the store. With the inputs x = (e, m) and W = (We, Wm), a block's sums are s = W x +
// b; backward, dx = W^T ds, dW = ds x^T and db the sum of ds. If e is at another resolution than m,
// a block's rows of it are interpolated instead of loaded, and dx is added up where they came from.
#include <cstddef>

#include "../../ops.h"
#include "gate.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

size_t edge_gate_workspace(const EdgeGate& p) { return EdgeGatePlan(p).workspace(p); }

size_t edge_gate_backward_workspace(const EdgeGateBackward& p) {
  return EdgeGatePlan(p).workspace(p);
}

size_t edge_gate_upsampled_workspace(const EdgeGateUpsampled& p) {
  return EdgeGatePlan(p, &p.coarse).workspace(p);
}

size_t edge_gate_upsampled_backward_workspace(const EdgeGateUpsampledBackward& p) {
  return EdgeGatePlan(p, &p.coarse).workspace(p);
}

static void gate(const EdgeGate& p, const Size* coarse) {
  if (p.size.empty()) return;
  p.gates == 1 ? voxel_gate(p, coarse) : channel_gate(p, coarse);
}

static void gate_backward(const EdgeGateBackward& p, const Size* coarse) {
  // No early return on empty volumes: the weight gradients must still be set to 0.
  p.gates == 1 ? voxel_gate_backward(p, coarse) : channel_gate_backward(p, coarse);
}

void edge_gate_launch(const EdgeGate& p) { gate(p, nullptr); }
void edge_gate_backward_launch(const EdgeGateBackward& p) { gate_backward(p, nullptr); }

void edge_gate_upsampled_launch(const EdgeGateUpsampled& p) { gate(p, &p.coarse); }

void edge_gate_upsampled_backward_launch(const EdgeGateUpsampledBackward& p) {
  gate_backward(p, &p.coarse);
}

}  // namespace egcnn::EGCNN_ISA
