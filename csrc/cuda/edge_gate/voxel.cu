// The edge gate with one attention value per voxel.
#include "edge_gate.cuh"
#include "voxel.cuh"

namespace egcnn::cuda {
namespace {

template <class T, Layout kLayout>
__global__ void __launch_bounds__(kThreads, kVoxelBlocks<T>)
    voxel_gate_kernel(Gate<T, kLayout> gate, View<T, kLayout> out) {
  using Acc = Accumulate<T>;
  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const LaneVoxels place = gate.lane_voxels(tile);
    LaneValues<T> e;  // keeps the first chunk, usually the only one, so that it is read once
    load(gate.e, gate.e_channels, place, 0, e);
    Acc sums[kLaneVoxels] = {};
    for (int64_t chunk = 0; chunk < gate.m_chunks(); ++chunk) {
      LaneValues<T> m;
      load(gate.m, gate.m_channels, place, chunk, m);
      add_dot(gate.weight_m, gate.m_channels, chunk, m, sums);
    }
    add_dot(gate.weight_e, gate.e_channels, 0, e, sums);
    for (int64_t chunk = 1; chunk < gate.e_chunks(); ++chunk) {
      LaneValues<T> x;
      load(gate.e, gate.e_channels, place, chunk, x);
      add_dot(gate.weight_e, gate.e_channels, chunk, x, sums);
    }
    sum_over_channels(sums);
    Acc alpha[kLaneVoxels];
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) alpha[v] = attention(sums[v] + *gate.bias, gate.relu);

    for (int64_t chunk = 0; chunk < gate.e_chunks(); ++chunk) {
      if (chunk > 0) load(gate.e, gate.e_channels, place, chunk, e);
      LaneArray<Acc> gated;
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) {
          const Acc x = e(c, v);
          gated[c][v] = x * alpha[v] + x;
        }
      }
      store(out, gate.e_channels, place, chunk, gated);
    }
  }
}

template <class T>
void launch_forward(const EdgeGate& p) {
  with_layout<T>(p, [&](auto layout) {
    const auto kernel = voxel_gate_kernel<T, layout>;
    launch("edge_gate", p.resources, block_count(p, kernel, kWarps), kThreads, 0, kernel,
           Gate<T, layout>(p), View<T, layout>(p.out, p.size.channels, p.size.voxels()));
  });
}

}  // namespace

void voxel_gate_launch(const EdgeGate& p) {
  with_float(p.e.dtype,
             [&](auto* type) { launch_forward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
