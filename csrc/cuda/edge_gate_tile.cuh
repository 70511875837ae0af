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

// Numbers that a lane has of a chunk: one of each of its voxels for each of its channels.
template <class Acc>
using Sums = Acc[kLaneChannels][kLaneVoxels];

// Four values as they lie in memory: those of 16 bits in pairs, a register each.
template <class T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
  using Word = std::conditional_t<sizeof(T) == 2, uint32_t, T>;
  static constexpr int kPack = sizeof(Word) / sizeof(T);
  Word words[4 / kPack];

  // By shifts, which the compiler sees through, where it does not see through halves of memory.
  __device__ __forceinline__ T operator[](int i) const {
    if constexpr (kPack == 1) {
      return words[i];
    } else {
      const uint16_t bits = uint16_t(words[i / 2] >> i % 2 * 16);
      T value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
  }
  __device__ __forceinline__ void set(const T (&values)[4]) {
    std::memcpy(words, values, sizeof values);
  }
};

// The same, of a volume: a row for each channel.
template <class T>
struct Values {
  Four<T> rows[kLaneChannels];

  __device__ __forceinline__ Accumulate<T> operator()(int c, int v) const {
    return widen(rows[c][v]);
  }
};

// Of all blocks' warps.
__device__ __forceinline__ uint32_t warp_index() { return blockIdx.x * kWarps + threadIdx.x / 32; }
__device__ __forceinline__ uint32_t warp_count() { return gridDim.x * kWarps; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ int lane_channel() { return lane_index() % 4 * kLaneChannels; }
__device__ __forceinline__ int lane_voxel() { return lane_index() / 4 * kLaneVoxels; }

// Which elements one access may take.
enum class Vector { none, voxels, channels };

template <class T>
struct View {
  T* data;
  int64_t batch_stride, channel_stride, voxel_stride;
  Vector vector;

  View(const Tensor& t, int64_t channels, int64_t voxels)
      : data(static_cast<T*>(t.data)),
        batch_stride(t.batch_stride),
        channel_stride(t.channel_stride),
        voxel_stride(t.voxel_stride),
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
};

// What the forward and the backward kernels read. There are fewer than 2^31 tiles: not even a volume
// that fills a GPU has more.
template <class T>
struct Gate {
  using Acc = Accumulate<T>;
  View<T> e, m;
  const Acc *weight_e, *weight_m, *bias;
  int64_t e_channels, m_channels, gates, voxels;
  uint32_t volume_tiles, tiles;
  bool relu;

  template <class Params>
  explicit Gate(const Params& p)
      : e(p.e, p.size.channels, p.size.voxels()),
        m(p.m, p.main_channels, p.size.voxels()),
        weight_e(static_cast<const Acc*>(p.weight_e)),
        weight_m(static_cast<const Acc*>(p.weight_m)),
        bias(static_cast<const Acc*>(p.bias)),
        e_channels(p.size.channels),
        m_channels(p.main_channels),
        gates(p.gates),
        voxels(p.size.voxels()),
        volume_tiles(divide_up<int64_t>(voxels, kTile)),
        tiles(p.size.batch * int64_t(volume_tiles)),
        relu(p.relu) {}

  __host__ __device__ int64_t e_chunks() const { return divide_up<int64_t>(e_channels, kChunk); }
  __host__ __device__ int64_t m_chunks() const { return divide_up<int64_t>(m_channels, kChunk); }
};

// The voxels of a lane in a tile.
struct Place {
  int64_t batch, voxel;
  int voxels;  // at most kLaneVoxels, where the volume ends 0 or less

  template <class T>
  __device__ Place(const Gate<T>& gate, uint32_t tile) {
    batch = tile / gate.volume_tiles;
    voxel = int64_t(tile % gate.volume_tiles) * kTile + lane_voxel();
    voxels = tile < gate.tiles ? int(min(gate.voxels - voxel, int64_t(kLaneVoxels))) : 0;
  }
};

// Adjacent elements in accesses of up to 16 bytes.
template <class T, int n>
using Access = std::conditional_t<n * sizeof(T) >= 16, uint4, uint2>;

template <class T, int n>
__device__ __forceinline__ void read(const T* from, T (&to)[n]) {
  Access<T, n> accesses[sizeof to / sizeof(Access<T, n>)];
#pragma unroll
  for (auto& access : accesses) {
    access = __ldg(reinterpret_cast<const Access<T, n>*>(from) + (&access - accesses));
  }
  std::memcpy(to, accesses, sizeof to);
}

template <class T, int n>
__device__ __forceinline__ void write(T* to, const T (&from)[n]) {
  Access<T, n> accesses[sizeof from / sizeof(Access<T, n>)];
  std::memcpy(accesses, from, sizeof from);
#pragma unroll
  for (auto& access : accesses) {
    __stcs(reinterpret_cast<Access<T, n>*>(to) + (&access - accesses), access);
  }
}

// The part of a chunk that is a lane's: where it starts, and how much of it the volume has.
template <class T>
struct Part {
  T* data;
  int channels, voxels;

  __device__ __forceinline__ Part(const View<T>& view, int64_t view_channels, const Place& place,
                                  int64_t chunk) {
    const int64_t channel = chunk * kChunk + lane_channel();
    data = view.data + place.batch * view.batch_stride + channel * view.channel_stride +
           place.voxel * view.voxel_stride;
    channels = int(min(view_channels - channel, int64_t(kLaneChannels)));
    voxels = place.voxels;
    if (voxels <= 0) channels = 0;
    if (channels <= 0) voxels = 0;
  }
};

// Zero where the volume has no such voxel or channel.
template <class T>
__device__ __forceinline__ void load(const View<T>& view, int64_t channels, const Place& place,
                                     int64_t chunk, Values<T>& x) {
  const Part<T> part(view, channels, place, chunk);
  const T* from = part.data;
  using Word = typename Four<T>::Word;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (Word& word : x.rows[c].words) word = 0;
  }
  if (view.vector == Vector::voxels) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, from += view.channel_stride) {
      if (c < part.channels) read(reinterpret_cast<const Word*>(from), x.rows[c].words);
    }
  } else if (view.vector == Vector::channels) {
    Word columns[kLaneVoxels][kLaneChannels / Four<T>::kPack] = {};
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v, from += view.voxel_stride) {
      if (v < part.voxels) read(reinterpret_cast<const Word*>(from), columns[v]);
    }
    T values[kLaneVoxels][kLaneChannels];
    std::memcpy(values, columns, sizeof values);
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      x.rows[c].set({values[0][c], values[1][c], values[2][c], values[3][c]});
    }
  } else {
    // A loop that is not unrolled keeps the rare case short. Registers have no index, so the rows
    // move up by one each time.
#pragma unroll 1
    for (int c = 0; c < kLaneChannels; ++c, from += view.channel_stride) {
      T row[kLaneVoxels] = {};
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
        if (c < part.channels && v < part.voxels) row[v] = from[v * view.voxel_stride];
      }
#pragma unroll
      for (int i = 1; i < kLaneChannels; ++i) x.rows[i - 1] = x.rows[i];
      x.rows[kLaneChannels - 1].set(row);
    }
  }
}

template <class T>
__device__ __forceinline__ void store(const View<T>& view, int64_t channels, const Place& place,
                                      int64_t chunk, Sums<Accumulate<T>>& x) {
  const Part<T> part(view, channels, place, chunk);
  T* to = part.data;
  if (view.vector == Vector::voxels) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, to += view.channel_stride) {
      T row[kLaneVoxels];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) row[v] = narrow<T>(x[c][v]);
      if (c < part.channels) write(to, row);
    }
  } else if (view.vector == Vector::channels) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v, to += view.voxel_stride) {
      T column[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) column[c] = narrow<T>(x[c][v]);
      if (v < part.voxels) write(to, column);
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

}  // namespace
}  // namespace egcnn::cuda
