// How the products of the edge gate with one attention value per channel are made on each
// architecture, and those that TF32 tensor cores do not make.
//
//                    sums of the gates         gradients
//   sm_80 and later  TF32 tensor cores         TF32 tensor cores
//   sm_75            f16 tensor cores for f16  multiply-adds
//   sm_70            multiply-adds             multiply-adds
//
// double takes multiply-adds everywhere: it serves gradient checks. The gradients of f16 do not
// become f16 factors on sm_75: those of a loss that is a mean over volumes are beneath its range.
#pragma once

#include "../device/mma.cuh"
#include "access.cuh"

namespace egcnn::cuda {
namespace {

enum class Products { tf32, f16, plain };

// For use in device code alone, as kArchitecture is.
template <class T>
constexpr Products kGradientProducts =
    kArchitecture >= 80 && !std::is_same_v<T, double> ? Products::tf32 : Products::plain;
template <class T>
constexpr Products kSumProducts =
    kArchitecture == 75 && std::is_same_v<T, __half> ? Products::f16 : kGradientProducts<T>;

// Values that are read or written in one access.
template <class Acc, int n>
struct alignas(n * sizeof(Acc) < 16 ? n * sizeof(Acc) : 16) Packet {
  Acc x[n];
};

constexpr int kSteps = 4;  // of eight, over a chunk

// --- Tensor cores ---
//
// What the lanes of a warp hold (access.cuh) already has the layout of mma's operand a
// and of its result: row r of the two tiles of 16 voxels are voxels of lane 4 r + q, and two
// columns of a, or of d, are two channels of that lane: in TF32 q and q + 4 of a, in f16 and of d 2
// q and 2 q + 1. The weights in operand b follow the resulting order of the channels.

// sums += x times weights.
template <bool split_x, bool split_weights>
__device__ __forceinline__ void multiply_tf32(const LaneArray<float>& x, const float* fragments,
                                              LaneArray<float>& sums) {
  const auto* b = reinterpret_cast<const Packet<float, 4>*>(fragments) + lane_index();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const Packet<float, 4> two = b[(s * kSteps + u) / 2 * 32];
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

// The same of f16. Where fragments of TF32 hold a pair of weights, the first word holds the pair in
// f16, and the second the pair of what f16 leaves of either.
__device__ __forceinline__ void multiply_f16(const LaneValues<__half>& x, const float* fragments,
                                             LaneArray<float>& sums) {
  const auto* b = reinterpret_cast<const uint4*>(fragments) + lane_index();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const uint4 two = b[(s * kSteps + u) / 2 * 32];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; v += 2) {
        // The two channels of a voxel, from the two voxels of a channel.
        const uint32_t first = x.rows[2 * s].words[v / 2], second = x.rows[2 * s + 1].words[v / 2];
        const uint32_t a[2] = {__byte_perm(first, second, 0x5410),
                               __byte_perm(first, second, 0x7632)};
#pragma unroll
        for (const uint32_t pair : {u % 2 ? two.w : two.y, u % 2 ? two.z : two.x}) {
          ptx::mma_m16n8k8_f16(sums[2 * u][v], sums[2 * u + 1][v], sums[2 * u][v + 1],
                               sums[2 * u + 1][v + 1], a, pair);
        }
      }
    }
  }
}

// One of these words.
__device__ __forceinline__ uint32_t f16_pair(float first, float second, bool rest) {
  const auto bits = [&](float x) {
    const __half high = __float2half_rn(x);
    return uint32_t(__half_as_ushort(rest ? __float2half_rn(x - __half2float(high)) : high));
  };
  return bits(first) | bits(second) << 16;
}

// --- Multiply-adds ---

// sums += x times weights, where a row of 32 weights belongs to each channel of x. The four lanes
// that share voxels pass each other their channels: 128 shuffles for 1,024 multiply-adds a lane.
template <class Acc>
__device__ __forceinline__ void multiply_plain(const LaneArray<Acc>& x, const Acc* weights,
                                               LaneArray<Acc>& sums) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll 1  // keeps registers free for more warps
    for (int q = 0; q < 4; ++q) {
      Acc values[kLaneVoxels];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) values[v] = __shfl_sync(kAllLanes, x[c][v], q, 4);
      const auto* row = reinterpret_cast<const Packet<Acc, 4>*>(
          weights + (q * kLaneChannels + c) * kChunk + lane_channel());
#pragma unroll
      for (int to = 0; to < kLaneChannels; ++to) {
#pragma unroll
        for (int v = 0; v < kLaneVoxels; ++v) sums[to][v] += row[to / 4].x[to % 4] * values[v];
      }
    }
  }
}

// --- Either ---

template <bool split_x, bool split_weights, class Acc>
__device__ __forceinline__ void multiply(const LaneArray<Acc>& x, const Acc* weights,
                                         LaneArray<Acc>& sums) {
  if constexpr (kGradientProducts<Acc> == Products::tf32) {
    multiply_tf32<split_x, split_weights>(x, weights, sums);
  } else {
    multiply_plain(x, weights, sums);
  }
}

}  // namespace
}  // namespace egcnn::cuda
