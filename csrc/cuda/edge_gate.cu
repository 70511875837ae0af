// The edge-gated layer (Eqs. 1 and 2): chooses between its two forms.
#include "edge_gate.cuh"

#include "launch.cuh"

namespace egcnn::cuda {
namespace {

// Nothing is gated, so no weight has a gradient; m may still have channels.
template <class T>
void clear_gradients(const EdgeGateBackward& p) {
  const auto clear = [&](void* to, int64_t count, size_t size) {
    if (count == 0) return;
    check(cudaMemsetAsync(to, 0, count * size, static_cast<cudaStream_t>(p.resources.stream)),
          "edge_gate_backward");
  };
  clear(p.grad_m.data, p.size.batch * p.main_channels * p.size.voxels(), sizeof(T));
  clear(p.grad_weight_e, p.gates * p.size.channels, sizeof(Accumulate<T>));
  clear(p.grad_weight_m, p.gates * p.main_channels, sizeof(Accumulate<T>));
  clear(p.grad_bias, p.gates, sizeof(Accumulate<T>));
}

}  // namespace

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
  if (!p.size.empty()) {
    return p.gates == 1 ? voxel_gate_backward_launch(p) : channel_gate_backward_launch(p);
  }
  with_float(p.e.dtype,
             [&](auto* type) { clear_gradients<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
