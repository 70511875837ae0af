// The Sobel gradient of floats: a thread takes a few voxels of a plane, X along x by N along y, of
// one channel, and marches along z.
#pragma once

#include <cfloat>
#include <cstring>

#include "../../math/sobel.h"
#include "../device/fast_math.cuh"
#include "march.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kMostAdjacent = 16;

struct Column {
  int64_t batch, channel;
  int z, y, x;  // of its first voxel
};

// All columns of X by N voxels, in an order in which neighbours are neighbours in memory.
template <int X, int N>
struct Columns {
  Size size;
  int planes;         // of a column
  unsigned adjacent;  // interleaved channels; the distance to the next column along x

  Columns(const char* name, const Size& size, const Tensor& like, int64_t resident)
      : size(size), planes(int(std::min<int64_t>(size.depth, INT32_MAX))),
        adjacent(like.voxel_stride == 1 ? 1u : equal_part(size.channels, kMostAdjacent)) {
    planes = int(march_length(size.depth, divide_up(count(), kThreads), resident));
    // The coordinates within a channel, the offsets within a window, and columns have 32 bits.
    if (std::max({size.depth, size.height, size.width * like.voxel_stride * 16}) > INT32_MAX ||
        count() > UINT32_MAX) {
      throw std::runtime_error(std::string("egcnn: the volume is too large for ") + name);
    }
  }

  __host__ __device__ int64_t count() const {
    return size.batch * divide_up(size.channels, adjacent) * divide_up(size.depth, planes) *
           divide_up(size.height, N) * divide_up(size.width, X) * adjacent;
  }

  // The column's channel may be past the last.
  __device__ Column operator[](unsigned i) const {
    const auto digit = [&](int64_t base) {
      const unsigned value = i % unsigned(base);
      i /= unsigned(base);
      return value;
    };
    Column c;
    c.channel = digit(adjacent);
    c.x = int(digit(divide_up(size.width, X))) * X;
    c.y = int(digit(divide_up(size.height, N))) * N;
    c.z = int(digit(divide_up(size.depth, planes))) * planes;
    c.channel += int64_t(digit(divide_up(size.channels, adjacent))) * adjacent;
    c.batch = i;
    return c;
  }
};

template <class T, int X>
struct Singles {
  T values[X];
  __device__ __forceinline__ T operator[](int i) const { return values[i]; }
};

// X adjacent voxels, read or written at once: pairs of 16 bits share a register.
template <class T, int X>
struct alignas(X * sizeof(T)) Group {
  using Word = std::conditional_t<sizeof(T) == 2 && X % 2 == 0, uint32_t, T>;
  static constexpr int kPack = sizeof(Word) / sizeof(T);
  Word words[X / kPack];

  __device__ __forceinline__ T operator[](int i) const {
    if constexpr (kPack == 1) {
      return words[i];
    } else {  // by shifts: the compiler does not see through halves of a word in memory
      const uint16_t bits = uint16_t(words[i / 2] >> i % 2 * 16);
      T value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
  }
};

// Whether a volume's rows consist of groups of X adjacent, aligned voxels.
template <class T, int X>
bool adjacent(const Tensor& t, const Size& size) {
  return t.voxel_stride == 1 && size.width % X == 0 &&
         reinterpret_cast<uintptr_t>(t.data) % (X * sizeof(T)) == 0;
}

// X by N voxels of a plane and their neighbours, as they are in memory.
template <class T, int X, int N, bool kAdjacent>
struct Voxels {
  std::conditional_t<kAdjacent, Group<T, X>, Singles<T, X>> inner[N + 2];
  T before[N + 2], after[N + 2];
  bool first, last;  // of their rows: with kAdjacent `before` or `after` are not read then

  __device__ __forceinline__ Accumulate<T> operator()(int j, int k) const {
    if (k == 0) return kAdjacent && first ? widen(inner[j][0]) : widen(before[j]);
    if (k == X + 1) return kAdjacent && last ? widen(inner[j][X - 1]) : widen(after[j]);
    return widen(inner[j][k - 1]);
  }
};

// Reads X by N voxels from (y, x) on and their neighbours, plane by plane. Borders are replicated.
template <class T, int X, int N, bool kAdjacent>
struct Window {
  const T* row[N + 2];  // at x
  int64_t plane_stride;
  int z, depth;  // z: of the next plane
  bool first, last;
  int voxel[X + 2];  // offsets; those of neighbours come first and last

