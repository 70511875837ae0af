// The gradients of the edge gate with an interpolated e. Blocks march through columns
// (coarse_gradient.cuh); the gradients of the weights are summed as without interpolation.
#pragma once

#include "coarse_gradient.cuh"
#include "staging.cuh"
#include "upsampled.cuh"

namespace egcnn::cuda {
namespace {

// Fewer warps than without interpolation, so that a block's shared memory is below 48 KB.
template <class T>
constexpr int kMarchWarps = sizeof(T) == 8 ? 1 : 2;
template <class T>
constexpr int kMarchThreads = kWarpSize * kMarchWarps<T>;
template <class T>
constexpr int kMarchRows = kTileRows * kMarchWarps<T>;
constexpr int kMarchBlocks = 4;  // a fifth would leave a thread 168 registers, and it would spill
// Chunks of values that are staged together, within these 48 KB.
template <class T>
constexpr int kMarchChunks = sizeof(T) == 2 ? 2 : 1;

// For the gradients of the weights, e is rounded to its own type, as it is without interpolation.
template <class T>
__device__ __forceinline__ LaneValues<T> narrowed(const Interpolated<T>& x) {
  LaneValues<T> result;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    T row[kLaneVoxels];
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) row[v] = narrow<T>(x(c, v));
    result.rows[c].set(row);
  }
  return result;
}

// The lane's voxels in the first plane of a column.
template <class T, bool many>
__device__ __forceinline__ RowVoxels first_place(const UpsampledGate<T, many>& gate,
                                                 const Columns<Accumulate<T>>& columns,
                                                 const Column<Accumulate<T>>& column) {
  return gate.place(column.sample, column.z_begin,
                    columns.y_first(column.y) + int(threadIdx.x) / kWarpSize * kTileRows,
                    columns.x_first(column.x));
}

// Goes to the next plane.
template <class Acc>
__device__ __forceinline__ void step(const Grid<Acc>& grid, RowVoxels& place) {
  ++place.z;
  place.position += grid.y().fine * grid.x().fine;
}

// One attention value per voxel: adds the slopes of a voxel's gates, which may cancel and hence are
// not rounded yet, to `sums` of the lane. With the last chunk of gates, all go to its first gate.
template <class Acc>
__device__ __forceinline__ void tie_slopes(Acc (&sums)[kLaneVoxels], bool last,
                                           LaneArray<Acc>& slopes) {
#pragma unroll
  for (int v = 0; v < kLaneVoxels; ++v) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      sums[v] += slopes[c][v];
      slopes[c][v] = 0;
    }
  }
  if (!last) return;
  sum_over_channels(sums);
#pragma unroll
  for (int v = 0; v < kLaneVoxels; ++v) slopes[0][v] = lane_channel() == 0 ? sums[v] : Acc(0);
}

// The sums of slopes over a tile's voxels, as sum_over_voxels() returns them.
template <class Acc>
__device__ __forceinline__ Acc sum_slopes(const LaneArray<Acc>& slopes) {
  Acc sums[kLaneChannels];
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    sums[c] = 0;
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[c] += slopes[c][v];
  }
  return sum_over_voxels(sums);
}

// The gradient of the bias, of slopes before they are rounded or tied: those of one attention value
// per voxel add up to a single number, and may cancel.
template <class Acc, int warps>
struct BiasSums {
  Acc sums[warps][kChunk];

  // Where a lane has what sum_slopes() returns.
  __device__ __forceinline__ Acc& own() {
    return sums[threadIdx.x / kWarpSize][lane_channel() + lane_index() / 4];
  }
  // The sum over the warps, for the channel of the thread's index.
  __device__ __forceinline__ Acc add() const {
    Acc sum = 0;
#pragma unroll
    for (const auto& each : sums) sum += each[threadIdx.x];
    return sum;
  }
};

// e is interpolated while m is on its way. With `add`, the gradients of the weights are added to
// those of earlier launches.
template <bool tf32, class T>
__global__ void __launch_bounds__(kMarchThreads<T>, kMarchBlocks)
    upsampled_gate_backward_kernel(UpsampledGate<T, false> gate, Columns<Accumulate<T>> columns,
                                   AnyView<T> grad, AnyView<T> grad_m, Accumulate<T>* partials,
                                   bool add) {
  using Acc = Accumulate<T>;
  constexpr int warps = kMarchWarps<T>;
  constexpr bool split = kSplit<tf32, T>, together = kMarchChunks<T> == 2;
  __shared__ Staging<T, kMarchChunks<T>> stagings[warps];
  __shared__ PlaneSums<Acc, warps> planes;
  __shared__ BiasSums<Acc, warps> bias_sums;
  __shared__ __align__(16) Acc products[2 * kFragments];
  auto& staging = stagings[threadIdx.x / kWarpSize];
  for (int i = threadIdx.x; i < 2 * kFragments; i += blockDim.x) products[i] = 0;

  bias_sums.own() = 0;  // in shared memory, because registers are short
  for (uint32_t index = blockIdx.x; index < columns.count; index += gridDim.x) {
    const Column<Acc> column(columns, index);
    March<Acc, warps> march(columns, column, 0, planes);
#pragma unroll 1
    for (RowVoxels place = first_place(gate, columns, column); place.z < column.z_end;
         step(columns.grid, place)) {
      march.advance(place.z);
      __syncthreads();  // the products of the plane before are made
      LaneValues<T> g, m;
      fetch(gate.m, gate.m_channels, place, 0, m);
      Interpolated<T> e;
      interpolate(gate.coarse, place, 0, e);
      staging.store_values(narrowed<T>(e));
      LaneArray<Acc> slopes, result;
      start_sums(gate, 0, slopes);
      add_interpolated<tf32, T>(e, gate.weights.sum_fragments(0, 0), slopes);
      fetch(grad, gate.e_channels, place, 0, g);
      arrange(gate.m, m);
      if (together) staging.store_values(m, 1);
      add_chunk<tf32>(m, gate.weights.sum_fragments(0, 1), slopes);
      arrange(grad, g);
      make_slopes(e, g, gate.relu, slopes, [&](int c, int v, Acc value) { result[c][v] = value; });
      bias_sums.own() += sum_slopes(slopes);
      if (gate.gates == 1) {
        Acc sums[kLaneVoxels] = {};
        tie_slopes(sums, true, slopes);
      }
      round_slopes<split>(slopes);
      staging.store_slopes(slopes);
      multiply<split, split>(slopes, gate.weights.grad_fragments(0, 0), result);
      march.add(place.z, result);
      LaneArray<Acc> result_m = {};
      multiply<split, split>(slopes, gate.weights.grad_fragments(0, 1), result_m);
      store(grad_m, gate.m_channels, place, 0, result_m);
      __syncthreads();
      if (!together) fetch(gate.m, gate.m_channels, place, 0, m);  // again: registers are short
      add_product<split>(stagings, products);
      if (!together) {
        __syncthreads();
        arrange(gate.m, m);
        staging.store_values(m);
        __syncthreads();
      }
      add_product<split>(stagings, products + kFragments, together);
    }
    march.finish();
  }

  Acc* const partial = partials + blockIdx.x * (2 * kFragments + kChunk);
  __syncthreads();
  if (threadIdx.x < kChunk) {
    Acc& to = partial[2 * kFragments + threadIdx.x];
    to = add ? to + bias_sums.add() : bias_sums.add();
  }
  for (int i = threadIdx.x; i < 2 * kFragments; i += blockDim.x) {
    partial[i] = add ? partial[i] + products[i] : products[i];
  }
}

}  // namespace
}  // namespace egcnn::cuda
