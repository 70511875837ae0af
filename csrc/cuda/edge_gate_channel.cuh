// The edge gate with one attention value per channel of e: its 1x1x1 convolutions are matmuls
// (edge_gate_products.cuh).
#pragma once

#include "edge_gate_weights.cuh"

namespace egcnn::cuda {
namespace {

// Layouts are looked up at run time. With a kernel for each, the compiler overlaps the loads of all
// chunks: forward takes more registers, and backward spills.
template <class T>
using AnyView = View<T, Layout::any>;

template <class T>
struct ChannelGate : Gate<T, Layout::any> {
  PackedWeights<T> weights;

  template <class Params>
  explicit ChannelGate(const Params& p) : Gate<T, Layout::any>(p), weights(p) {}

  // There are as many gates as channels of e.
  __device__ int64_t gate_chunks() const { return this->e_chunks(); }
  __device__ int64_t chunks() const { return this->e_chunks() + this->m_chunks(); }
};

template <bool tf32, class T>
__device__ __forceinline__ void add_chunk(const LaneValues<T>& x, const Accumulate<T>* fragments,
                                          LaneArray<Accumulate<T>>& sums) {
  if constexpr (kSumProducts<T> == Products::f16) {
    multiply_f16(x, fragments, sums);
  } else {
    LaneArray<Accumulate<T>> factors;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) factors[c][v] = factor<kSplit<tf32, T>>(x.rows[c][v]);
    }
    multiply<kSplit<tf32, T>, kSplitSums<tf32, T>>(factors, fragments, sums);
  }
}

// Chunks are numbered through: first those of e, then those of m.
template <class T>
__device__ __forceinline__ void load_chunk(const ChannelGate<T>& gate, const LaneVoxels& place,
                                           int64_t gate_chunks, int64_t chunk, LaneValues<T>& x) {
  const bool of_e = chunk < gate_chunks;
  AnyView<T> view = gate.e;
  if (!of_e) view = gate.m;
  load(view, of_e ? gate.e_channels : gate.m_channels, place, of_e ? chunk : chunk - gate_chunks,
       x);
}

// The argument of the activation, for a chunk of gates. `e` is the same chunk of e. kUnroll is the
// number of chunks whose loads overlap.
template <bool tf32, int kUnroll, class T>
__device__ __forceinline__ void gate_sums(const ChannelGate<T>& gate, const LaneVoxels& place,
                                          int64_t gates, int64_t gate_chunks, int64_t chunks,
                                          const LaneValues<T>& e, LaneArray<Accumulate<T>>& sums) {
  using Acc = Accumulate<T>;
  const auto* bias =
      reinterpret_cast<const Packet<Acc, 4>*>(gate.weights.bias(gates) + lane_channel());
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[c][v] = bias[c / 4].x[c % 4];
  }
#pragma unroll kUnroll
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (chunk == gates) continue;
    LaneValues<T> x;
    load_chunk(gate, place, gate_chunks, chunk, x);
    add_chunk<tf32>(x, gate.weights.sum_fragments(gates, chunk), sums);
  }
  add_chunk<tf32>(e, gate.weights.sum_fragments(gates, gates), sums);
}

}  // namespace
}  // namespace egcnn::cuda
