// The edge gate with one attention value per channel of e.
#include "channel.cuh"
#include "edge_gate.cuh"

namespace egcnn::cuda {
namespace {

// Blocks per multiprocessor that registers have to allow.
template <class T>
constexpr int kChannelBlocks = sizeof(T) == 2 ? 3 : 2;

// Each chunk of the next tile is fetched as soon as this tile's is used.
template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, kChannelBlocks<T>)
    channel_gate_kernel(ChannelGate<T, false> gate, AnyView<T> out) {
  __shared__ __align__(16) Accumulate<T> shared_weights[kSharedWeights<T>];
  gate.weights.stage(shared_weights);
  uint32_t tile = warp_index();
  LaneVoxels place = gate.lane_voxels(tile);
  LaneValues<T> e, m;
  fetch(gate.m, gate.m_channels, place, 0, m);
  fetch(gate.e, gate.e_channels, place, 0, e);
  while (tile < gate.tiles) {
    LaneArray<Accumulate<T>> sums;
    start_sums(gate, 0, sums);
    arrange(gate.m, m);
    add_chunk<tf32>(m, gate.weights.sum_fragments(0, 1), sums);
    tile += warp_count();
    const LaneVoxels next = gate.lane_voxels(tile);
    fetch(gate.m, gate.m_channels, next, 0, m);
    arrange(gate.e, e);
    add_chunk<tf32>(e, gate.weights.sum_fragments(0, 0), sums);
    apply_gates(e, gate.relu, sums);
    fetch(gate.e, gate.e_channels, next, 0, e);
    store(out, gate.e_channels, place, 0, sums);
    place = next;
  }
}

template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, kChannelBlocks<T>)
    channel_gate_chunks_kernel(ChannelGate<T, true> gate, AnyView<T> out) {
  __shared__ __align__(16) Accumulate<T> shared_weights[kSharedWeights<T>];
  gate.weights.stage(shared_weights);
  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const LaneVoxels place = gate.lane_voxels(tile);
    for (int64_t gates = 0; gates < gate.gate_chunks(); ++gates) {
      LaneValues<T> e;
      load(gate.e, gate.e_channels, place, gates, e);
      LaneArray<Accumulate<T>> sums;
      gate_sums<tf32>(gate, place, gates, e, sums);
      apply_gates(e, gate.relu, sums);
      store(out, gate.e_channels, place, gates, sums);
    }
  }
}

template <bool tf32, bool many, class T>
auto choose_kernel() {
  if constexpr (many) {
    return channel_gate_chunks_kernel<tf32, T>;
  } else {
    return channel_gate_kernel<tf32, T>;
  }
}

template <class T>
void launch_forward(const EdgeGate& p) {
  with_tf32<T>(p, [&](auto tf32) {
    pack_weights<T, tf32>(p, false);
    with_many<T>(p, [&](auto many) {
      const auto kernel = choose_kernel<tf32, many, T>();
      launch("edge_gate", p.resources, block_count(p, kernel, kWarps), kThreads, 0, kernel,
             ChannelGate<T, many>(p), AnyView<T>(p.out, p.size.channels, p.size.voxels()));
    });
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
