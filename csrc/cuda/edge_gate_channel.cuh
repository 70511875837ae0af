// The edge gate with an attention value for each channel of e: its 1x1x1 convolutions are matrix
// products. A warp makes them of what its lanes hold (edge_gate_tile.cuh), which already lies as
// mma's operand a and result do: row r of its two tiles of 16 voxels are voxels of lane 4 r + q, and
// the columns q and q + 4 of a, or 2 q and 2 q + 1 of d, are two channels of that lane. The order in
// which this takes the channels is that of the weights in operand b.
#pragma once

#include "../math/gate.h"
#include "edge_gate_tile.cuh"
#include "mma.cuh"

namespace egcnn::cuda {
namespace {

// To a multiprocessor, as registers allow.
template <class T>
constexpr int kChannelBlocks = sizeof(T) == 2 ? 3 : 2;
constexpr int kChannelBackwardBlocks = 2;

// --- Weights as operand b ---

// The weights of a chunk of gates and a chunk of channels, as the lanes need them: for step s over
// eight of the summed index and two steps u over eight of the other, four numbers for each lane.
constexpr int kFragments = kChunk * kChunk;
constexpr int kSteps = 4;

// --- Precision ---

// Whether both factors of every product are split, which float32 asks for unless TF32 is allowed.
template <bool tf32, class T>
constexpr bool kSplit = std::is_same_v<T, float> && !tf32;

// Whether the weights in the gates' sums are: for 16-bit types too. The sums' signs decide what ReLU
// lets through, and rounded weights would change the sign of too many.
template <bool tf32, class T>
constexpr bool kSplitSums = kSplit<tf32, T> || sizeof(T) == 2;

// A factor that is not split is rounded. 16-bit values need not be.
template <bool split, class T>
__device__ __forceinline__ Accumulate<T> factor(T x) {
  if constexpr (std::is_same_v<T, float> && !split) {
    return to_tf32(x);
  } else {
    return widen(x);
  }
}

template <class T>
struct ChannelGate : Gate<T> {
  using Acc = Accumulate<T>;
  const Acc* fragments;

  template <class Params>
  explicit ChannelGate(const Params& p)
      : Gate<T>(p), fragments(static_cast<const Acc*>(p.resources.workspace)) {}

  __host__ __device__ int64_t gate_chunks() const { return divide_up<int64_t>(this->gates, kChunk); }
  __host__ __device__ int64_t chunks() const { return this->e.chunks() + this->m.chunks(); }

  // Numbers of one order of the weights; forward needs one, backward both.
  int64_t packed() const { return gate_chunks() * chunks() * kFragments; }

  // Gates times channels: the operand of the sums.
  __device__ const Acc* sum_fragments(int64_t gates, int64_t chunk) const {
    return fragments + (gates * chunks() + chunk) * kFragments;
  }
  // Channels times gates: that of the gradients of e and m.
  __device__ const Acc* grad_fragments(int64_t gates, int64_t chunk) const {
    return sum_fragments(gate_chunks() + gates, chunk);
  }
};

template <bool tf32, class T>
__global__ void __launch_bounds__(256) pack_weights_kernel(ChannelGate<T> gate, Accumulate<T>* to,
                                                           int64_t count) {
  using Acc = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int lane = i / 4 % 32, u = i / 128 % 2 * 2 + i / 2 % 2, s = i / 256 % kSteps;
  const int summed = lane % 4 * 8 + 2 * s + i % 2, other = lane / 8 * 8 + 2 * u + lane / 4 % 2;
  int64_t block = i / kFragments;
  const int64_t chunk = block % gate.chunks();
  block /= gate.chunks();
  const bool transposed = block >= gate.gate_chunks();
  const int64_t row = block % gate.gate_chunks() * kChunk + (transposed ? summed : other);
  const bool of_e = chunk < gate.e.chunks();
  const int64_t channels = of_e ? gate.e.channels : gate.m.channels;
  const int64_t channel =
      (of_e ? chunk : chunk - gate.e.chunks()) * kChunk + (transposed ? other : summed);
  const Acc* weights = of_e ? gate.weight_e : gate.weight_m;
  const bool there = row < gate.gates && channel < channels;
  const Acc weight = there ? weights[row * channels + channel] : Acc(0);
  to[i] = transposed ? factor<kSplit<tf32, T>>(weight) : factor<kSplitSums<tf32, T>>(weight);
}

// --- Products ---

template <class Acc, int n>
struct alignas(n * sizeof(Acc) < 16 ? n * sizeof(Acc) : 16) Numbers {
  Acc x[n];
};

// sums += x times the weights of `fragments`.
template <bool split_x, bool split_weights, class Acc>
__device__ __forceinline__ void multiply(const Values<Acc>& x, const Acc* fragments,
                                         Values<Acc>& sums) {
  const auto* b = reinterpret_cast<const Numbers<Acc, 4>*>(fragments) + lane_index();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const Numbers<Acc, 4> two = b[(s * kSteps + u) / 2 * 32];
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
__device__ __forceinline__ void add_chunk(const Values<T>& x, const Accumulate<T>* fragments,
                                          Values<Accumulate<T>>& sums) {
  Values<Accumulate<T>> factors;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) factors[c][v] = factor<kSplit<tf32, T>>(x[c][v]);
  }
  multiply<kSplit<tf32, T>, kSplitSums<tf32, T>>(factors, fragments, sums);
}

// What a chunk's number stands for: chunks of e come first, then those of m.
template <class T>
__device__ __forceinline__ View<T> chosen(bool first, const View<T>& e, const View<T>& m) {
  View<T> view = e;
  if (!first) view = m;
  return view;
}

// The argument of the activation, for a chunk of gates. `e` is the same chunk of e.
template <bool tf32, class T>
__device__ __forceinline__ void gate_sums(const ChannelGate<T>& gate, const Place& place,
                                          int64_t gates, int64_t gate_chunks, int64_t chunks,
                                          const Values<T>& e, Values<Accumulate<T>>& sums) {
  using Acc = Accumulate<T>;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    const int64_t row = gates * kChunk + lane_channel() + c;
    const Acc bias = row < gate.gates ? gate.bias[row] : Acc(0);
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[c][v] = bias;
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (chunk == gates) continue;
    const bool of_e = chunk < gate_chunks;
    Values<T> x;
    load(chosen(of_e, gate.e, gate.m), place, of_e ? chunk : chunk - gate_chunks, x);
    add_chunk<tf32>(x, gate.sum_fragments(gates, chunk), sums);
  }
  add_chunk<tf32>(e, gate.sum_fragments(gates, gates), sums);
}

