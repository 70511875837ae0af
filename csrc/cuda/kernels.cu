// All CUDA kernels as one table.
#include "../ops.h"

namespace egcnn::cuda {

size_t sobel_edges_workspace(const SobelEdges&);
void sobel_edges_launch(const SobelEdges&);
size_t sobel_magnitude_workspace(const SobelMagnitude&);
void sobel_magnitude_launch(const SobelMagnitude&);
size_t sobel_magnitude_backward_workspace(const SobelMagnitudeBackward&);
void sobel_magnitude_backward_launch(const SobelMagnitudeBackward&);
size_t edge_gate_workspace(const EdgeGate&);
void edge_gate_launch(const EdgeGate&);
size_t edge_gate_backward_workspace(const EdgeGateBackward&);
void edge_gate_backward_launch(const EdgeGateBackward&);
size_t consistency_workspace(const Consistency&);
void consistency_launch(const Consistency&);
size_t consistency_backward_workspace(const Consistency&);
void consistency_backward_launch(const Consistency&);

const Kernels& kernels() {
  static const Kernels table = {
      "cuda",
      {sobel_edges_workspace, sobel_edges_launch},
      {sobel_magnitude_workspace, sobel_magnitude_launch},
      {sobel_magnitude_backward_workspace, sobel_magnitude_backward_launch},
      {edge_gate_workspace, edge_gate_launch},
      {edge_gate_backward_workspace, edge_gate_backward_launch},
      {consistency_workspace, consistency_launch},
      {consistency_backward_workspace, consistency_backward_launch},
  };
  return table;
}

}  // namespace egcnn::cuda
