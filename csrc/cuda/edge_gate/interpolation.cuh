// Trilinear interpolation from a coarse volume to a fine one, as torch's F.interpolate with
// align_corners=False has it, for a lane's voxels at a time. Either volume may be the larger one.
#pragma once

#include "access.cuh"

namespace egcnn::cuda {
namespace {

// A warp's tile is 2 rows of 16 voxels, so that a lane's voxels are neighbours in one row.
constexpr int kTileWidth = 16;
constexpr int kTileRows = kTile / kTileWidth;

inline int64_t count_tiles(const Size& size) {
  return size.batch * size.depth * divide_up<int64_t>(size.height, kTileRows) *
         divide_up<int64_t>(size.width, kTileWidth);
}

// The position of a lane's voxels; `count` is 0 or less outside of the volume.
struct RowVoxels {
  int batch, z, y, x, count;
  int64_t position;

  __device__ __forceinline__ int64_t first() const { return position; }
};

// --- Axes ---

// A fine position is (1 - weight) of the coarse one `index` and weight of the one after it. At the
// end of the axis, where there is none, the weight is 0.
template <class Acc>
struct alignas(2 * sizeof(Acc)) Sample {
  int index;
  Acc weight;
};

template <class Acc>
struct Axis {
  int64_t coarse, fine;
  const Sample<Acc>* samples;  // of each fine position
  const int* firsts;           // of each coarse position and the end: the first fine one whose
                               // index is no less

  __device__ __forceinline__ int after(int index) const { return min(index + 1, int(coarse) - 1); }
  // The fine positions that depend on a coarse one: [begin, end).
  __device__ __forceinline__ int begin(int64_t index) const {
    return firsts[max(index - 1, int64_t(0))];
  }
  __device__ __forceinline__ int end(int64_t index) const { return firsts[index + 1]; }

  // Exact up to one rounding: positions are whole multiples of 1 / (2 fine).
  __device__ Sample<Acc> sample(int64_t x) const {
    const int64_t at = max((2 * x + 1) * coarse - fine, int64_t(0));
    const int64_t index = min(at / (2 * fine), coarse - 1);
    const bool last = index == coarse - 1;
    return {int(index), last ? Acc(0) : Acc(at - index * 2 * fine) / Acc(2 * fine)};
  }
  __device__ int first(int64_t index) const {
    if (index <= 0) return 0;
    if (index >= coarse) return int(fine);
    return int(min(divide_up(fine * (2 * index + 1) - coarse, 2 * coarse), fine));
  }
};

template <class Acc>
struct Grid {
  Axis<Acc> axes[3];  // z, y, x

  __host__ __device__ const Axis<Acc>& z() const { return axes[0]; }
  __host__ __device__ const Axis<Acc>& y() const { return axes[1]; }
  __host__ __device__ const Axis<Acc>& x() const { return axes[2]; }
  __host__ __device__ int64_t coarse_voxels() const {
    return axes[0].coarse * axes[1].coarse * axes[2].coarse;
  }
};

template <class Acc>
__global__ void __launch_bounds__(256) axes_kernel(Grid<Acc> grid) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
#pragma unroll
  for (const Axis<Acc>& axis : grid.axes) {
    for (int64_t i = first; i < axis.fine; i += step) {
      const_cast<Sample<Acc>*>(axis.samples)[i] = axis.sample(i);
    }
    for (int64_t i = first; i <= axis.coarse; i += step) {
      const_cast<int*>(axis.firsts)[i] = axis.first(i);
    }
  }
}

// --- The coarse volume ---

// A copy with the channels last and padded to whole vectors: a lane reads its channels of a voxel
// at once, whatever the format of the volume is.
template <class T>
struct Coarse {
  const T* data;
  int64_t channels;  // padded
  Grid<Accumulate<T>> grid;
  bool twice;  // the fine volume is twice as wide

  // The copy and the tables in memory of bytes() from `memory` on.
  template <class Params>
  Coarse(const Params& p, void* memory)
      : channels(round_up(p.coarse.channels, kLaneChannels)),
        twice(p.size.width == 2 * p.coarse.width) {
    auto* at = static_cast<char*>(memory);
    data = reinterpret_cast<const T*>(at);
    at += round_up(p.coarse.batch * p.coarse.voxels() * channels * sizeof(T), 16);
    const int64_t coarse[] = {p.coarse.depth, p.coarse.height, p.coarse.width};
    const int64_t fine[] = {p.size.depth, p.size.height, p.size.width};
    for (int i = 0; i < 3; ++i) {
      auto& axis = grid.axes[i];
      axis.coarse = coarse[i];
      axis.fine = fine[i];
      axis.samples = reinterpret_cast<const Sample<Accumulate<T>>*>(at);
      at += fine[i] * sizeof(Sample<Accumulate<T>>);
    }
    for (auto& axis : grid.axes) {
      axis.firsts = reinterpret_cast<const int*>(at);
      at += (axis.coarse + 1) * sizeof(int);
    }
    bytes_ = at - static_cast<char*>(memory);
  }

  size_t bytes() const { return round_up(bytes_, 16); }

