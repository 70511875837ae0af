// The gate's parameters and the loop over the tiles of all volumes, which the edge gate's kernels
// share. The warps are persistent and take one tile after another.
#pragma once

#include <algorithm>

#include "access.cuh"
#include "gate.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kWarps = 4;  // per block
constexpr int kThreads = kWarpSize * kWarps;

// Index among the warps of all blocks.
__device__ __forceinline__ uint32_t warp_index() {
  return blockIdx.x * kWarps + threadIdx.x / kWarpSize;
}
__device__ __forceinline__ uint32_t warp_count() { return gridDim.x * kWarps; }

// The inputs of forward and backward. 32 bits suffice to count tiles: 2^31 of them would exceed any
// GPU's memory.
template <class T, Layout kLayout>
struct Gate {
  using Acc = Accumulate<T>;
  View<T, kLayout> e, m;
  const Acc *weight_e, *weight_m, *bias;
  int64_t e_channels, m_channels, gates, voxels;
  uint32_t volume_tiles, tiles;
  bool relu;

  template <class Params>
  explicit Gate(const Params& p)
      : e(p.e, p.size.channels, p.size.voxels()), m(p.m, p.main_channels, p.size.voxels()),
        weight_e(static_cast<const Acc*>(p.weight_e)),
        weight_m(static_cast<const Acc*>(p.weight_m)), bias(static_cast<const Acc*>(p.bias)),
        e_channels(p.size.channels), m_channels(p.main_channels), gates(p.gates),
        voxels(p.size.voxels()), volume_tiles(divide_up(voxels, kTile)),
        tiles(p.size.batch * int64_t(volume_tiles)), relu(p.relu) {}

  __host__ __device__ int64_t e_chunks() const { return divide_up(e_channels, kChunk); }
  __host__ __device__ int64_t m_chunks() const { return divide_up(m_channels, kChunk); }

  // The calling lane's voxels of a tile, none of a tile past the last.
  __device__ __forceinline__ LaneVoxels lane_voxels(uint32_t tile) const {
    LaneVoxels lane;
    lane.batch = tile / volume_tiles;
    lane.tile = tile % volume_tiles;
    lane.count = tile < tiles ? int(min(voxels - lane.first(), int64_t(kLaneVoxels))) : 0;
    return lane;
  }
};

// Sums over a tile's voxels: lane 4 r + q returns the sum of channel 8 q + r.
template <class Acc>
__device__ __forceinline__ Acc sum_over_voxels(Acc (&x)[kLaneChannels]) {
  // Lanes 16, 8 and 4 apart each keep half of the channels and pass on the other half.
#pragma unroll
  for (int half = kLaneChannels / 2; half > 0; half /= 2) {
    const bool upper = lane_index() & 4 * half;
#pragma unroll
    for (int c = 0; c < half; ++c) {
      const Acc kept = upper ? x[half + c] : x[c], given = upper ? x[c] : x[half + c];
      x[c] = kept + __shfl_xor_sync(kAllLanes, given, 4 * half);
    }
  }
  return x[0];
}

// Adds up the sums of the four lanes that share their voxels.
template <class Acc>
__device__ __forceinline__ void sum_over_channels(Acc (&sums)[kLaneVoxels]) {
#pragma unroll
  for (int v = 0; v < kLaneVoxels; ++v) {
    sums[v] += __shfl_xor_sync(kAllLanes, sums[v], 1);
    sums[v] += __shfl_xor_sync(kAllLanes, sums[v], 2);
  }
}

// --- Launches ---

template <class T, class Body>
void with_layout(const EdgeGate& p, Body&& body) {
  const int64_t e_channels = p.size.channels, voxels = p.size.voxels();
  with_common_layout<T>(
      {layout_of<T>(p.e, e_channels, voxels), layout_of<T>(p.m, p.main_channels, voxels),
       layout_of<T>(p.out, e_channels, voxels)},
      body);
}

template <class T, class Body>
void with_layout(const EdgeGateBackward& p, Body&& body) {
  const int64_t e_channels = p.size.channels, voxels = p.size.voxels();
  with_common_layout<T>(
      {layout_of<T>(p.e, e_channels, voxels), layout_of<T>(p.m, p.main_channels, voxels),
       layout_of<T>(p.grad, e_channels, voxels), layout_of<T>(p.grad_e, e_channels, voxels),
       layout_of<T>(p.grad_m, p.main_channels, voxels)},
      body);
}

// Enough blocks of `warps` warps for all tiles, but no more than are resident at a time.
template <class Params, class... Parameters>
int64_t block_count(const Params& p, void (*kernel)(Parameters...), int warps) {
  const int64_t tiles = p.size.batch * divide_up(p.size.voxels(), kTile);
  return std::min(divide_up(tiles, warps),
                  resident_blocks(p.resources.device, kernel, kWarpSize * warps));
}

}  // namespace
}  // namespace egcnn::cuda
