// The gradients of the weights: matmuls of values and slopes, summed over voxels. Each warp stages
// its tile in shared memory, values as operand a and slopes as operand b, and computes a quarter of
// the product of all tiles.
#pragma once

#include "channel.cuh"
#include "partials.cuh"

namespace egcnn::cuda {
namespace {

// Row 4 i + q holds what is number i of lane 4 r + q: for values its pairs of channels, so that
// four adjacent ones make a lane's operand; for slopes its gates. The voxels are in the order that
// lets lanes write pairs side by side.
template <class T, int chunks = 1>
struct Staging {
  using Acc = Accumulate<T>;
  alignas(16) T values[chunks][kChunk / 2][2 * kTile];
  alignas(16) Acc slopes[kChunk][kTile + 8];  // spreads pairs that are read together over all banks

  // The pair of voxels v and v + 1 of a lane.
  static __device__ __forceinline__ int pair(int v) { return v / 2 * 8 + lane_index() / 4; }

  // The position of a pair of voxels in a row of values. Rows that are written or read together use
  // different banks, for values of two and of four bytes.
  static __device__ __forceinline__ int column(int row, int pair) {
    return 4 * (pair ^ (row % 4 * 4 + row / 2 % 2 * 2));
  }

  __device__ __forceinline__ void store_values(const LaneValues<T>& x, int chunk = 0) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; c += 2) {
      const int row = 2 * c + lane_index() % 4;
#pragma unroll
      for (int v = 0; v < kLaneVoxels; v += 2) {
        Four<T> four;
        four.set({x.rows[c][v], x.rows[c + 1][v], x.rows[c][v + 1], x.rows[c + 1][v + 1]});
        *reinterpret_cast<Four<T>*>(&values[chunk][row][column(row, pair(v))]) = four;
      }
    }
  }

  __device__ __forceinline__ void store_slopes(const LaneArray<Acc>& x) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; v += 2) {
        *reinterpret_cast<Packet<Acc, 2>*>(&slopes[4 * c + lane_index() % 4][2 * pair(v)]) = {
            x[c][v], x[c][v + 1]};
      }
    }
  }
};

// Tiles, and warps, per block: as many as fit in 48 KB of shared memory.
template <class T>
constexpr int kBackwardWarps = sizeof(T) == 8 ? 2 : 4;
template <class T>
constexpr int kBackwardThreads = kWarpSize * kBackwardWarps<T>;

// The product of a chunk of values and a chunk of slopes is computed in quarters of 16 rows and 16
// columns. Element i belongs to quarter i / 256 and lane i / 4 % 32, in the order of mma's d. These
// are its channel and its gate, within their chunks.
__host__ __device__ inline int product_channel(int i) {
  const int row = i / 256 % 2 * 8 + i / 4 % 32 / 4;  // of Staging::values
  return row % 4 * kLaneChannels + row / 4 * 2 + i / 2 % 2;
}
__host__ __device__ inline int product_gate(int i) {
  const int row = i / 512 * 16 + i / 128 % 2 * 8 + i / 4 % 4 * 2 + i % 2;  // of Staging::slopes
  return row % 4 * kLaneChannels + row / 4;
}

// What a lane has of a quarter: for two steps over eight columns, four numbers in the order of d.
template <class Acc>
using QuarterSums = Acc[2][4];

// A quarter of a chunk of values times the slopes of a block's tiles.
template <bool split, int tiles, class T, int chunks>
__device__ __forceinline__ void sum_quarter_tf32(const Staging<T, chunks> (&stagings)[tiles],
                                                 int quarter, int chunk,
                                                 QuarterSums<float>& result) {
  const int row = lane_index() / 4, pair = lane_index() % 4;
  const int a_row = quarter % 2 * 8 + row, b_row = quarter / 2 * 16 + row;
  float sums[2][2][4] = {};  // two of each kind keep more products in flight
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const Staging<T, chunks>& staging = stagings[tile];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const auto a = *reinterpret_cast<const Four<T>*>(
          &staging.values[chunk][a_row][Staging<T>::column(a_row, 4 * s + pair)]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const auto b = *reinterpret_cast<const Packet<float, 2>*>(
            &staging.slopes[b_row + 8 * u][2 * (4 * s + pair)]);
        float* d = sums[s % 2][u];
        mma_split<split, split>(
            d[0], d[1], d[2], d[3],
            {factor<split>(a[0]), factor<split>(a[1]), factor<split>(a[2]), factor<split>(a[3])},
            b.x);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < 2; ++u) {
#pragma unroll
    for (int i = 0; i < 4; ++i) result[u][i] = sums[0][u][i] + sums[1][u][i];
  }
}

