// The adjoint of the interpolation: the gradient of the coarse volume. No array of the fine
// volume's size is written, no fine voxel is computed twice, and the order of all sums is fixed.
//
// A block marches along z through a column of fine planes, 16 voxels wide and a few rows high. Each
// lane adds the gradients of its voxels, times their weights, to two coarse planes in shared
// memory. A plane that the march leaves behind is interpolated back in y and x, and goes to the
// column's window: the coarse voxels that its fine ones depend on. Windows overlap by one or two
// voxels at each side, and a second kernel adds them up.
#pragma once

#include <algorithm>

#include "interpolation.cuh"
#include "products.cuh"

namespace egcnn::cuda {
namespace {

// The columns of a launch, and their windows.
template <class Acc>
struct Columns {
  Grid<Acc> grid;
  int rows;  // of a column. It begins with an odd row: rows 2 i - 1 and 2 i of a volume that is
             // twice as high lie between the same coarse ones, and 4 rows depend on 3
  int64_t segment, segments, groups, tiles;                   // in z, y and x
  int64_t chunks;                                             // of channels
  int64_t window_planes, window_rows, window_columns, count;  // count: of columns
  Acc* windows;

  // The device holds so many `resident` blocks at a time.
  Columns(const Grid<Acc>& grid, int rows, int64_t samples, int64_t chunks, int64_t resident)
      : grid(grid), rows(rows), groups(divide_up<int64_t>(grid.y().fine + 1, rows)),
        tiles(divide_up<int64_t>(grid.x().fine, kTileWidth)), chunks(chunks), windows(nullptr) {
    const int64_t depth = grid.z().fine;
    segment = best_segment(depth, samples * groups * tiles * chunks, resident);
    segments = divide_up(depth, segment);
    const auto span = [](const Axis<Acc>& axis, int64_t n) {
      return std::min(axis.coarse, divide_up((n - 1) * axis.coarse, axis.fine) + 2);
    };
    window_planes = span(grid.z(), segment);
    window_rows = span(grid.y(), rows);
    window_columns = span(grid.x(), kTileWidth);
    count = samples * segments * groups * tiles;
  }

  // The number of planes with which the last block is done first. A segment costs about a plane
  // more than it has.
  static int64_t best_segment(int64_t depth, int64_t columns, int64_t resident) {
    constexpr int64_t kLeast = 8;
    int64_t best = depth, least = divide_up(columns, resident) * (depth + 1);
    for (int64_t n = 2; n <= divide_up(depth, kLeast); ++n) {
      const int64_t planes = divide_up(depth, n), segments = divide_up(depth, planes);
      const int64_t time = divide_up(columns * segments, resident) * (planes + 1);
      if (time < least) {
        best = planes;
        least = time;
      }
    }
    return best;
  }

  __host__ __device__ int64_t plane_size() const { return window_rows * window_columns * kChunk; }
  __host__ __device__ int64_t window_size() const { return window_planes * plane_size(); }
  int64_t size() const { return count * chunks * window_size(); }

  __device__ __forceinline__ int z_first(int i) const { return i * int(segment); }
  __device__ __forceinline__ int y_first(int i) const { return i * rows - 1; }
  __device__ __forceinline__ int x_first(int i) const { return i * kTileWidth; }
  // Where windows begin.
  __device__ __forceinline__ int z_window(int i) const {
    return grid.z().samples[z_first(i)].index;
  }
  __device__ __forceinline__ int y_window(int i) const {
    return grid.y().samples[max(y_first(i), 0)].index;
  }
  __device__ __forceinline__ int x_window(int i) const {
    return grid.x().samples[x_first(i)].index;
  }
  __device__ __forceinline__ Acc* window(int64_t sample, int64_t z, int64_t y, int64_t x,
                                         int64_t chunk) const {
    return windows +
           ((((sample * segments + z) * groups + y) * tiles + x) * chunks + chunk) * window_size();
  }
};

template <class Acc>
struct Column {
  int sample, z, y, x;  // z, y and x count segments, groups of rows and tiles
  int z_begin, z_end;

