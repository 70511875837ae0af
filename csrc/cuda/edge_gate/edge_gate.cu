// The edge-gated layer (Eqs. 1 and 2): chooses between its two forms.
#include "edge_gate.cuh"

#include "partials.cuh"

namespace egcnn::cuda {

size_t edge_gate_workspace(const EdgeGate& p) {
  return p.gates == 1 ? 0 : channel_gate_workspace(p);
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  return p.gates == 1 ? voxel_gate_launch(p) : channel_gate_launch(p);
}

size_t edge_gate_backward_workspace(const EdgeGateBackward& p) {
  return p.gates == 1 ? voxel_gate_backward_workspace(p) : channel_gate_backward_workspace(p);
}

void edge_gate_backward_launch(const EdgeGateBackward& p) {
  if (p.size.empty()) return clear_gradients(p);
  return p.gates == 1 ? voxel_gate_backward_launch(p) : channel_gate_backward_launch(p);
}

}  // namespace egcnn::cuda