// The same by multiply-adds: the lane goes through all voxels for its two rows and four columns.
template <int tiles, class T, int chunks, class Acc>
__device__ __forceinline__ void sum_quarter_plain(const Staging<T, chunks> (&stagings)[tiles],
                                                  int quarter, int chunk,
                                                  QuarterSums<Acc>& result) {
  const int a_row = quarter % 2 * 8 + lane_index() / 4;
  const int b_row = quarter / 2 * 16 + lane_index() % 4 * 2;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const Staging<T, chunks>& staging = stagings[tile];
#pragma unroll 4
    for (int pair = 0; pair < kTile / 2; ++pair) {
      const auto a = *reinterpret_cast<const Four<T>*>(
          &staging.values[chunk][a_row][Staging<T>::column(a_row, pair)]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto b = *reinterpret_cast<const Packet<Acc, 2>*>(
            &staging.slopes[b_row + i / 2 * 8 + i % 2][2 * pair]);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          Acc& sum = result[i / 2][row * 2 + i % 2];
          sum += widen(a[row]) * b.x[0];
          sum += widen(a[row + 2]) * b.x[1];
        }
      }
    }
  }
}

// product += a quarter of a chunk of values times the slopes of a block's tiles. Tensor cores round
// towards zero; starting at zero and adding whole sums keeps that error from growing with the
// number of tiles.
template <bool split, int tiles, class T, int chunks, class Acc = Accumulate<T>>
__device__ __forceinline__ void add_quarter(const Staging<T, chunks> (&stagings)[tiles],
                                            int quarter, int chunk, Acc* product) {
  QuarterSums<Acc> sums = {};
  if constexpr (kGradientProducts<T> == Products::tf32) {
    sum_quarter_tf32<split>(stagings, quarter, chunk, sums);
  } else {
    sum_quarter_plain(stagings, quarter, chunk, sums);
  }
  auto* to = reinterpret_cast<Packet<Acc, 4>*>(product) + quarter * 64 + lane_index();
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    Packet<Acc, 4> sum = to[32 * u];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i] += sums[u][i];
    to[32 * u] = sum;
  }
}

// Adds all quarters, shared out among the block's warps.
template <bool split, int warps, class T, int chunks, class Acc = Accumulate<T>>
__device__ __forceinline__ void add_product(const Staging<T, chunks> (&stagings)[warps],
                                            Acc* product, int chunk = 0) {
#pragma unroll
  for (int first = 0; first < 4; first += warps) {
    add_quarter<split>(stagings, first + int(threadIdx.x) / kWarpSize, chunk, product);
  }
}

// Sums of slopes over a block's tiles, for the gradient of the bias. Each warp takes its share of
// the gates; as many adjacent lanes as there are warps share the voxels of a gate.
template <int warps>
struct SlopeSums {
  static constexpr int kVoxels = kTile / warps;

  static __device__ __forceinline__ int row() { return int(threadIdx.x) / warps; }

  template <class T, int chunks>
  static __device__ __forceinline__ Accumulate<T> add(const Staging<T, chunks> (&stagings)[warps]) {
    using Acc = Accumulate<T>;
    Acc sum = 0;
#pragma unroll
    for (const auto& staging : stagings) {
      const auto* from = reinterpret_cast<const Packet<Acc, 4>*>(
          &staging.slopes[row()][lane_index() % warps * kVoxels]);
#pragma unroll
      for (int i = 0; i < kVoxels / 4; ++i) {
        const Packet<Acc, 4> four = from[i];
        sum += (four.x[0] + four.x[1]) + (four.x[2] + four.x[3]);
      }
    }
    return sum;
  }

  // Adds the sums of a gate's lanes to a chunk of the gradient.
  template <class Acc>
  static __device__ __forceinline__ void store(Acc sum, Acc* grad_bias) {
#pragma unroll
    for (int lanes = 1; lanes < warps; lanes *= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    }
    if (lane_index() % warps == 0) grad_bias[row() % 4 * kLaneChannels + row() / 4] += sum;
  }
};

// The columns of a row of partials: the products of all pairs of chunks, then the bias. Padding up
// to whole chunks has no place.
template <class Acc>
struct ChannelColumns : WeightGradients<Acc> {
  int64_t e_chunks, chunks, weights;

  explicit ChannelColumns(const EdgeGateBackward& p)
      : WeightGradients<Acc>(p), e_chunks(divide_up(p.size.channels, kChunk)),
        chunks(e_chunks + divide_up(p.main_channels, kChunk)),
        weights(e_chunks * chunks * kFragments) {}

  __host__ __device__ int64_t count() const { return weights + e_chunks * kChunk; }

  __device__ Acc* place(int64_t column) const {
    if (column >= weights) {
      column -= weights;
      return column < this->gates ? this->bias + column : nullptr;
    }
    const int64_t pair = column / kFragments, chunk = pair % chunks;
    const int64_t gate = pair / chunks * kChunk + product_gate(int(column % kFragments));
    const bool of_e = chunk < e_chunks;
    const int64_t channels = of_e ? this->e_channels : this->m_channels;
    const int64_t channel =
        (of_e ? chunk : chunk - e_chunks) * kChunk + product_channel(int(column % kFragments));
    if (gate >= this->gates || channel >= channels) return nullptr;
    return (of_e ? this->weight_e : this->weight_m) + gate * channels + channel;
  }
};

}  // namespace
}  // namespace egcnn::cuda