  __device__ __forceinline__ Column(const Columns<Acc>& columns, uint32_t index) {
    x = index % uint32_t(columns.tiles);
    index /= uint32_t(columns.tiles);
    y = index % uint32_t(columns.groups);
    index /= uint32_t(columns.groups);
    z = index % uint32_t(columns.segments);
    sample = index / uint32_t(columns.segments);
    z_begin = columns.z_first(z);
    z_end = min(z_begin + int(columns.segment), int(columns.grid.z().fine));
  }
};

// Two coarse planes at the fine resolution in y and x, for a chunk of channels. Each lane adds to
// its own numbers, four voxels at once, in an order that spreads them over all banks.
template <class Acc, int warps>
struct PlaneSums {
  alignas(16) Acc sums[2][warps][kChunk * kTile];

  // Four voxels of a channel, where row 4 c + q holds channel c of lane 4 r + q.
  static __device__ __forceinline__ int offset(int row, int r) {
    return row * kTile + (r ^ (row % 4 * 2 + row / 4 % 2)) * kLaneVoxels;
  }
  __device__ __forceinline__ Packet<Acc, 4>& own(int plane, int c) {
    return *reinterpret_cast<Packet<Acc, 4>*>(
        &sums[plane][threadIdx.x / kWarpSize][offset(4 * c + lane_index() % 4, lane_index() / 4)]);
  }

  __device__ __forceinline__ void clear(int plane) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) own(plane, c) = {};
  }
  __device__ __forceinline__ void add(int plane, Acc weight, const LaneArray<Acc>& gradient) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      Packet<Acc, 4>& to = own(plane, c);
      Packet<Acc, 4> sum = to;
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) sum.x[v] += weight * gradient[c][v];
      to = sum;
    }
  }

  // Moves the lane's numbers of a plane to `to`.
  __device__ __forceinline__ void take(int plane, LaneArray<Acc>& to) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) to[c][v] = own(plane, c).x[v];
    }
    clear(plane);
  }

  // values += weight times a row of the column, of the channel in row lane_index().
  __device__ __forceinline__ void add_row(int plane, int row, Acc weight,
                                          Acc (&values)[kTileWidth]) const {
    const Acc* from = sums[plane][row / kTileRows];
#pragma unroll
    for (int i = 0; i < kTileWidth / kLaneVoxels; ++i) {
      const int r = row % kTileRows * (kTileWidth / kLaneVoxels) + i;
      const auto four = *reinterpret_cast<const Packet<Acc, 4>*>(&from[offset(lane_index(), r)]);
#pragma unroll
      for (int v = 0; v < kLaneVoxels; ++v) values[i * kLaneVoxels + v] += weight * four.x[v];
    }
  }
};

// Interpolates a row of values back in x, to a row of the window. A lane has one channel. As
// everywhere, coarse voxels that no voxel of the row depends on are not written.
template <class Acc>
__device__ __forceinline__ void write_row(const Axis<Acc>& axis, int x,
                                          const Acc (&values)[kTileWidth], Acc* to) {
  const Sample<Acc>* samples = axis.samples + x;
  int index = samples[0].index;
  to -= index * kChunk;
  Acc here = 0, after = 0;
#pragma unroll
  for (int i = 0; i < kTileWidth; ++i) {
    if (x + i < axis.fine) {
      const Sample<Acc> sample = samples[i];
      if (sample.index != index) {
        to[index * kChunk] = here;
        if (sample.index == index + 1) {
          here = after;
        } else {
          to[(index + 1) * kChunk] = after;
          here = 0;
        }
        after = 0;
        index = sample.index;
      }
      here += (1 - sample.weight) * values[i];
      after += sample.weight * values[i];
    }
  }
  to[index * kChunk] = here;
  if (index + 1 < axis.coarse) to[(index + 1) * kChunk] = after;
}

