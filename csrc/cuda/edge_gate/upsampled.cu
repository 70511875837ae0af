// The edge gate with e at another resolution, interpolated on the way.
#include "upsampled.cuh"

namespace egcnn::cuda {
namespace {

// Blocks per multiprocessor that registers have to allow.
template <class T>
constexpr int kUpsampledBlocks = sizeof(T) == 2 ? 3 : 2;

// The next tile's m is fetched as soon as this tile's is used; the coarse e comes from the caches.
template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, kUpsampledBlocks<T>)
    upsampled_gate_kernel(UpsampledGate<T, false> gate, AnyView<T> out) {
  __shared__ __align__(16) Accumulate<T> shared_weights[kSharedWeights<T>];
  gate.weights.stage(shared_weights);
  uint32_t tile = warp_index();
  RowVoxels place = gate.place(tile);
  LaneValues<T> m;
  fetch(gate.m, gate.m_channels, place, 0, m);
  while (tile < gate.tiles) {
    LaneArray<Accumulate<T>> sums;
    start_sums(gate, 0, sums);
    arrange(gate.m, m);
    add_chunk<tf32>(m, gate.weights.sum_fragments(0, 1), sums);
    tile += warp_count();
    const RowVoxels next = gate.place(tile);
    fetch(gate.m, gate.m_channels, next, 0, m);
    Interpolated<T> e;
    interpolate(gate.coarse, place, 0, e);
    add_interpolated<tf32, T>(e, gate.weights.sum_fragments(0, 0), sums);
    apply_gates(e, gate.relu, sums);
    store(out, gate.e_channels, place, 0, sums);
    place = next;
  }
}

template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, 2)
    upsampled_gate_chunks_kernel(UpsampledGate<T, true> gate, AnyView<T> out) {
  __shared__ __align__(16) Accumulate<T> shared_weights[kSharedWeights<T>];
  gate.weights.stage(shared_weights);
  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const RowVoxels place = gate.place(tile);
    for (int64_t gates = 0; gates < gate.gate_chunks(); ++gates) {
      LaneArray<Accumulate<T>> sums;
      gate_sums<tf32>(gate, place, gates, sums);
      Interpolated<T> e;  // again, because registers are short
      interpolate(gate.coarse, place, gates, e);
      apply_gates(e, gate.relu, sums);
      store(out, gate.e_channels, place, gates, sums);
    }
  }
}

template <bool tf32, bool many, class T>
auto choose_kernel() {
  if constexpr (many) {
    return upsampled_gate_chunks_kernel<tf32, T>;
  } else {
    return upsampled_gate_kernel<tf32, T>;
  }
}

// The workspace holds the packed weights, then what the interpolation needs.
template <class T>
size_t packed_bytes(const EdgeGateUpsampled& p) {
  return size_t(round_up(PackedWeights<T>(p).count(false) * int64_t(sizeof(Accumulate<T>)), 16));
}

template <class T>
void launch_forward(const EdgeGateUpsampled& p) {
  const Coarse<T> coarse(p, static_cast<char*>(p.resources.workspace) + packed_bytes<T>(p));
  prepare(p, coarse);
  with_tf32<T>(p, [&](auto tf32) {
    pack_weights<T, tf32>(p, false);
    with_many<T>(p, [&](auto many) {
      const auto kernel = choose_kernel<tf32, many, T>();
      const UpsampledGate<T, many> gate(p, coarse);
      const int64_t blocks = std::min(divide_up<int64_t>(gate.tiles, kWarps),
                                      resident_blocks(p.resources.device, kernel, kThreads));
      launch("edge_gate_upsampled", p.resources, blocks, kThreads, 0, kernel, gate,
             AnyView<T>(p.out, p.size.channels, p.size.width));
    });
  });
}

}  // namespace

size_t edge_gate_upsampled_workspace(const EdgeGateUpsampled& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    bytes = packed_bytes<T>(p) + Coarse<T>(p, nullptr).bytes();
  });
  return bytes;
}

void edge_gate_upsampled_launch(const EdgeGateUpsampled& p) {
  if (p.size.empty()) return;
  with_float(p.e.dtype,
             [&](auto* type) { launch_forward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
