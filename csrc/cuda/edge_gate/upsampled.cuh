// Code that forward and backward of the edge gate with an interpolated e share. One attention value
// per voxel is one per channel of which all gates have the same weights.
#pragma once

#include "channel.cuh"
#include "interpolation.cuh"

namespace egcnn::cuda {
namespace {

// The values of e are interpolated in the accumulation type.
template <class T>
using Interpolated = LaneValues<Accumulate<T>>;

template <class T, bool many>
struct UpsampledGate : ChannelGate<T, many> {
  Coarse<T> coarse;
  uint32_t row_tiles, plane_tiles;  // in x, and in a plane

  template <class Params>
  UpsampledGate(const Params& p, const Coarse<T>& coarse)
      : ChannelGate<T, many>(p), coarse(coarse),
        row_tiles(uint32_t(divide_up<int64_t>(p.size.width, kTileWidth))),
        plane_tiles(uint32_t(divide_up<int64_t>(p.size.height, kTileRows)) * row_tiles) {
    // A lane's voxels are whole vectors where rows are.
    this->m = AnyView<T>(p.m, p.main_channels, p.size.width);
    this->tiles = uint32_t(count_tiles(p.size));
  }

  __device__ __forceinline__ RowVoxels place(int batch, int z, int y, int x) const {
    const auto& grid = coarse.grid;
    RowVoxels lane;
    lane.batch = batch;
    lane.z = z;
    lane.y = y + lane_voxel() / kTileWidth;
    lane.x = x + lane_voxel() % kTileWidth;
    lane.position = (int64_t(z) * grid.y().fine + lane.y) * grid.x().fine + lane.x;
    lane.count = 0;
    if (0 <= lane.y && lane.y < grid.y().fine) {
      lane.count = min(int(grid.x().fine) - lane.x, kLaneVoxels);
    }
    return lane;
  }

  // The calling lane's voxels of a tile, none of a tile past the last.
  __device__ __forceinline__ RowVoxels place(uint32_t tile) const {
    const uint32_t plane = tile / plane_tiles, rest = tile % plane_tiles;
    const uint32_t depth = uint32_t(coarse.grid.z().fine);
    RowVoxels lane = place(plane / depth, plane % depth, rest / row_tiles * kTileRows,
                           rest % row_tiles * kTileWidth);
    if (tile >= this->tiles) lane.count = 0;
    return lane;
  }
};

// Adds a chunk of e to the sums of the gates. Of f16 on the tensor cores of sm_75, as the sum of
// two f16 numbers.
template <bool tf32, class T>
__device__ __forceinline__ void add_interpolated(const Interpolated<T>& e,
                                                 const Accumulate<T>* fragments,
                                                 LaneArray<Accumulate<T>>& sums) {
  if constexpr (kSumProducts<T> == Products::f16) {
    LaneValues<T> high, rest;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      T first[kLaneVoxels], second[kLaneVoxels];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
        first[v] = narrow<T>(e(c, v));
        second[v] = narrow<T>(e(c, v) - widen(first[v]));
      }
      high.rows[c].set(first);
      rest.rows[c].set(second);
    }
    multiply_f16(high, fragments, sums);
    multiply_f16(rest, fragments, sums);
  } else {
    add_chunk<tf32>(e, fragments, sums);
  }
}

// --- Many chunks ---

// The argument of the activation, for a chunk of gates.
template <bool tf32, class T>
__device__ __forceinline__ void gate_sums(const UpsampledGate<T, true>& gate,
                                          const RowVoxels& place, int gates,
                                          LaneArray<Accumulate<T>>& sums) {
  const int gate_chunks = int(gate.gate_chunks());
  start_sums(gate, gates, sums);
#pragma unroll 1
  for (int chunk = 0; chunk < gate_chunks; ++chunk) {
    Interpolated<T> e;
    interpolate(gate.coarse, place, chunk, e);
    add_interpolated<tf32, T>(e, gate.weights.sum_fragments(gates, chunk), sums);
  }
#pragma unroll 1
  for (int chunk = gate_chunks; chunk < gate.chunks(); ++chunk) {
    LaneValues<T> m;
    load(gate.m, gate.m_channels, place, chunk - gate_chunks, m);
    add_chunk<tf32>(m, gate.weights.sum_fragments(gates, chunk), sums);
  }
}

}  // namespace
}  // namespace egcnn::cuda
