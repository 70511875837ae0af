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
template <bool many, class T>
constexpr int kChannelBackwardBlocks = sizeof(T) == 2 && !many ? 3 : 2;

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

// What a gate reads in the workspace: the bias, padded to whole chunks, and fragments for the sums
// and, backward, for the gradients of e and m, whose product is with the transposed weights.
template <class T>
struct ChannelGate : Gate<T> {
  using Acc = Accumulate<T>;
  Acc* packed;

  template <class Params>
  explicit ChannelGate(const Params& p)
      : Gate<T>(p), packed(static_cast<Acc*>(p.resources.workspace)) {}

  // Gates are as many as channels of e.
  __host__ __device__ int64_t gate_chunks() const { return this->e_chunks(); }
  __host__ __device__ int64_t chunks() const { return this->e_chunks() + this->m_chunks(); }
  int64_t packed_count(bool transposed_too) const {
    return gate_chunks() * (kChunk + (transposed_too ? 2 : 1) * chunks() * kFragments);
  }

  __device__ const Acc* sum_fragments(int64_t gates, int64_t chunk) const {
    return packed + gate_chunks() * kChunk + (gates * chunks() + chunk) * kFragments;
  }
  __device__ const Acc* grad_fragments(int64_t gates, int64_t chunk) const {
    return sum_fragments(gate_chunks() + gates, chunk);
  }
};

template <bool tf32, class T>
__global__ void __launch_bounds__(256) pack_weights_kernel(ChannelGate<T> gate, int64_t count) {
  using Acc = Accumulate<T>;
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Acc* const to = gate.packed + i;
  if (i < gate.gate_chunks() * kChunk) {
    *to = i < gate.gates ? gate.bias[i] : Acc(0);
    return;
  }
  i -= gate.gate_chunks() * kChunk;
  const int lane = i / 4 % 32, u = i / 128 % 2 * 2 + i / 2 % 2, s = i / 256 % kSteps;
  const int summed = lane % 4 * 8 + 2 * s + i % 2, other = lane / 8 * 8 + 2 * u + lane / 4 % 2;
  int64_t block = i / kFragments;
  const int64_t chunk = block % gate.chunks();
  block /= gate.chunks();
  const bool transposed = block >= gate.gate_chunks();
  const int64_t row = block % gate.gate_chunks() * kChunk + (transposed ? summed : other);
  const bool of_e = chunk < gate.e_chunks();
  const int64_t channels = of_e ? gate.e_channels : gate.m_channels;
  const int64_t channel =
      (of_e ? chunk : chunk - gate.e_chunks()) * kChunk + (transposed ? other : summed);
  const Acc* weights = of_e ? gate.weight_e : gate.weight_m;
  const bool there = row < gate.gates && channel < channels;
  const Acc weight = there ? weights[row * channels + channel] : Acc(0);
  *to = transposed ? factor<kSplit<tf32, T>>(weight) : factor<kSplitSums<tf32, T>>(weight);
}

// --- Products ---

template <class Acc, int n>
struct alignas(n * sizeof(Acc) < 16 ? n * sizeof(Acc) : 16) Numbers {
  Acc x[n];
};

// sums += x times the weights of `fragments`.
template <bool split_x, bool split_weights, class Acc>
__device__ __forceinline__ void multiply(const Sums<Acc>& x, const Acc* fragments,
                                         Sums<Acc>& sums) {
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
                                          Sums<Accumulate<T>>& sums) {
  Sums<Accumulate<T>> factors;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) factors[c][v] = factor<kSplit<tf32, T>>(x.rows[c][v]);
  }
  multiply<kSplit<tf32, T>, kSplitSums<tf32, T>>(factors, fragments, sums);
}

// Chunks are counted through: those of e come first, then those of m.
template <class T>
__device__ __forceinline__ void load_chunk(const ChannelGate<T>& gate, const Place& place,
                                           int64_t gate_chunks, int64_t chunk, Values<T>& x) {
  const bool of_e = chunk < gate_chunks;
  View<T> view = gate.e;
  if (!of_e) view = gate.m;
  load(view, of_e ? gate.e_channels : gate.m_channels, place, of_e ? chunk : chunk - gate_chunks,
       x);
}

// The argument of the activation, for a chunk of gates. `e` is the same chunk of e.
template <bool tf32, bool many, class T>
__device__ __forceinline__ void gate_sums(const ChannelGate<T>& gate, const Place& place,
                                          int64_t gates, int64_t gate_chunks, int64_t chunks,
                                          const Values<T>& e, Sums<Accumulate<T>>& sums) {
  using Acc = Accumulate<T>;
  const auto* bias =
      reinterpret_cast<const Numbers<Acc, 4>*>(gate.packed + gates * kChunk + lane_channel());
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[c][v] = bias[c / 4].x[c % 4];
  }
