// How the edge gate's kernels hold a volume: a warp takes a tile of 32 voxels, and of its channels a
// chunk of 32 at a time. Lane 4 r + q has the voxels 4 r to 4 r + 3 of the channels 8 q to 8 q + 7.
// So four neighbours share a voxel, and both memory formats are read 16 (or 8) bytes at a time.
#pragma once

#include <cstring>

#include "launch.cuh"

namespace egcnn::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

namespace {

constexpr int kTile = 32;          // voxels of a tile
constexpr int kChunk = 32;         // channels of a chunk
constexpr int kLaneVoxels = 4;     // of a tile
constexpr int kLaneChannels = 8;   // of a chunk
constexpr int kWarps = 4;          // to a block
constexpr int kThreads = 32 * kWarps;

// Values that a lane has of a chunk: one of each of its voxels for each of its channels.
template <class T>
using Values = T[kLaneChannels][kLaneVoxels];

__device__ __forceinline__ int64_t warp_index() {
  return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
}
__device__ __forceinline__ int64_t warp_count() { return int64_t(gridDim.x) * blockDim.x / 32; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ int lane_channel() { return lane_index() % 4 * kLaneChannels; }
__device__ __forceinline__ int lane_voxel() { return lane_index() / 4 * kLaneVoxels; }

// Which elements one access may take.
enum class Vector { none, voxels, channels };

template <class T>
struct View {
  T* data;
  int64_t batch_stride, channel_stride, voxel_stride, channels;
  Vector vector;

  View(const Tensor& t, int64_t channels, int64_t voxels)
      : data(static_cast<T*>(t.data)),
        batch_stride(t.batch_stride),
        channel_stride(t.channel_stride),
        voxel_stride(t.voxel_stride),
        channels(channels),
        vector(Vector::none) {
    const auto aligned = [&](size_t bytes) {
      return reinterpret_cast<uintptr_t>(t.data) % (bytes < 16 ? bytes : 16) == 0;
    };
    if (voxel_stride == 1 && voxels % kLaneVoxels == 0 && aligned(kLaneVoxels * sizeof(T))) {
      vector = Vector::voxels;
    } else if (channel_stride == 1 && channels % kLaneChannels == 0 && aligned(16)) {
      vector = Vector::channels;
    }
  }

  __host__ __device__ int64_t chunks() const { return divide_up<int64_t>(channels, kChunk); }
};

// The voxels of a lane in a tile.
struct Place {
  int64_t batch, voxel;
  int voxels;  // at most kLaneVoxels, where the volume ends 0 or less

  __device__ Place(int64_t tile, int64_t volume) {
    const int64_t tiles = divide_up<int64_t>(volume, kTile);
    batch = tile / tiles;
    voxel = tile % tiles * kTile + lane_voxel();
    voxels = int(min(volume - voxel, int64_t(kLaneVoxels)));
  }
};

// n adjacent elements, in words of up to 16 bytes.
template <class T, int n>
struct Words {
  using Word = std::conditional_t<n * sizeof(T) >= 16, uint4, uint2>;
  static constexpr int count = n * sizeof(T) / sizeof(Word);

  static __device__ __forceinline__ void load(const T* from, T (&to)[n]) {
    Word words[count];
#pragma unroll
    for (int i = 0; i < count; ++i) words[i] = __ldg(reinterpret_cast<const Word*>(from) + i);
    std::memcpy(to, words, sizeof to);
  }

  static __device__ __forceinline__ void store(T* to, const T (&from)[n]) {
    Word words[count];
    std::memcpy(words, from, sizeof from);
#pragma unroll
    for (int i = 0; i < count; ++i) __stcs(reinterpret_cast<Word*>(to) + i, words[i]);
  }
};

// The part of a chunk that is a lane's: where it starts, and how much of it the volume has.
template <class T>
struct Part {
  T* data;
  int channels, voxels;

  __device__ __forceinline__ Part(const View<T>& view, const Place& place, int64_t chunk) {
    const int64_t channel = chunk * kChunk + lane_channel();
    data = view.data + place.batch * view.batch_stride + channel * view.channel_stride +
           place.voxel * view.voxel_stride;
    channels = int(min(view.channels - channel, int64_t(kLaneChannels)));
    voxels = place.voxels;
    if (voxels <= 0) channels = 0;
    if (channels <= 0) voxels = 0;
  }
};

// Zero where the volume has no such voxel or channel.
template <class T>
__device__ __forceinline__ void load(const View<T>& view, const Place& place, int64_t chunk,
                                     Values<T>& x) {
  const Part<T> part(view, place, chunk);
  const T* from = part.data;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) x[c][v] = narrow<T>(0);
  }
  if (view.vector == Vector::voxels) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, from += view.channel_stride) {
      if (c < part.channels) Words<T, kLaneVoxels>::load(from, x[c]);
    }
  } else if (view.vector == Vector::channels) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v, from += view.voxel_stride) {
      if (v < part.voxels) {
        T column[kLaneChannels];
        Words<T, kLaneChannels>::load(from, column);
#pragma unroll
        for (int c = 0; c < kLaneChannels; ++c) x[c][v] = column[c];
      }
    }
  } else {
    // A loop that is not unrolled keeps the rare case short. Registers have no index, so the rows
    // move up by one each time.
#pragma unroll 1
    for (int c = 0; c < kLaneChannels; ++c, from += view.channel_stride) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
#pragma unroll
        for (int i = 1; i < kLaneChannels; ++i) x[i - 1][v] = x[i][v];
        const bool there = c < part.channels && v < part.voxels;
        x[kLaneChannels - 1][v] = there ? from[v * view.voxel_stride] : narrow<T>(0);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void store(const View<T>& view, const Place& place, int64_t chunk,
                                      Values<Accumulate<T>>& x) {
  const Part<T> part(view, place, chunk);
  T* to = part.data;
  if (view.vector == Vector::voxels) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, to += view.channel_stride) {
      T row[kLaneVoxels];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) row[v] = narrow<T>(x[c][v]);
      if (c < part.channels) Words<T, kLaneVoxels>::store(to, row);
    }
  } else if (view.vector == Vector::channels) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v, to += view.voxel_stride) {
      T column[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) column[c] = narrow<T>(x[c][v]);
      if (v < part.voxels) Words<T, kLaneChannels>::store(to, column);
    }
  } else {
#pragma unroll 1
    for (int c = 0; c < part.channels; ++c, to += view.channel_stride) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
        if (v < part.voxels) to[v * view.voxel_stride] = narrow<T>(x[0][v]);
#pragma unroll
        for (int i = 1; i < kLaneChannels; ++i) x[i - 1][v] = x[i][v];
      }
    }
  }
}