template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, kChannelBlocks<T>)
    channel_gate_kernel(ChannelGate<T> gate, View<T> out) {
  using Acc = Accumulate<T>;
  for (int64_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const Place place(tile, gate.voxels);
    for (int64_t gates = 0; gates < gate.gate_chunks(); ++gates) {
      Values<T> e;
      load(gate.e, place, gates, e);
      Values<Acc> sums;
      gate_sums<tf32>(gate, place, gates, gate.gate_chunks(), gate.chunks(), e, sums);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) {
          const Acc x = widen(e[c][v]);
          sums[c][v] = x * math::gate(sums[c][v], gate.relu) + x;
        }
      }
      store(out, place, gates, sums);
    }
  }
}

// --- Backward ---

// A chunk's values of a tile in shared memory, for a product that is summed over the voxels. The
// rows of operand a are pairs of channels, so that four numbers in a row make one lane's operand;
// those of b are single channels. Row 4 i + q has the i-th of a lane's. The pitches keep lanes that
// read together in different banks.
template <class Acc>
struct Staging {
  alignas(16) Acc a[kChunk / 2][2 * kTile + 16];
  alignas(16) Acc b[kChunk][kTile + 8];

  __device__ __forceinline__ void store_a(const Values<Acc>& x) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; c += 2) {
      auto* to = reinterpret_cast<Numbers<Acc, 4>*>(
          &a[2 * c + lane_index() % 4][2 * lane_voxel()]);
      to[0] = {x[c][0], x[c + 1][0], x[c][1], x[c + 1][1]};
      to[1] = {x[c][2], x[c + 1][2], x[c][3], x[c + 1][3]};
    }
  }
  template <bool split, class T>
  __device__ __forceinline__ void store_b(const Values<T>& x) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      *reinterpret_cast<Numbers<Acc, 4>*>(&b[4 * c + lane_index() % 4][lane_voxel()]) = {
          factor<split>(x[c][0]), factor<split>(x[c][1]), factor<split>(x[c][2]),
          factor<split>(x[c][3])};
    }
  }
};

// A lane's numbers of a product of 32 by 32.
template <class Acc>
using Product = Acc[2][kSteps][4];
constexpr int kProduct = 32;

// products += a b'.
template <bool split, class Acc>
__device__ __forceinline__ void multiply_staged(const Staging<Acc>& staging,
                                                Product<Acc>& products) {
  const int row = lane_index() / 4, column = lane_index() % 4;
  // Tensor cores round towards zero. So as not to lose more with every tile, each tile starts at
  // zero and is added as a whole.
  Product<Acc> sums = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    Numbers<Acc, 4> a[2];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      a[t] = *reinterpret_cast<const Numbers<Acc, 4>*>(
          &staging.a[8 * t + row][16 * s + 4 * column]);
    }
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const auto b = *reinterpret_cast<const Numbers<Acc, 2>*>(
          &staging.b[8 * u + row][8 * s + 2 * column]);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        Acc* d = sums[t][u];
        mma_split<split, split>(d[0], d[1], d[2], d[3], a[t].x, b.x);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kProduct; ++i) (&products[0][0][0])[i] += (&sums[0][0][0])[i];
}

