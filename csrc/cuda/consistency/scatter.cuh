// The adjoint of the Sobel stencil: adds each edge's gradient to its neighbourhood, in shared
// memory and in fixed point, so that the order of the atomics does not matter.
#pragma once

#include "terms.cuh"

namespace egcnn::cuda {
namespace {

// Fixed-point numbers of magnitude up to 4.5.
template <class Acc>
struct Fixed {
  using Type = int;
  using Atomic = int;
  static constexpr Acc kOne = Acc(1 << 28);
  static __device__ Type from(Acc value) { return __float2int_rn(value * kOne); }
};
template <>
struct Fixed<double> {
  using Type = long long;
  using Atomic = unsigned long long;
  static constexpr double kOne = double(1ll << 60);
  static __device__ Type from(double value) { return llrint(value * kOne); }
};

// The part of a core whose sums fit in shared memory: some of its rows, or a piece of one row. Each
// class and row has a line of sums, extended by two voxels on either side.
struct Window {
  static constexpr int kBytes = 18432;
  int first_row, rows, first_x, width;

  static __host__ __device__ constexpr int pitch(int width) { return width + 4; }
  __device__ int line(int row) const { return (row - first_row) * pitch(width) + 2 - first_x; }
  __device__ int lines() const { return rows * pitch(width); }
  __device__ bool contains(int row) const { return row >= first_row && row < first_row + rows; }
};

// Adds slope times the term's gradient, at most 1/16, times the stencil's weights to the sums of
// the 27 voxels around. The sums stay below 4.5, since each weight reaches a sum once. Borders in z
// and y are replicated, so what falls beyond a border is added to the border's voxel.
template <class B, class Acc, class Sum>
__device__ void scatter(const Window& window, const Tile& tile, const Position& at, Acc slope,
                        const Term<Acc>& term, Sum* sums) {
  constexpr int kOutside = 1 << 20;
  const int at_z = B::row_z(at.row), at_y = B::row_y(at.row);
  const Sum z = Fixed<Acc>::from(slope * term.z), y = Fixed<Acc>::from(slope * term.y);
  const Sum x = Fixed<Acc>::from(slope * term.x);
#pragma unroll 1
  for (int i = -1; i <= 1; ++i) {
    const int to_z = tile.z.clamp(at_z + i);
    const int plane = to_z >= 0 && to_z < B::kDepth ? to_z * B::kHeight : kOutside;
#pragma unroll
    for (int j = -1; j <= 1; ++j) {
      const int to_y = tile.y.clamp(at_y + j);
      const int row = plane + (to_y >= 0 && to_y < B::kHeight ? to_y : kOutside);
      if (!window.contains(row)) continue;
      using Atomic = typename Fixed<Acc>::Atomic;
      Atomic* to = reinterpret_cast<Atomic*>(sums) + window.line(row) + at.x;
      const Sum sum = z * (i * (2 - j * j)) + y * ((2 - i * i) * j);
      const Sum difference = x * ((2 - i * i) * (2 - j * j));
      atomicAdd(to - 1, Atomic(sum - difference));
      atomicAdd(to, Atomic(2 * sum));
      atomicAdd(to + 1, Atomic(sum + difference));
    }
  }
}

// Adds what fell beyond the volume's borders in x to the border's voxels.
template <class Sum>
__device__ void fold_borders(const Window& window, const Tile& tile, int classes, Sum* sums) {
  const bool before = tile.x.first == 0 && window.first_x == 0;
  const bool after = tile.x.last >= window.first_x && tile.x.last < window.first_x + window.width;
  for (int i = threadIdx.x; i < classes * window.rows; i += kThreads) {
    Sum* line = sums + i * Window::pitch(window.width) + 2 - window.first_x;
    if (before) line[0] += line[-1];
    if (after) line[tile.x.last] += line[tile.x.last + 1];
  }
  __syncthreads();
}

// Sums the gradients of all edges in reach of the window. All threads of the block must call it.
template <class B, class Acc, class Sum>
__device__ __forceinline__ void scatter_edges(const Task& t, const Tile& tile, const Window& window,
                                              const uint8_t* truth, const Samples<Acc>& samples,
                                              const uint4* candidates, List& list, Sum* sums) {
  const int first_z = window.first_row / B::kHeight;
  const int last_z = (window.first_row + t.window_rows - 1) / B::kHeight;
  const Range around{window.first_x - 1, window.first_x + window.width};
  for (int k = threadIdx.x; k < window.lines() * t.classes; k += kThreads) sums[k] = 0;
  for_each_list<B>(
      list,
      [&](int z, int y) -> uint4 {
        if (z < first_z - 1 || z > last_z + 1) return {};
        const uint4 row = candidates[B::set_row(z, y)];
        return {row.x & bits_inside(around, -32), row.y & bits_inside(around, 0),
                row.z & bits_inside(around, 32), 0};
      },
      [&](int count) {
        for_each_edge<B>(t, truth, samples, list, count,
                         [&](const Position& at, int c, unsigned lanes, int k,
                             const Gradients& of_truth, const Gradients& of_hard) {
                           if (!(lanes >> lane_index() & 1)) return;
                           const Term<Acc> of = term<B>(of_truth, of_hard, k, samples.soft,
                                                        c * B::kBytes + at.index);
                           if (!(of.magnitude > 0) || of.mismatch == 0) return;
                           const Acc sign = of.mismatch < 0 ? -1 : 1;
                           const Acc slope = divide(sign * Acc(1.0 / 256), of.magnitude);
                           scatter<B>(window, tile, at, slope, of, sums + c * window.lines());
                         });
      });
  fold_borders(window, tile, t.classes, sums);
}

}  // namespace
}  // namespace egcnn::cuda