 private:
  int64_t bytes_;
};

// 32 voxels and 32 channels a block.
template <class T>
__global__ void __launch_bounds__(256)
    copy_coarse_kernel(Tensor from, Coarse<T> to, int64_t count) {
  __shared__ T tile[32][33];
  const int64_t voxels = to.grid.coarse_voxels(), groups = divide_up<int64_t>(voxels, 32);
  const int64_t chunks = divide_up<int64_t>(to.channels, kChunk);
  const int64_t channel = blockIdx.x % chunks * kChunk;
  const int64_t voxel = blockIdx.x / chunks % groups * 32, batch = blockIdx.x / chunks / groups;
  const int lane = lane_index(), warp = threadIdx.x / kWarpSize;
  const bool along_voxels = from.voxel_stride == 1;
#pragma unroll
  for (int i = warp; i < 32; i += 8) {
    const int v = along_voxels ? lane : i, c = along_voxels ? i : lane;
    const bool inside = voxel + v < voxels && channel + c < count;
    T value = narrow<T>(0);
    if (inside) {
      value = static_cast<const T*>(from.data)[from.offset(batch, channel + c, voxel + v)];
    }
    tile[v][c] = value;
  }
  __syncthreads();
  if (channel + lane >= to.channels) return;
#pragma unroll
  for (int v = warp; v < 32 && voxel + v < voxels; v += 8) {
    const_cast<T*>(to.data)[(batch * voxels + voxel + v) * to.channels + channel + lane] =
        tile[v][lane];
  }
}

template <class T, class Params>
void prepare(const Params& p, const Coarse<T>& coarse) {
  const Resources& resources = p.resources;
  const char* name = "edge_gate_upsampled: preparing e";
  if (p.coarse.voxels() * coarse.channels > 0xFFFFFFFF) {
    throw std::runtime_error(
        "egcnn: e is too large for edge_gate_upsampled: expected fewer than "
        "2^32 elements a sample, with the channels padded to a multiple of 8");
  }
  if (count_tiles(p.size) > 0x7FFFFFFF) {
    throw std::runtime_error(
        "egcnn: m is too large for edge_gate_upsampled: expected fewer than "
        "2^31 tiles of 2x16 voxels of a plane");
  }
  launch(name, resources, 8, 256, 0, axes_kernel<Accumulate<T>>, coarse.grid);
  const int64_t groups = divide_up<int64_t>(p.coarse.voxels(), 32);
  const int64_t chunks = divide_up<int64_t>(coarse.channels, kChunk);
  launch(name, resources, p.coarse.batch * groups * chunks, 256, 0, copy_coarse_kernel<T>, p.e,
         coarse, p.coarse.channels);
}

// --- Interpolation ---

// The four coarse rows around a fine one. A sample has fewer than 2^32 elements (prepare).
template <class T>
struct CoarseRows {
  using Acc = Accumulate<T>;
  const T* data;
  uint32_t rows[4], channels;
  Acc weights[4];

  __device__ __forceinline__ CoarseRows(const Coarse<T>& from, const RowVoxels& place, int channel)
      : channels(uint32_t(from.channels)) {
    const auto& grid = from.grid;
    data = from.data + place.batch * grid.coarse_voxels() * from.channels + channel;
    const Sample<Acc> z = grid.z().samples[place.z], y = grid.y().samples[place.y];
    const uint32_t planes[] = {uint32_t(z.index), uint32_t(grid.z().after(z.index))};
    const uint32_t lines[] = {uint32_t(y.index), uint32_t(grid.y().after(y.index))};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows[i] = (planes[i / 2] * uint32_t(grid.y().coarse) + lines[i % 2]) *
                uint32_t(grid.x().coarse) * channels;
      weights[i] = (i / 2 ? z.weight : 1 - z.weight) * (i % 2 ? y.weight : 1 - y.weight);
    }
  }

  // The lane's channels between the rows, at a coarse x.
  __device__ __forceinline__ void column(int x, Acc (&sums)[kLaneChannels]) const {
    using Word = typename Four<T>::Word;
    Four<T> values[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Word words[kLaneChannels / Four<T>::kPack];
      read(reinterpret_cast<const Word*>(data + (rows[i] + uint32_t(x) * channels)), words);
      std::memcpy(values[i], words, sizeof words);
    }
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      sums[c] = weights[0] * widen(values[0][c / 4][c % 4]);
#pragma unroll
      for (int i = 1; i < 4; ++i) sums[c] += weights[i] * widen(values[i][c / 4][c % 4]);
    }
  }
};

// The lane's voxels of a chunk, all 0 if the volume has none of them or none of the channels. Past
// the end of a row that it has a part of, they are between the coarse voxels there.
template <class T>
__device__ __forceinline__ void interpolate(const Coarse<T>& from, const RowVoxels& place,
                                            int64_t chunk, LaneValues<Accumulate<T>>& x) {
  using Acc = Accumulate<T>;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) x.rows[c].words[v] = 0;
  }
  const int channel = int(chunk) * kChunk + lane_channel();
  if (place.count <= 0 || channel >= int(from.channels)) return;
  const CoarseRows<T> rows(from, place, channel);
  const Axis<Acc>& axis = from.grid.x();
  Acc column[kLaneChannels];
  const auto add = [&](int v, Acc weight) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) x.rows[c].words[v] += weight * column[c];
  };
  if (from.twice) {  // the four voxels share four columns, and have the same weights everywhere
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows.column(min(max(place.x / 2 - 1 + i, 0), int(axis.coarse) - 1), column);
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) {
        const int left = (v + 1) / 2;
        if (i == left) add(v, v % 2 ? Acc(0.75) : Acc(0.25));
        if (i == left + 1) add(v, v % 2 ? Acc(0.25) : Acc(0.75));
      }
    }
  } else {
#pragma unroll 1  // keeps registers free
    for (int v = 0; v < place.count; ++v) {
      const Sample<Acc> sample = axis.samples[place.x + v];
      Acc after[kLaneChannels];
      rows.column(sample.index, column);
      rows.column(axis.after(sample.index), after);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        const Acc value = (1 - sample.weight) * column[c] + sample.weight * after[c];
#pragma unroll
        for (int u = 0; u < kLaneVoxels; ++u) {
          if (u == v) x.rows[c].words[u] = value;
        }
      }
    }
  }
}

}  // namespace
}  // namespace egcnn::cuda