#pragma unroll(many ? 1 : 2)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (chunk == gates) continue;
    Values<T> x;
    load_chunk(gate, place, gate_chunks, chunk, x);
    add_chunk<tf32>(x, gate.sum_fragments(gates, chunk), sums);
  }
  add_chunk<tf32>(e, gate.sum_fragments(gates, gates), sums);
}

template <bool tf32, class T>
__global__ void __launch_bounds__(kThreads, kChannelBlocks<T>)
    channel_gate_kernel(ChannelGate<T> gate, View<T> out) {
  using Acc = Accumulate<T>;
  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const Place place(gate, tile);
    for (int64_t gates = 0; gates < gate.gate_chunks(); ++gates) {
      Values<T> e;
      load(gate.e, gate.e_channels, place, gates, e);
      Sums<Acc> sums;
      gate_sums<tf32, true>(gate, place, gates, gate.gate_chunks(), gate.chunks(), e, sums);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) {
          const Acc x = e(c, v);
          sums[c][v] = x * math::gate(sums[c][v], gate.relu) + x;
        }
      }
      store(out, gate.e_channels, place, gates, sums);
    }
  }
}

// --- Backward ---

// A tile in shared memory, for products that are summed over its voxels: values of a chunk of
// channels as operand a, slopes of a chunk of gates as operand b. Row 4 i + q holds what is the i-th
// of a lane 4 r + q: of its pairs of channels, so that four values in a row make one lane's operand,
// or of its gates. The voxels are in the order that lets lanes write pairs side by side.
template <class T>
struct Staging {
  using Acc = Accumulate<T>;
  alignas(16) T values[kChunk / 2][2 * kTile];
  alignas(16) Acc slopes[kChunk][kTile + 8];  // pairs that are read together are in all banks
  Acc bias[kChunk];                           // the slopes' sums over the tile

  // The pair of voxels v and v + 1 of a lane.
  static __device__ __forceinline__ int pair(int v) { return v / 2 * 8 + lane_index() / 4; }

  // Where a row of values has a pair of voxels: such that those of other rows which are written or
  // read together are in other banks, for values of two and of four bytes.
  static __device__ __forceinline__ int column(int row, int pair) {
    return 4 * (pair ^ (row % 4 * 4 + row / 2 % 2 * 2));
  }

  __device__ __forceinline__ void store_values(const Values<T>& x) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; c += 2) {
      const int row = 2 * c + lane_index() % 4;
#pragma unroll
      for (int v = 0; v < kLaneVoxels; v += 2) {
        Four<T> four;
        four.set({x.rows[c][v], x.rows[c + 1][v], x.rows[c][v + 1], x.rows[c + 1][v + 1]});
        *reinterpret_cast<Four<T>*>(&values[row][column(row, pair(v))]) = four;
      }
    }
  }

  __device__ __forceinline__ void store_slopes(const Sums<Acc>& x) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; v += 2) {
        *reinterpret_cast<Numbers<Acc, 2>*>(&slopes[4 * c + lane_index() % 4][2 * pair(v)]) = {
            x[c][v], x[c][v + 1]};
      }
    }
  }
};

// Tiles, and warps, of a block: as many as 48 KB of shared memory hold.
template <class T>
constexpr int kBackwardWarps = sizeof(T) == 8 ? 2 : 4;

// The product of a chunk of values and one of slopes is summed over the voxels. It is made in
// quarters of 16 rows and 16 columns, and its number i is of the quarter i / 256 and of lane
// i / 4 % 32, which has numbers as mma's d has them. This is its channel and its gate, in their chunks.
__host__ __device__ inline int product_channel(int i) {
  const int row = i / 256 % 2 * 8 + i / 4 % 32 / 4;  // of Staging::values
  return row % 4 * kLaneChannels + row / 4 * 2 + i / 2 % 2;
}
__host__ __device__ inline int product_gate(int i) {
  const int row = i / 512 * 16 + i / 128 % 2 * 8 + i / 4 % 4 * 2 + i % 2;  // of Staging::slopes
  return row % 4 * kLaneChannels + row / 4;
}

// product += a quarter of the values times the slopes of a block's tiles.
template <bool split, int tiles, class T, class Acc = Accumulate<T>>
__device__ __forceinline__ void add_quarter(const Staging<T> (&stagings)[tiles], int quarter,
                                            Acc* product) {
  const int row = lane_index() / 4, pair = lane_index() % 4;
  const int a_row = quarter % 2 * 8 + row, b_row = quarter / 2 * 16 + row;
  // Tensor cores round towards zero. So as not to lose more with every tile, these sums start at
  // zero and are added as a whole. Two of each keep more products under way.
  Acc sums[2][2][4] = {};
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const Staging<T>& staging = stagings[tile];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const auto a = *reinterpret_cast<const Four<T>*>(
          &staging.values[a_row][Staging<T>::column(a_row, 4 * s + pair)]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const auto b = *reinterpret_cast<const Numbers<Acc, 2>*>(
            &staging.slopes[b_row + 8 * u][2 * (4 * s + pair)]);
        Acc* d = sums[s % 2][u];
        mma_split<split, split>(d[0], d[1], d[2], d[3],
                                {factor<split>(a[0]), factor<split>(a[1]), factor<split>(a[2]),
                                 factor<split>(a[3])},
                                b.x);
      }
    }
  }
  auto* to = reinterpret_cast<Numbers<Acc, 4>*>(product) + quarter * 64 + lane_index();
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    Numbers<Acc, 4> sum = to[32 * u];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i] += sums[0][u][i] + sums[1][u][i];
    to[32 * u] = sum;
  }
}