// The sum over a tile's voxels: lane 4 r + q gets that of channel 8 q + r.
template <class Acc>
__device__ __forceinline__ Acc sum_over_voxels(Acc (&x)[kLaneChannels]) {
  // Lanes 16, 8 and 4 apart each keep half of the channels and hand over the other half.
#pragma unroll
  for (int half = kLaneChannels / 2; half > 0; half /= 2) {
    const bool upper = lane_index() & 4 * half;
#pragma unroll
    for (int c = 0; c < half; ++c) {
      const Acc kept = upper ? x[half + c] : x[c], given = upper ? x[c] : x[half + c];
      x[c] = kept + __shfl_xor_sync(kAllLanes, given, 4 * half);
    }
  }
  return x[0];
}

// What the forward and the backward kernels read.
template <class T>
struct Gate {
  using Acc = Accumulate<T>;
  View<T> e, m;
  const Acc *weight_e, *weight_m, *bias;
  int64_t gates, voxels, tiles;
  bool relu;

  template <class Params>
  explicit Gate(const Params& p)
      : e(p.e, p.size.channels, p.size.voxels()),
        m(p.m, p.main_channels, p.size.voxels()),
        weight_e(static_cast<const Acc*>(p.weight_e)),
        weight_m(static_cast<const Acc*>(p.weight_m)),
        bias(static_cast<const Acc*>(p.bias)),
        gates(p.gates),
        voxels(p.size.voxels()),
        tiles(p.size.batch * divide_up<int64_t>(voxels, kTile)),
        relu(p.relu) {}
};

}  // namespace
}  // namespace egcnn::cuda