// The same where the fine volume is twice as wide: all weights are known.
template <class Acc>
__device__ __forceinline__ void write_row_of_twice(int coarse, int x,
                                                   const Acc (&values)[kTileWidth], Acc* to) {
  constexpr int count = kTileWidth / 2 + 2;
  const int first = x / 2 - 1;
  Acc sums[count];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    sums[k] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 2 * k - 3 + i;
      if (0 <= at && at < kTileWidth) {
        sums[k] += (i == 0 || i == 3 ? Acc(0.25) : Acc(0.75)) * values[at];
      }
    }
  }
  // Past its ends the coarse volume continues with its last voxels.
  if (first < 0) {
    sums[1] += sums[0];
  } else {
    *to = sums[0];
    to += kChunk;
  }
#pragma unroll
  for (int k = 1; k < count; ++k, to += kChunk) {
    if (k + 1 < count && first + k + 1 == coarse) sums[k] += sums[k + 1];
    if (first + k < coarse) *to = sums[k];
  }
}

// A march through a column, for all threads of a block.
template <class Acc, int warps>
struct March {
  const Columns<Acc>& columns;
  const Column<Acc>& column;
  PlaneSums<Acc, warps>& planes;
  Acc* plane_window;  // of the first of the two planes
  int index;          // of that plane

  __device__ __forceinline__ March(const Columns<Acc>& columns, const Column<Acc>& column,
                                   int64_t chunk, PlaneSums<Acc, warps>& planes)
      : columns(columns), column(column), planes(planes),
        plane_window(columns.window(column.sample, column.z, column.y, column.x, chunk)),
        index(columns.z_window(column.z)) {
    planes.clear(0);
    planes.clear(1);
  }

  // Goes to a fine plane, and leaves behind the coarse ones before it.
  __device__ __forceinline__ void advance(int z) { leave_until(columns.grid.z().samples[z].index); }

  // Adds the gradients of the lane's voxels in that plane.
  __device__ __forceinline__ void add(int z, const LaneArray<Acc>& gradient) {
    const Acc weight = columns.grid.z().samples[z].weight;
    planes.add(index % 2, 1 - weight, gradient);
    planes.add((index + 1) % 2, weight, gradient);
  }

  __device__ __forceinline__ void finish() { leave_until(columns.grid.z().after(index) + 1); }

 private:
  __device__ __forceinline__ void leave_until(int end) {
#pragma unroll 1
    for (; index < end; ++index) {
      __syncthreads();
      write_plane();
      __syncthreads();
      planes.clear(index % 2);
      plane_window += columns.plane_size();
    }
  }

  // Each warp writes every so many rows of the window.
  __device__ __forceinline__ void write_plane() const {
    const Axis<Acc>& axis = columns.grid.y();
    const int y_first = columns.y_first(column.y), begin = max(y_first, 0);
    const int end = min(y_first + columns.rows, int(axis.fine));
    const int top = axis.samples[begin].index;
    const int bottom = axis.after(axis.samples[end - 1].index);
#pragma unroll 1
    for (int y = top + int(threadIdx.x) / kWarpSize; y <= bottom; y += warps) {
      Acc values[kTileWidth] = {};
      const int row_end = min(axis.end(y), end);
#pragma unroll 1
      for (int row = max(axis.begin(y), begin); row < row_end; ++row) {
        const Sample<Acc> sample = axis.samples[row];
        planes.add_row(index % 2, row - y_first,
                       sample.index == y ? 1 - sample.weight : sample.weight, values);
      }
      // A lane has the channel that PlaneSums has in the row of its index.
      Acc* to = plane_window + (y - top) * int(columns.window_columns) * kChunk +
                lane_index() % 4 * kLaneChannels + lane_index() / 4;
      const Axis<Acc>& x = columns.grid.x();
      if (x.fine == 2 * x.coarse) {
        write_row_of_twice(int(x.coarse), columns.x_first(column.x), values, to);
      } else {
        write_row(x, columns.x_first(column.x), values, to);
      }
    }
  }
};

