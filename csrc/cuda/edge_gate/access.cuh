// How the edge gate's kernels read and write volumes: a warp processes a tile of 32 voxels, in
// chunks of 32 channels. Lane 4 r + q holds voxels 4 r to 4 r + 3 of channels 8 q to 8 q + 7. So
// four adjacent lanes share the same voxels, and both memory formats are read 16 (or 8) bytes at a
// time.
#pragma once

#include <cstring>
#include <initializer_list>

#include "../device/launch.cuh"
#include "../device/warp.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kTile = 32;         // voxels of a tile
constexpr int kChunk = 32;        // channels of a chunk
constexpr int kLaneVoxels = 4;    // of a tile
constexpr int kLaneChannels = 8;  // of a chunk

__device__ __forceinline__ int lane_channel() { return lane_index() % 4 * kLaneChannels; }
__device__ __forceinline__ int lane_voxel() { return lane_index() / 4 * kLaneVoxels; }

// An accumulator for each channel and voxel of a lane.
template <class Acc>
using LaneArray = Acc[kLaneChannels][kLaneVoxels];

// Four values as in memory: those of 16 bits in pairs, one register each.
template <class T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
  using Word = std::conditional_t<sizeof(T) == 2, uint32_t, T>;
  static constexpr int kPack = sizeof(Word) / sizeof(T);
  Word words[4 / kPack];

  // By shifts: the compiler does not optimize access to halves of a word in memory.
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

// The values of a lane, one row per channel.
template <class T>
struct LaneValues {
  Four<T> rows[kLaneChannels];

  __device__ __forceinline__ Accumulate<T> operator()(int c, int v) const {
    return widen(rows[c][v]);
  }
};

// The position of a lane's voxels.
struct LaneVoxels {
  uint32_t batch, tile;  // of the batch's volume
  int count;             // at most kLaneVoxels; 0 or less past the end of the volume

  __device__ __forceinline__ int64_t first() const { return int64_t(tile) * kTile + lane_voxel(); }
};

// --- Layouts ---

// The elements of one access: adjacent voxels of a channel, adjacent channels of a voxel, or
// (`any`) whatever each tensor allows, looked up at every access.
enum class Layout { contiguous, channels_last, any };

template <Layout kLayout>
using LayoutConstant = std::integral_constant<Layout, kLayout>;

// `any` stands for single elements here: the volume holds no whole vectors.
template <class T>
Layout layout_of(const Tensor& t, int64_t channels, int64_t voxels) {
  const auto aligned = [&](size_t bytes) {
    return reinterpret_cast<uintptr_t>(t.data) % (bytes < 16 ? bytes : 16) == 0;
  };
  if (t.voxel_stride == 1 && voxels % kLaneVoxels == 0 && aligned(kLaneVoxels * sizeof(T))) {
    return Layout::contiguous;
  }
  if (t.channel_stride == 1 && channels % kLaneChannels == 0 && aligned(16)) {
    return Layout::channels_last;
  }
  return Layout::any;
}

// Calls body with the layout that all tensors of a call have in common, as a LayoutConstant.
// float64 is for gradient checks, so one kernel for all layouts suffices.
template <class T, class Body>
void with_common_layout(std::initializer_list<Layout> layouts, Body&& body) {
  if constexpr (!std::is_same_v<T, double>) {
    const auto all = [&](Layout layout) {
      for (const Layout each : layouts) {
        if (each != layout) return false;
      }
      return true;
    };
    if (all(Layout::contiguous)) return body(LayoutConstant<Layout::contiguous>());
    if (all(Layout::channels_last)) return body(LayoutConstant<Layout::channels_last>());
  }
  body(LayoutConstant<Layout::any>());
}

template <class T, Layout kLayout>
struct View {
  T* data;
  int64_t batch_stride, channel_step, voxel_step;
  Layout own;  // what `any` looks up

  View(const Tensor& t, int64_t channels, int64_t voxels)
      : data(static_cast<T*>(t.data)), batch_stride(t.batch_stride), channel_step(t.channel_stride),
        voxel_step(t.voxel_stride), own(layout_of<T>(t, channels, voxels)) {}

  __device__ __forceinline__ int64_t channel_stride() const {
    return kLayout == Layout::channels_last ? 1 : channel_step;
  }
  __device__ __forceinline__ int64_t voxel_stride() const {
    return kLayout == Layout::contiguous ? 1 : voxel_step;
  }
  __device__ __forceinline__ bool is(Layout layout) const {
    return (kLayout == Layout::any ? own : kLayout) == layout;
  }
};

// A lane's part of a chunk: where it starts, and how much of it is inside the volume.
template <class T>
struct LanePart {
  T* data;
  int channels, voxels;

