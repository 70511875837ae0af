// The Sobel gradient of floats, voxel by voxel: a thread takes a few rows of one channel at one x,
// and marches along z.
#pragma once

#include "../math/sobel.h"
#include "sobel_march.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kRows = 4, kMostAdjacent = 16;

struct Column {
  int64_t batch, channel, z, y, x;  // of its first voxel
};

// All columns, in an order in which neighbours are neighbours in memory.
struct Columns {
  Size size;
  int64_t planes;    // of a column
  int64_t adjacent;  // channels side by side, and so the distance to the next column along x

  Columns(const Size& size, const Tensor& like, int64_t resident)
      : size(size), planes(size.depth),
        adjacent(like.voxel_stride == 1 ? 1 : equal_part(size.channels, kMostAdjacent)) {
    planes = march_length(size.depth, divide_up<int64_t>(count(), kThreads), resident);
  }

  __host__ __device__ int64_t count() const {
    return size.batch * divide_up(size.channels, adjacent) * divide_up(size.depth, planes) *
           divide_up<int64_t>(size.height, kRows) * size.width * adjacent;
  }

  // The channel may be past the last.
  __device__ Column operator[](int64_t i) const {
    const auto digit = [&](int64_t base) {
      const int64_t value = i % base;
      i /= base;
      return value;
    };
    Column c;
    c.channel = digit(adjacent);
    c.x = digit(size.width);
    c.y = digit(divide_up<int64_t>(size.height, kRows)) * kRows;
    c.z = digit(divide_up(size.depth, planes)) * planes;
    c.channel += digit(divide_up(size.channels, adjacent)) * adjacent;
    c.batch = i;
    return c;
  }
};

// N rows at one x, from row y on, and their neighbours in any plane. Borders are replicated.
template <class T, int N>
struct Window {
  const T* corner;
  int64_t plane_stride, depth;
  int64_t row[N + 2], at, after;  // offsets from the corner, which is one row and voxel before

  __device__ __forceinline__ Window(const Tensor& t, const Size& size, const Column& c, int64_t y) {
    const int64_t first = clamp(y - 1, size.height), before = clamp(c.x - 1, size.width);
    corner =
        static_cast<const T*>(t.data) + offset(t, c.batch, c.channel, first * size.width + before);
    plane_stride = size.height * size.width * t.voxel_stride;
    depth = size.depth;
#pragma unroll
    for (int j = 0; j < N + 2; ++j) {
      row[j] = (clamp(y + j - 1, size.height) - first) * size.width * t.voxel_stride;
    }
    at = (c.x - before) * t.voxel_stride;
    after = (clamp(c.x + 1, size.width) - before) * t.voxel_stride;
  }
};

// A plane's contribution to the gradient at the planes beside it, for N rows: smoothed along y and
// x, and the difference along one, smoothed along the other.
template <class Acc, int N>
struct Plane {
  Acc smooth[N], difference_y[N], difference_x[N];

  template <class T>
  __device__ __forceinline__ Plane(const Window<T, N>& window, int64_t z) {
    const T* from = window.corner + clamp(z, window.depth) * window.plane_stride;
    Acc smooth_x[N + 2], along_x[N + 2];
#pragma unroll
    for (int j = 0; j < N + 2; ++j) {
      const T* row = from + window.row[j];
      const Acc before = widen(row[0]), at = widen(row[window.at]);
      const Acc after = widen(row[window.after]);
      smooth_x[j] = math::smooth(before, at, after);
      along_x[j] = math::difference(before, after);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      smooth[j] = math::smooth(smooth_x[j], smooth_x[j + 1], smooth_x[j + 2]);
      difference_y[j] = math::difference(smooth_x[j], smooth_x[j + 2]);
      difference_x[j] = math::smooth(along_x[j], along_x[j + 1], along_x[j + 2]);
    }
  }
};

template <class Acc>
struct Gradient {
  Acc z, y, x;

  template <int N>
  __device__ __forceinline__ Gradient(const Plane<Acc, N>& before, const Plane<Acc, N>& at,
                                      const Plane<Acc, N>& after, int row)
      : z(math::difference(before.smooth[row], after.smooth[row])),
        y(math::smooth(before.difference_y[row], at.difference_y[row], after.difference_y[row])),
        x(math::smooth(before.difference_x[row], at.difference_x[row], after.difference_x[row])) {}

  __device__ __forceinline__ Acc magnitude() const { return math::sobel_magnitude(z, y, x); }
  // math::sobel_slope(magnitude()), with one instruction for the root and its reciprocal.
  __device__ __forceinline__ Acc slope() const {
    const Acc squared = z * z + y * y + x * x;
    return squared > Acc(0) ? Acc(1.0 / 16) * Acc(rsqrt(squared)) : Acc(0);
  }
};

}  // namespace
}  // namespace egcnn::cuda
