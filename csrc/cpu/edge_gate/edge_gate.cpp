// The edge-gated layer (Eqs. 1 and 2), in blocks of voxels that stay in the second-level cache from
// the load to the store. With the inputs x = (e, m) and W = (We, Wm), a block's sums are s = W x +
// b; backward, dx = W^T ds, dW = ds x^T and db the sum of ds.
#include <cstddef>

#include "../../ops.h"
#include "gate.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

size_t edge_gate_workspace(const EdgeGate& p) {
  const EdgeGatePlan plan(p);
  return (plan.weights + p.resources.threads * plan.scratch) * sizeof(double);
}

size_t edge_gate_backward_workspace(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p);
  return ((1 + plan.chunks) * plan.weights + p.resources.threads * plan.scratch) * sizeof(double);
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  p.gates == 1 ? voxel_gate(p) : channel_gate(p);
}

void edge_gate_backward_launch(const EdgeGateBackward& p) {
  // No early return on empty volumes: the weight gradients must still be set to 0.
  p.gates == 1 ? voxel_gate_backward(p) : channel_gate_backward(p);
}

}  // namespace egcnn::EGCNN_ISA
