// The gradients of the edge gate with one attention value per channel.
#include "channel_backward.cuh"
#include "chunks_backward.cuh"
#include "edge_gate.cuh"

namespace egcnn::cuda {
namespace {

template <bool tf32, bool many, class T>
auto choose_kernel() {
  if constexpr (many) {
    return channel_gate_chunks_backward_kernel<tf32, T>;
  } else {
    return channel_gate_backward_kernel<tf32, T>;
  }
}

// The workspace holds the packed weights, then the partials, one row per block. Calls body with the
// kernel, whether it is for many chunks, the number of blocks and that of the packed weights.
template <class T, class Body>
void with_plan(const EdgeGateBackward& p, Body&& body) {
  using Acc = Accumulate<T>;
  with_tf32<T>(p, [&](auto tf32) {
    with_many<T>(p, [&](auto many) {
      const auto kernel = choose_kernel<tf32, many, T>();
      const int64_t blocks = limit_blocks<Acc>(block_count(p, kernel, kBackwardWarps<T>), 1,
                                               ChannelColumns<Acc>(p).count());
      body(kernel, tf32, many, blocks, PackedWeights<T>(p).count(true));
    });
  });
}

template <class T>
void launch_backward(const EdgeGateBackward& p) {
  using Acc = Accumulate<T>;
  const int64_t voxels = p.size.voxels();
  with_plan<T>(p, [&](auto kernel, auto tf32, auto many, int64_t blocks, int64_t packed) {
    Acc* partials = static_cast<Acc*>(p.resources.workspace) + packed;
    pack_weights<T, tf32>(p, true);
    launch("edge_gate_backward", p.resources, blocks, kBackwardThreads<T>, 0, kernel,
           ChannelGate<T, many>(p), AnyView<T>(p.grad, p.size.channels, voxels),
           AnyView<T>(p.grad_e, p.size.channels, voxels),
           AnyView<T>(p.grad_m, p.main_channels, voxels), partials);
    sum_partials(partials, blocks, ChannelColumns<Acc>(p), p.resources);
  });
}

}  // namespace

size_t channel_gate_backward_workspace(const EdgeGateBackward& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulate<T>;
    with_plan<T>(p, [&](auto, auto, auto, int64_t blocks, int64_t packed) {
      bytes = size_t(packed + blocks * ChannelColumns<Acc>(p).count()) * sizeof(Acc);
    });
  });
  return bytes;
}

void channel_gate_backward_launch(const EdgeGateBackward& p) {
  with_float(p.e.dtype,
             [&](auto* type) { launch_backward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
