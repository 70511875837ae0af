// The edge gate with one attention value per channel of e: its 1x1x1 convolutions are matmuls
// (products.cuh).
#pragma once

#include "weights.cuh"

namespace egcnn::cuda {
namespace {

// Layouts are looked up at run time. With a kernel for each layout, the compiler overlaps the loads
// of all chunks, so that forward needs more registers and backward spills.
template <class T>
using AnyView = View<T, Layout::any>;

// Without `many`, e and m have one chunk each, as in most networks where volumes are large.
template <class T, bool many>
struct ChannelGate : Gate<T, Layout::any> {
  PackedWeights<T, many> weights;

  template <class Params>
  explicit ChannelGate(const Params& p) : Gate<T, Layout::any>(p), weights(p) {}

  __device__ int64_t gate_chunks() const { return weights.gate_chunks(); }
  __device__ int64_t chunks() const { return weights.chunks(); }
};

// Calls body with whether there are several chunks, or float64, which serves gradient checks: one
// kernel will do.
template <class T, class Params, class Body>
void with_many(const Params& p, Body&& body) {
  if constexpr (!std::is_same_v<T, double>) {
    const auto one = [](int64_t channels) { return 0 < channels && channels <= kChunk; };
    if (one(p.size.channels) && one(p.main_channels)) return body(std::false_type());
  }
  body(std::true_type());
}

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

// The bias of a chunk of gates, with which their sums begin.
template <class T, bool many>
__device__ __forceinline__ void start_sums(const ChannelGate<T, many>& gate, int64_t gates,
                                           LaneArray<Accumulate<T>>& sums) {
  using Acc = Accumulate<T>;
  const auto* bias =
      reinterpret_cast<const Packet<Acc, 4>*>(gate.weights.bias(gates) + lane_channel());
#pragma unroll
  for (int half = 0; half < kLaneChannels / 4; ++half) {
    const Packet<Acc, 4> four = bias[half];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) sums[4 * half + c][v] = four.x[c];
    }
  }
}

// From the sums of a chunk of gates, the same chunk of the result.
template <class T>
__device__ __forceinline__ void apply_gates(const LaneValues<T>& e, bool relu,
                                            LaneArray<Accumulate<T>>& sums) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) {
      const Accumulate<T> x = e(c, v);
      sums[c][v] = x * attention(sums[c][v], relu) + x;
    }
  }
}

// Of sums and the incoming gradient g makes the slopes of the loss in the arguments of the
// activations. Calls past(c, v, value) with the gradient of e past the gates.
template <class T, class E, class Past>
__device__ __forceinline__ void make_slopes(const LaneValues<E>& e, const LaneValues<T>& g,
                                            bool relu, LaneArray<Accumulate<T>>& slopes,
                                            Past&& past) {
  using Acc = Accumulate<T>;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) {
      const Acc y = g(c, v), alpha = attention(slopes[c][v], relu);
      slopes[c][v] = y * e(c, v) * attention_slope(slopes[c][v], alpha, relu);
      past(c, v, y * alpha + y);
    }
  }
}

// Rounds slopes as factors of products.
template <bool split, class Acc>
__device__ __forceinline__ void round_slopes(LaneArray<Acc>& slopes) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) slopes[c][v] = factor<split>(slopes[c][v]);
  }
}

// --- Many chunks, numbered through: first those of e, then those of m ---

template <class T>
__device__ __forceinline__ void load_chunk(const ChannelGate<T, true>& gate,
                                           const LaneVoxels& place, int64_t chunk,
                                           LaneValues<T>& x) {
  const int64_t gate_chunks = gate.gate_chunks();
  const bool of_e = chunk < gate_chunks;
  AnyView<T> view = gate.e;
  if (!of_e) view = gate.m;
  load(view, of_e ? gate.e_channels : gate.m_channels, place, of_e ? chunk : chunk - gate_chunks,
       x);
}

// The argument of the activation, for a chunk of gates. `e` is the same chunk of e.
template <bool tf32, class T>
__device__ __forceinline__ void gate_sums(const ChannelGate<T, true>& gate, const LaneVoxels& place,
                                          int64_t gates, const LaneValues<T>& e,
                                          LaneArray<Accumulate<T>>& sums) {
  start_sums(gate, gates, sums);
#pragma unroll 1
  for (int64_t chunk = 0; chunk < gate.chunks(); ++chunk) {
    if (chunk == gates) continue;
    LaneValues<T> x;
    load_chunk(gate, place, chunk, x);
    add_chunk<tf32>(x, gate.weights.sum_fragments(gates, chunk), sums);
  }
  add_chunk<tf32>(e, gate.weights.sum_fragments(gates, gates), sums);
}

}  // namespace
}  // namespace egcnn::cuda