// The windows along an axis that a coarse position is in: [first, last).
struct WindowRange {
  uint32_t first, last;

  // A column has so many fine positions, and the first column begins so many before the volume.
  template <class Acc>
  __device__ __forceinline__ WindowRange(const Axis<Acc>& axis, int64_t index, int64_t length,
                                         int before) {
    const int begin = axis.begin(index), end = axis.end(index);
    first = uint32_t(begin + before) / uint32_t(length);
    last = begin < end ? uint32_t(end - 1 + before) / uint32_t(length) + 1 : first;
  }
};

// Adds up the windows. A block has 32 voxels of a row and a chunk of channels.
template <class T>
__global__ void __launch_bounds__(256, 5)  // a sixth block would spill registers
    sum_windows_kernel(Columns<Accumulate<T>> columns, Tensor to, int64_t channels) {
  using Acc = Accumulate<T>;
  constexpr int warps = 8;
  __shared__ Acc tile[32][33];
  const auto& grid = columns.grid;
  const int lane = lane_index(), warp = threadIdx.x / kWarpSize;
  const uint32_t runs = divide_up(uint32_t(grid.x().coarse), 32u);
  uint32_t block = blockIdx.x;
  const auto next = [&](int64_t count) {
    const uint32_t position = block % uint32_t(count);
    block /= uint32_t(count);
    return int64_t(position);
  };
  const int64_t chunk = next(columns.chunks), x = next(runs) * 32;
  const int64_t y = next(grid.y().coarse), z = next(grid.z().coarse), sample = block;

  const WindowRange zs(grid.z(), z, columns.segment, 0), ys(grid.y(), y, columns.rows, 1);
#pragma unroll 1
  for (int v = warp; v < 32 && x + v < grid.x().coarse; v += warps) {
    const WindowRange xs(grid.x(), x + v, kTileWidth, 0);
    Acc sum = 0;
#pragma unroll 1
    for (uint32_t i = zs.first; i < zs.last; ++i) {
#pragma unroll 1
      for (uint32_t j = ys.first; j < ys.last; ++j) {
        const int64_t row =
            (z - columns.z_window(i)) * columns.window_rows + y - columns.y_window(j);
#pragma unroll 1
        for (uint32_t k = xs.first; k < xs.last; ++k) {
          const int64_t at = row * columns.window_columns + x + v - columns.x_window(k);
          sum += columns.window(sample, i, j, k, chunk)[at * kChunk + lane];
        }
      }
    }
    tile[v][lane] = sum;
  }
  __syncthreads();
  const bool along_voxels = to.voxel_stride == 1;
  const int64_t row = (z * grid.y().coarse + y) * grid.x().coarse;
#pragma unroll
  for (int i = warp; i < 32; i += warps) {
    const int v = along_voxels ? lane : i, c = along_voxels ? i : lane;
    const int64_t channel = chunk * kChunk + c;
    if (x + v < grid.x().coarse && channel < channels) {
      static_cast<T*>(to.data)[to.offset(sample, channel, row + x + v)] = narrow<T>(tile[v][c]);
    }
  }
}

template <class T>
void sum_windows(const Columns<Accumulate<T>>& columns, const Tensor& to, const Size& size,
                 const Resources& resources) {
  const int64_t blocks =
      size.batch * size.depth * size.height * divide_up<int64_t>(size.width, 32) * columns.chunks;
  launch("edge_gate_upsampled_backward: sums of e", resources, blocks, 256, 0,
         sum_windows_kernel<T>, columns, to, size.channels);
}

}  // namespace
}  // namespace egcnn::cuda
