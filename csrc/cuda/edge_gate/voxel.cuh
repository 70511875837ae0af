// Code that forward and backward of the edge gate with one attention value per voxel share.
#pragma once

#include "tile.cuh"

namespace egcnn::cuda {
namespace {

// Blocks per multiprocessor that registers have to allow.
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

// sums += weights · x, over a lane's channels of a chunk.
template <class T, class Acc>
__device__ __forceinline__ void add_dot(const Acc* weights, int64_t channels, int64_t chunk,
                                        const LaneValues<T>& x, Acc (&sums)[kLaneVoxels]) {
  Acc w[kLaneChannels];
  load_weights(weights, channels, chunk, w);
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[v] += w[c] * x(c, v);
  }
}

// sums += x · y, over a lane's channels of a chunk.
template <class T, class Acc>
__device__ __forceinline__ void add_dot(const LaneValues<T>& x, const LaneValues<T>& y,
                                        Acc (&sums)[kLaneVoxels]) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[v] += x(c, v) * y(c, v);
  }
}

}  // namespace
}  // namespace egcnn::cuda
