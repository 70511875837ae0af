// The edge gate with one attention value per voxel.
#pragma once

#include "../math/gate.h"
#include "edge_gate_tile.cuh"

namespace egcnn::cuda {
namespace {

// To a multiprocessor, as registers allow.
template <class T>
constexpr int kVoxelBlocks = sizeof(T) == 2 ? 3 : 2;

// The weights of a lane's channels of a chunk.
template <class Acc>
__device__ __forceinline__ void load_weights(const Acc* weights, int64_t channels, int64_t chunk,
                                             Acc (&w)[kLaneChannels]) {
  const int64_t channel = chunk * kChunk + lane_channel();
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    w[c] = channel + c < channels ? weights[channel + c] : Acc(0);
  }
}

// sums += weights x, over a lane's channels of a chunk.
template <class T, class Acc>
__device__ __forceinline__ void add_products(const Acc* weights, int64_t channels, int64_t chunk,
                                             const Values<T>& x, Acc (&sums)[kLaneVoxels]) {
  Acc w[kLaneChannels];
  load_weights(weights, channels, chunk, w);
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[v] += w[c] * x(c, v);
  }
}

// sums += x y, over a lane's channels of a chunk.
template <class T, class Acc>
__device__ __forceinline__ void add_products(const Values<T>& x, const Values<T>& y,
                                             Acc (&sums)[kLaneVoxels]) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[v] += x(c, v) * y(c, v);
  }
}

// From each lane's channels to those of the four lanes that share a voxel.
template <class Acc>
__device__ __forceinline__ void sum_over_channels(Acc (&sums)[kLaneVoxels]) {
#pragma unroll
  for (int v = 0; v < kLaneVoxels; ++v) {
    sums[v] += __shfl_xor_sync(kAllLanes, sums[v], 1);
    sums[v] += __shfl_xor_sync(kAllLanes, sums[v], 2);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kVoxelBlocks<T>) voxel_gate_kernel(Gate<T> gate, View<T> out) {
  using Acc = Accumulate<T>;
  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const Place place(gate, tile);
    Values<T> e;  // the first chunk, which is mostly the only one, is read but once
    load(gate.e, gate.e_channels, place, 0, e);
    Acc sums[kLaneVoxels] = {};
    for (int64_t chunk = 0; chunk < gate.m_chunks(); ++chunk) {
      Values<T> m;
      load(gate.m, gate.m_channels, place, chunk, m);
      add_products(gate.weight_m, gate.m_channels, chunk, m, sums);
    }
    add_products(gate.weight_e, gate.e_channels, 0, e, sums);
    for (int64_t chunk = 1; chunk < gate.e_chunks(); ++chunk) {
      Values<T> x;
      load(gate.e, gate.e_channels, place, chunk, x);
      add_products(gate.weight_e, gate.e_channels, chunk, x, sums);
    }
    sum_over_channels(sums);
    Acc alpha[kLaneVoxels];
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) alpha[v] = math::gate(sums[v] + *gate.bias, gate.relu);

    for (int64_t chunk = 0; chunk < gate.e_chunks(); ++chunk) {
      if (chunk > 0) load(gate.e, gate.e_channels, place, chunk, e);
      Sums<Acc> gated;
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

// partial += the sums over the tile's voxels of slopes x, for the channels of a chunk.
template <class T, class Acc>
__device__ __forceinline__ void add_weight_gradients(const Acc (&slopes)[kLaneVoxels],
                                                     const Values<T>& x, int64_t channels,
                                                     int64_t chunk, Acc* partial) {
  Acc sums[kLaneChannels];
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    sums[c] = 0;
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[c] += slopes[v] * x(c, v);
  }
  const Acc sum = sum_over_voxels(sums);
  const int64_t channel = chunk * kChunk + lane_channel() + lane_index() / 4;
  if (channel < channels) partial[channel] += sum;
}

// Each warp sums the gradients of weights and bias in a row of its own of `partials`.
template <class T>
__global__ void __launch_bounds__(kThreads, kVoxelBlocks<T>)
    voxel_gate_backward_kernel(Gate<T> gate, View<T> grad, View<T> grad_e, View<T> grad_m,
                               Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  const int64_t ce = gate.e_channels, cm = gate.m_channels;
  Acc* partial = partials + warp_index() * (ce + cm + 1);
  for (int64_t i = lane_index(); i < ce + cm; i += 32) partial[i] = 0;
  __syncwarp();
  Acc grad_bias = 0;

  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const Place place(gate, tile);
    Values<T> e, g, m;  // the first chunks, as in the forward kernel
    load(gate.e, ce, place, 0, e);
    load(grad, ce, place, 0, g);
    if (cm > 0) load(gate.m, cm, place, 0, m);
    Acc sums[kLaneVoxels] = {}, slopes[kLaneVoxels] = {};
    add_products(gate.weight_e, ce, 0, e, sums);
    add_products(g, e, slopes);  // d out / d alpha = e
    for (int64_t chunk = 1; chunk < gate.e_chunks(); ++chunk) {
      Values<T> x, y;
      load(gate.e, ce, place, chunk, x);
      load(grad, ce, place, chunk, y);
      add_products(gate.weight_e, ce, chunk, x, sums);
      add_products(y, x, slopes);
    }
    if (cm > 0) add_products(gate.weight_m, cm, 0, m, sums);
    for (int64_t chunk = 1; chunk < gate.m_chunks(); ++chunk) {
      Values<T> x;
      load(gate.m, cm, place, chunk, x);
      add_products(gate.weight_m, cm, chunk, x, sums);
    }
    sum_over_channels(sums);
    sum_over_channels(slopes);
    Acc alpha[kLaneVoxels];
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) {
      const Acc sum = sums[v] + *gate.bias;
      alpha[v] = math::gate(sum, gate.relu);
      slopes[v] *= math::gate_slope(sum, alpha[v], gate.relu);
      grad_bias += slopes[v];
    }

    for (int64_t chunk = 0; chunk < gate.e_chunks(); ++chunk) {
      if (chunk > 0) {
        load(gate.e, ce, place, chunk, e);
        load(grad, ce, place, chunk, g);
      }
      add_weight_gradients(slopes, e, ce, chunk, partial);
      Acc w[kLaneChannels];
      load_weights(gate.weight_e, ce, chunk, w);
      Sums<Acc> result;
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) {
          const Acc y = g(c, v);
          result[c][v] = y + y * alpha[v] + w[c] * slopes[v];
        }
      }
      store(grad_e, ce, place, chunk, result);
    }
    for (int64_t chunk = 0; chunk < gate.m_chunks(); ++chunk) {
      if (chunk > 0) load(gate.m, cm, place, chunk, m);
      add_weight_gradients(slopes, m, cm, chunk, partial + ce);
      Acc w[kLaneChannels];
      load_weights(gate.weight_m, cm, chunk, w);
      Sums<Acc> result;
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) result[c][v] = w[c] * slopes[v];
      }
      store(grad_m, cm, place, chunk, result);
    }
  }

#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    grad_bias += __shfl_xor_sync(kAllLanes, grad_bias, lanes);
  }
  if (lane_index() == 0) partial[ce + cm] = grad_bias;
}

}  // namespace
}  // namespace egcnn::cuda
