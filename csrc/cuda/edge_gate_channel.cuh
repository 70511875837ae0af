// The edge gate with one attention value per channel of e: its 1x1x1 convolutions are matmuls on
// tensor cores. What the lanes of a warp hold (edge_gate_access.cuh) already has the layout of
// mma's operand a and of its result: row r of the two tiles of 16 voxels are voxels of lane 4 r +
// q, and columns q and q + 4 of a, or 2 q and 2 q + 1 of d, are two channels of that lane. The
// weights in operand b follow the resulting order of the channels.
#pragma once

#include "edge_gate_weights.cuh"

namespace egcnn::cuda {
namespace {

// Layouts are looked up at run time. With a kernel for each, the compiler overlaps the loads of all
// chunks: forward takes more registers, and backward spills.
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

// Values that are read or written in one access.
template <class Acc, int n>
struct alignas(n * sizeof(Acc) < 16 ? n * sizeof(Acc) : 16) Packet {
  Acc x[n];
};

// sums += x times the weights of `fragments`.
template <bool split_x, bool split_weights, class Acc>
__device__ __forceinline__ void multiply(const LaneArray<Acc>& x, const Acc* fragments,
                                         LaneArray<Acc>& sums) {
  const auto* b = reinterpret_cast<const Packet<Acc, 4>*>(fragments) + lane_index();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const Packet<Acc, 4> two = b[(s * kSteps + u) / 2 * 32];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; v += 2) {
        mma_split<split_x, split_weights>(
            sums[2 * u][v], sums[2 * u + 1][v], sums[2 * u][v + 1], sums[2 * u + 1][v + 1],
            {x[2 * s][v], x[2 * s][v + 1], x[2 * s + 1][v], x[2 * s + 1][v + 1]},
            {two.x[u % 2 * 2], two.x[u % 2 * 2 + 1]});
      }
    }
  }
}

template <bool tf32, class T>
__device__ __forceinline__ void add_chunk(const LaneValues<T>& x, const Accumulate<T>* fragments,
                                          LaneArray<Accumulate<T>>& sums) {
  LaneArray<Accumulate<T>> factors;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) factors[c][v] = factor<kSplit<tf32, T>>(x.rows[c][v]);
  }
  multiply<kSplit<tf32, T>, kSplitSums<tf32, T>>(factors, fragments, sums);
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