  __device__ __forceinline__ Window(const Tensor& t, const Size& size, const Column& c, int y,
                                    int z)
      : plane_stride(size.height * size.width * t.voxel_stride), z(z), depth(int(size.depth)) {
    const int height = int(size.height), width = int(size.width);
    const T* plane = static_cast<const T*>(t.data) + t.offset(c.batch, c.channel, c.x) +
                     clamp(z, depth) * plane_stride;
#pragma unroll
    for (int j = 0; j < N + 2; ++j) {
      row[j] = plane + clamp(y + j - 1, height) * size.width * t.voxel_stride;
    }
    first = c.x == 0;
    last = c.x + X >= width;
#pragma unroll
    for (int k = 0; k < X + 2; ++k) {
      voxel[k] = (clamp(c.x + k - 1, width) - c.x) * int(t.voxel_stride);
    }
  }

  __device__ __forceinline__ Voxels<T, X, N, kAdjacent> next() {
    Voxels<T, X, N, kAdjacent> voxels;
    voxels.first = first, voxels.last = last;
    const int64_t step = unsigned(z) < unsigned(depth - 1) ? plane_stride : 0;
    ++z;
#pragma unroll
    for (int j = 0; j < N + 2; ++j) {
      if constexpr (kAdjacent) {
        voxels.inner[j] = *reinterpret_cast<const Group<T, X>*>(row[j]);
        if (!first) voxels.before[j] = row[j][-1];
        if (!last) voxels.after[j] = row[j][X];
      } else {
        voxels.before[j] = row[j][voxel[0]];
        for (int k = 0; k < X; ++k) voxels.inner[j].values[k] = row[j][voxel[k + 1]];
        voxels.after[j] = row[j][voxel[X + 1]];
      }
      row[j] += step;
    }
    return voxels;
  }
};

// A plane's contribution to the gradient at the planes beside it: smoothed along y and x, and the
// difference along one, smoothed along the other.
template <class Acc, int X, int N>
struct Plane {
  Acc smooth[N][X], difference_y[N][X], difference_x[N][X];

  template <class T, bool kAdjacent>
  __device__ __forceinline__ explicit Plane(const Voxels<T, X, N, kAdjacent>& voxels) {
#pragma unroll
    for (int k = 0; k < X; ++k) {
      Acc smooth_x[N + 2], along_x[N + 2];
#pragma unroll
      for (int j = 0; j < N + 2; ++j) {
        smooth_x[j] = math::smooth(voxels(j, k), voxels(j, k + 1), voxels(j, k + 2));
        along_x[j] = math::difference(voxels(j, k), voxels(j, k + 2));
      }
#pragma unroll
      for (int j = 0; j < N; ++j) {
        smooth[j][k] = math::smooth(smooth_x[j], smooth_x[j + 1], smooth_x[j + 2]);
        difference_y[j][k] = math::difference(smooth_x[j], smooth_x[j + 2]);
        difference_x[j][k] = math::smooth(along_x[j], along_x[j + 1], along_x[j + 2]);
      }
    }
  }
};

template <class Acc>
struct Gradient {
  Acc z, y, x;

  template <int X, int N>
  __device__ __forceinline__ Gradient(const Plane<Acc, X, N>& before, const Plane<Acc, X, N>& at,
                                      const Plane<Acc, X, N>& after, int j, int k)
      : z(math::difference(before.smooth[j][k], after.smooth[j][k])),
        y(math::smooth(before.difference_y[j][k], at.difference_y[j][k], after.difference_y[j][k])),
        x(math::smooth(before.difference_x[j][k], at.difference_x[j][k],
                       after.difference_x[j][k])) {}

  __device__ __forceinline__ Acc squared() const { return z * z + y * y + x * x; }
  // math::sobel_slope of the magnitude, with one instruction for the root and its reciprocal.
  __device__ __forceinline__ Acc slope() const {
    constexpr Acc kLeast = std::is_same_v<Acc, float> ? Acc(FLT_MIN) : Acc(DBL_MIN);
    return squared() >= kLeast ? Acc(1.0 / 16) * inverse_root(squared()) : Acc(0);
  }
};

}  // namespace
}  // namespace egcnn::cuda
