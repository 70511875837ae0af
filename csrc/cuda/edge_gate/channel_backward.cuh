// The gradients of the edge gate with one attention value per channel, for one chunk of e and one
// of m. The gradients of the weights are summed in shared memory.
#pragma once

#include "staging.cuh"

namespace egcnn::cuda {
namespace {

// Blocks per multiprocessor that registers and shared memory have to allow.
template <class T>
constexpr int kChannelBackwardBlocks = sizeof(T) == 2 ? 3 : 2;

// Chunks of values that are staged together: as many as 48 KB of shared memory hold.
template <class T>
constexpr int kStagedChunks = sizeof(T) == 2 ? 2 : 1;

// The block's next tiles are fetched while the gradients of the weights of these are summed.
template <bool tf32, class T>
__global__ void __launch_bounds__(kBackwardThreads<T>, kChannelBackwardBlocks<T>)
    channel_gate_backward_kernel(ChannelGate<T, false> gate, AnyView<T> grad, AnyView<T> grad_e,
                                 AnyView<T> grad_m, Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  constexpr int warps = kBackwardWarps<T>;
  constexpr bool split = kSplit<tf32, T>, together = kStagedChunks<T> == 2;
  __shared__ Staging<T, kStagedChunks<T>> stagings[warps];
  __shared__ __align__(16) Acc products[2 * kFragments];
  const int warp = threadIdx.x / kWarpSize;
  auto& staging = stagings[warp];
  for (int i = threadIdx.x; i < 2 * kFragments; i += blockDim.x) products[i] = 0;

  LaneVoxels place;
  LaneValues<T> e, g, m;
  const auto fetch_tile = [&](uint32_t tile) {
    place = gate.lane_voxels(tile);
    fetch(gate.m, gate.m_channels, place, 0, m);
    fetch(gate.e, gate.e_channels, place, 0, e);
    fetch(grad, gate.e_channels, place, 0, g);
  };
  Acc grad_bias = 0;
  uint32_t tile = blockIdx.x * warps + warp;
  fetch_tile(tile);
  for (; tile - warp < gate.tiles; tile += gridDim.x * warps) {
    __syncthreads();  // the products of the tiles before are made
    LaneArray<Acc> slopes, result;
    start_sums(gate, 0, slopes);
    arrange(gate.m, m);
    if (together) staging.store_values(m, 1);
    add_chunk<tf32>(m, gate.weights.sum_fragments(0, 1), slopes);
    arrange(gate.e, e);
    staging.store_values(e);
    add_chunk<tf32>(e, gate.weights.sum_fragments(0, 0), slopes);
    arrange(grad, g);
    make_slopes(e, g, gate.relu, slopes, [&](int c, int v, Acc value) { result[c][v] = value; });
    round_slopes<split>(slopes);
    staging.store_slopes(slopes);
    multiply<split, split>(slopes, gate.weights.grad_fragments(0, 0), result);
    store(grad_e, gate.e_channels, place, 0, result);
    LaneArray<Acc> result_m = {};
    multiply<split, split>(slopes, gate.weights.grad_fragments(0, 1), result_m);
    store(grad_m, gate.m_channels, place, 0, result_m);
    __syncthreads();
    if (together) {
      fetch_tile(tile + gridDim.x * warps);
    } else {
      fetch(gate.m, gate.m_channels, place, 0, m);  // again, because registers are short
    }
    grad_bias += SlopeSums<warps>::add(stagings);
    add_product<split>(stagings, products);
    if (!together) {
      __syncthreads();
      arrange(gate.m, m);
      staging.store_values(m);
      __syncthreads();
      fetch_tile(tile + gridDim.x * warps);
    }
    add_product<split>(stagings, products + kFragments, together);
  }

  Acc* const partial = partials + blockIdx.x * (2 * kFragments + kChunk);
  if (warp == 0) partial[2 * kFragments + lane_index()] = 0;
  __syncthreads();
  SlopeSums<warps>::store(grad_bias, partial + 2 * kFragments);
  for (int i = threadIdx.x; i < 2 * kFragments; i += blockDim.x) partial[i] = products[i];
}

}  // namespace
}  // namespace egcnn::cuda
