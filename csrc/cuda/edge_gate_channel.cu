// The edge gate with one attention value per channel of e.
#include "edge_gate.cuh"
#include "edge_gate_channel.cuh"

namespace egcnn::cuda {
namespace {

// Blocks per multiprocessor that registers have to allow.
template <class T>
constexpr int kChannelBlocks = sizeof(T) == 2 ? 3 : 2;

template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, kChannelBlocks<T>)
    channel_gate_kernel(ChannelGate<T> gate, AnyView<T> out) {
  using Acc = Accumulate<T>;
  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const LaneVoxels place = gate.lane_voxels(tile);
    for (int64_t gates = 0; gates < gate.gate_chunks(); ++gates) {
      LaneValues<T> e;
      load(gate.e, gate.e_channels, place, gates, e);
      LaneArray<Acc> sums;
      gate_sums<tf32, 1>(gate, place, gates, gate.gate_chunks(), gate.chunks(), e, sums);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) {
          const Acc x = e(c, v);
          sums[c][v] = x * math::gate(sums[c][v], gate.relu) + x;
        }
      }
      store(out, gate.e_channels, place, gates, sums);
    }
  }
}

template <class T>
void launch_forward(const EdgeGate& p) {
  with_tf32<T>(p, [&](auto tf32) {
    pack_weights<T, tf32>(p, false);
    const auto kernel = channel_gate_kernel<tf32, T>;
    launch("edge_gate", p.resources, block_count(p, kernel, kWarps), kThreads, 0, kernel,
           ChannelGate<T>(p), AnyView<T>(p.out, p.size.channels, p.size.voxels()));
  });
}

}  // namespace

size_t channel_gate_workspace(const EdgeGate& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    bytes = PackedWeights<T>(p).count(false) * sizeof(Accumulate<T>);
  });
  return bytes;
}

void channel_gate_launch(const EdgeGate& p) {
  with_float(p.e.dtype,
             [&](auto* type) { launch_forward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