// `many` is for more than one chunk of e or of m. With one of each, which is what most networks have
// where their volumes are large, the gradients of the weights are summed in shared memory; else in
// the block's row of `partials`. With more than one chunk of gates, their slopes are computed anew
// for each chunk of results: slow, but free of limits.
template <bool tf32, bool many, class T>
__global__ void __launch_bounds__(32 * kBackwardWarps<T>, kChannelBackwardBlocks<many, T>)
    channel_gate_backward_kernel(ChannelGate<T> gate, View<T> grad, View<T> grad_e,
                                 View<T> grad_m, Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  constexpr int warps = kBackwardWarps<T>;
  constexpr bool split = kSplit<tf32, T>;
  __shared__ Staging<T> stagings[warps];
  __shared__ __align__(16) Acc shared_products[many ? 4 : 2 * kFragments];
  const int warp = threadIdx.x / 32;
  Staging<T>& staging = stagings[warp];
  const int64_t gate_chunks = many ? gate.gate_chunks() : 1, chunks = many ? gate.chunks() : 2;
  const int64_t weights = gate_chunks * chunks * kFragments;
  Acc* partial = partials + blockIdx.x * (weights + gate_chunks * kChunk);
  Acc* const products = many ? partial : shared_products;
  for (int64_t i = threadIdx.x; i < weights; i += blockDim.x) products[i] = 0;
  for (int64_t i = threadIdx.x; i < gate_chunks * kChunk; i += blockDim.x) partial[weights + i] = 0;
  __syncthreads();

  for (uint32_t first = blockIdx.x * warps; first < gate.tiles; first += gridDim.x * warps) {
    const Place place(gate, first + warp);
    Sums<Acc> slopes;  // of the loss in the arguments of the gates' activations
#pragma unroll(many ? 1 : 2)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      Sums<Acc> result = {};
      for (int64_t gates = 0; gates < gate_chunks; ++gates) {
        Values<T> x;
        const bool new_slopes = chunk == 0 || gate_chunks > 1;
        if (new_slopes) {
          Values<T> g;
          load(gate.e, gate.e_channels, place, gates, x);
          if (!many) load(grad, gate.e_channels, place, gates, g);
          gate_sums<tf32, many>(gate, place, gates, gate_chunks, chunks, x, slopes);
          if (many) load(grad, gate.e_channels, place, gates, g);  // there registers are short
          Acc grad_bias[kLaneChannels] = {};
#pragma unroll
          for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
            for (int v = 0; v < kLaneVoxels; ++v) {
              const Acc y = g(c, v), alpha = math::gate(slopes[c][v], gate.relu);
              const Acc slope = math::gate_slope(slopes[c][v], alpha, gate.relu);
              const Acc d = y * x(c, v) * slope;
              if (chunk == gates) result[c][v] = y * alpha + (many ? y + result[c][v] : y);
              slopes[c][v] = factor<split>(d);
              grad_bias[c] += d;
            }
          }
          staging.store_slopes(slopes);
          staging.bias[lane_channel() + lane_index() / 4] = sum_over_voxels(grad_bias);
        }
        if (chunk != gates) load_chunk(gate, place, gate_chunks, chunk, x);
        multiply<split, split>(slopes, gate.grad_fragments(gates, chunk), result);
        if (gates == gate_chunks - 1) {
          const bool of_e = chunk < gate_chunks;
          View<T> view = grad_e;
          if (!of_e) view = grad_m;
          store(view, of_e ? gate.e_channels : gate.m_channels, place,
                of_e ? chunk : chunk - gate_chunks, result);
        }
        staging.store_values(x);
        __syncthreads();
        if (chunk == 0 && warp == 0) {
          Acc sum = 0;
#pragma unroll
          for (int i = 0; i < warps; ++i) sum += stagings[i].bias[lane_index()];
          partial[weights + gates * kChunk + lane_index()] += sum;
        }
#pragma unroll
        for (int quarter = 0; quarter < 4; quarter += warps) {
          add_quarter<split>(stagings, quarter + warp,
                             products + (gates * chunks + chunk) * kFragments);
        }
        __syncthreads();
      }
    }
  }
  if (!many) {
    for (int i = threadIdx.x; i < weights; i += blockDim.x) partial[i] = products[i];
  }
}

}  // namespace
}  // namespace egcnn::cuda