  template <Layout kLayout, class Place>
  __device__ __forceinline__ LanePart(const View<T, kLayout>& view, int64_t view_channels,
                                      const Place& place, int64_t chunk) {
    const int64_t channel = chunk * kChunk + lane_channel();
    data = view.data + place.batch * view.batch_stride + channel * view.channel_stride() +
           place.first() * view.voxel_stride();
    channels = int(min(view_channels - channel, int64_t(kLaneChannels)));
    voxels = place.count;
    if (voxels <= 0) channels = 0;
    if (channels <= 0) voxels = 0;
  }
};

// --- Reading and writing ---

// Adjacent elements in accesses of up to 16 bytes.
template <class T, int n>
using Access = std::conditional_t<n * sizeof(T) >= 16, uint4, uint2>;

template <class T, int n>
__device__ __forceinline__ void read(const T* from, T (&to)[n]) {
  Access<T, n> accesses[n * sizeof(T) / sizeof(Access<T, n>)];
#pragma unroll
  for (auto& access : accesses) {
    access = __ldg(reinterpret_cast<const Access<T, n>*>(from) + (&access - accesses));
  }
  std::memcpy(to, accesses, sizeof to);
}

template <class T, int n>
__device__ __forceinline__ void write(T* to, const T (&from)[n]) {
  Access<T, n> accesses[n * sizeof(T) / sizeof(Access<T, n>)];
  std::memcpy(accesses, from, sizeof from);
#pragma unroll
  for (auto& access : accesses) {
    __stcs(reinterpret_cast<Access<T, n>*>(to) + (&access - accesses), access);
  }
}

// Reads a lane's part of a chunk, 0 where the volume has no such voxel or channel, without waiting
// for it: of channels_last each voxel's channels are left in two rows, for arrange().
template <class T, Layout kLayout, class Place>
__device__ __forceinline__ void fetch(const View<T, kLayout>& view, int64_t channels,
                                      const Place& place, int64_t chunk, LaneValues<T>& x) {
  const LanePart<T> part(view, channels, place, chunk);
  const T* from = part.data;
  using Word = typename Four<T>::Word;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (Word& word : x.rows[c].words) word = 0;
  }
  if (view.is(Layout::contiguous)) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, from += view.channel_stride()) {
      if (c < part.channels) read(reinterpret_cast<const Word*>(from), x.rows[c].words);
    }
  } else if (view.is(Layout::channels_last)) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v, from += view.voxel_stride()) {
      Word column[kLaneChannels / Four<T>::kPack] = {};
      if (v < part.voxels) read(reinterpret_cast<const Word*>(from), column);
      std::memcpy(&x.rows[2 * v], column, sizeof column);
    }
  } else {
    // Issue all loads before the first use.
    T values[kLaneChannels][kLaneVoxels];
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, from += view.channel_stride()) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
        values[c][v] = narrow<T>(0);  // with = {} above, the backward pass spills
        if (c < part.channels && v < part.voxels) values[c][v] = from[v * view.voxel_stride()];
      }
    }
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) x.rows[c].set(values[c]);
  }
}

// Makes rows of what fetch() read.
template <class T, Layout kLayout>
__device__ __forceinline__ void arrange(const View<T, kLayout>& view, LaneValues<T>& x) {
  if (!view.is(Layout::channels_last)) return;
  const LaneValues<T> columns = x;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    const auto voxel = [&](int v) { return columns.rows[2 * v + c / 4][c % 4]; };
    x.rows[c].set({voxel(0), voxel(1), voxel(2), voxel(3)});
  }
}

template <class T, Layout kLayout, class Place>
__device__ __forceinline__ void load(const View<T, kLayout>& view, int64_t channels,
                                     const Place& place, int64_t chunk, LaneValues<T>& x) {
  fetch(view, channels, place, chunk, x);
  arrange(view, x);
}

// Writes a lane's part of a chunk.
template <class T, Layout kLayout, class Place>
__device__ __forceinline__ void store(const View<T, kLayout>& view, int64_t channels,
                                      const Place& place, int64_t chunk,
                                      const LaneArray<Accumulate<T>>& x) {
  const LanePart<T> part(view, channels, place, chunk);
  T* to = part.data;
  if (view.is(Layout::contiguous)) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, to += view.channel_stride()) {
      T row[kLaneVoxels];
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) row[v] = narrow<T>(x[c][v]);
      if (c < part.channels) write(to, row);
    }
  } else if (view.is(Layout::channels_last)) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v, to += view.voxel_stride()) {
      T column[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) column[c] = narrow<T>(x[c][v]);
      if (v < part.voxels) write(to, column);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c, to += view.channel_stride()) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
        if (c < part.channels && v < part.voxels) to[v * view.voxel_stride()] = narrow<T>(x[c][v]);
      }
    }
  }
}

}  // namespace
}  // namespace egcnn::cuda