// The gate and the channel, within their chunks, of number i of a Product of all lanes: number
// i / 32 of lane i % 32.
__host__ __device__ inline int product_gate(int i) {
  const int row = i / 512 * 8 + i % 32 / 4;  // of Staging::a
  return row % 4 * kLaneChannels + row / 4 * 2 + i / 64 % 2;
}
__host__ __device__ inline int product_channel(int i) {
  const int row = i / 128 % kSteps * 8 + i % 4 * 2 + i / 32 % 2;  // of Staging::b
  return row % 4 * kLaneChannels + row / 4;
}

// Moves products to where a warp adds them up.
template <class Acc>
__device__ __forceinline__ void add_products(Product<Acc>& products, Acc* partial) {
  Acc* to = partial + lane_index();
#pragma unroll
  for (int i = 0; i < kProduct; ++i) {
    Acc& product = (&products[0][0][0])[i];
    to[i * 32] += product;
    product = 0;
  }
}

// To a block, as 48 KB of shared memory allow.
template <class T>
constexpr int kBackwardWarps = sizeof(T) == 8 ? 2 : 4;

// `many` is for more than one chunk of e or of m. With one of each, which is what most networks have
// where their volumes are large, the gradients of the weights stay in registers; else they are
// added to this warp's `partials` after each tile. With more than one chunk of gates, their slopes
// are computed anew for each chunk of results: slow, but free of limits.
template <bool tf32, bool many, class T>
__global__ void __launch_bounds__(32 * kBackwardWarps<T>, kChannelBackwardBlocks)
    channel_gate_backward_kernel(ChannelGate<T> gate, View<T> grad, View<T> grad_e,
                                 View<T> grad_m, Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  __shared__ Staging<Acc> stagings[kBackwardWarps<T>];
  Staging<Acc>& staging = stagings[threadIdx.x / 32];
  const int64_t gate_chunks = many ? gate.gate_chunks() : 1, chunks = many ? gate.chunks() : 2;
  const int64_t weights = gate_chunks * chunks * kFragments;
  Acc* partial = partials + warp_index() * (weights + gate_chunks * kChunk);
  for (int64_t i = lane_index(); i < weights + gate_chunks * kChunk; i += 32) partial[i] = 0;
  __syncwarp();
  Product<Acc> products[many ? 1 : 2] = {};

  for (int64_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const Place place(tile, gate.voxels);
    Values<Acc> slopes;  // of the loss in the arguments of the gates' activations
#pragma unroll(many ? 1 : 2)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const bool of_e = chunk < gate_chunks;
      Values<Acc> result = {};
      for (int64_t gates = 0; gates < gate_chunks; ++gates) {
        Values<T> x;
        if (chunk == 0 || gate_chunks > 1) {
          Values<T> g;
          load(gate.e, place, gates, x);
          load(grad, place, gates, g);
          gate_sums<tf32>(gate, place, gates, gate_chunks, chunks, x, slopes);
          Acc grad_bias[kLaneChannels] = {};
#pragma unroll
          for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
            for (int v = 0; v < kLaneVoxels; ++v) {
              const Acc y = widen(g[c][v]), alpha = math::gate(slopes[c][v], gate.relu);
              const Acc slope = math::gate_slope(slopes[c][v], alpha, gate.relu);
              const Acc d = y * widen(x[c][v]) * slope;
              if (chunk == gates) result[c][v] += y * alpha + y;
              slopes[c][v] = factor<kSplit<tf32, T>>(d);
              grad_bias[c] += d;
            }
          }
          staging.store_a(slopes);
          if (chunk == 0) {
            const Acc sum = sum_over_voxels(grad_bias);
            partial[weights + gates * kChunk + lane_channel() + lane_index() / 4] += sum;
          }
        }
        if (chunk != gates) {
          load(chosen(of_e, gate.e, gate.m), place, of_e ? chunk : chunk - gate_chunks, x);
        }
        multiply<kSplit<tf32, T>, kSplit<tf32, T>>(slopes, gate.grad_fragments(gates, chunk), result);
        if (gates == gate_chunks - 1) {
          store(chosen(of_e, grad_e, grad_m), place, of_e ? chunk : chunk - gate_chunks, result);
        }
        staging.template store_b<kSplit<tf32, T>>(x);
        __syncwarp();
        multiply_staged<kSplit<tf32, T>>(staging, products[many ? 0 : chunk]);
        __syncwarp();
        if constexpr (many) {
          add_products(products[0], partial + (gates * chunks + chunk) * kFragments);
        }
      }
    }
  }
  if constexpr (!many) {
    add_products(products[0], partial);
    add_products(products[1], partial + kFragments);
  }
}

}  // namespace
}  // namespace egcnn::cuda
