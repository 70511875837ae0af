// The Sobel magnitude, and the edges of floats.
#pragma once

#include <cstring>
#include <limits>

#include "gradient.cuh"

namespace egcnn::cuda {
namespace {

// The voxels of a thread: of 16 bits twice as many, which takes fewer instructions a byte.
template <class T, bool kAdjacent>
constexpr int kAlongX = kAdjacent && sizeof(T) == 2 ? 4 : 2;
constexpr int kAlongY = 2;
// Blocks per multiprocessor: as many as leave a thread the registers it needs.
template <class T, class Out, bool kAdjacent>
constexpr int kBlocks = kAdjacent ? (sizeof(T) == 2 ? 4 : 5) : (std::is_same_v<Out, T> ? 4 : 3);

// Writes the first `count` of a row's values.
template <bool kAdjacent, class Out, int X>
__device__ __forceinline__ void store(Out* to, const Out (&values)[X], int count, int64_t stride) {
  if constexpr (kAdjacent) {
    Group<Out, X> group;
    std::memcpy(&group, values, sizeof group);
    *reinterpret_cast<Group<Out, X>*>(to) = group;
  } else {
#pragma unroll
    for (int k = 0; k < X; ++k) {
      if (k < count) to[k * stride] = values[k];
    }
  }
}

// Writes the magnitude, or as a byte whether its square is above the limit.
template <class T, class Out, bool kAdjacent>
__global__ void __launch_bounds__(kThreads, kBlocks<T, Out, kAdjacent>)
    magnitude_kernel(Tensor x, Tensor out, Columns<kAlongX<T, kAdjacent>, kAlongY> columns,
                     Accumulate<T> limit) {
  constexpr int X = kAlongX<T, kAdjacent>;
  using Acc = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= columns.count()) return;
  const Size& size = columns.size;
  const Column c = columns[unsigned(i)];
  if (c.channel >= size.channels) return;
  Window<T, X, kAlongY, kAdjacent> window(x, size, c, c.y, c.z - 1);
  const int64_t row_stride = size.width * out.voxel_stride;
  Out* to = static_cast<Out*>(out.data) +
            out.offset(c.batch, c.channel, (c.z * size.height + c.y) * size.width + c.x);
  const int planes = min(columns.planes, int(size.depth) - c.z);
  const int rows = min(kAlongY, int(size.height) - c.y);
  const int voxels = min(X, int(size.width) - c.x);
  const auto first = window.next(), second = window.next();
  auto third = window.next();
  Plane<Acc, X, kAlongY> before(first), at(second);
#pragma unroll 3  // rotates `before`, `at` and `after` without moves
  for (int k = 0; k < planes; ++k) {
    const auto fourth = window.next();  // on its way while the third is used
    const Plane<Acc, X, kAlongY> after(third);
#pragma unroll
    for (int j = 0; j < kAlongY; ++j) {
      if (j >= rows) break;
      Out results[X];
#pragma unroll
      for (int l = 0; l < X; ++l) {
        const Acc squared = Gradient<Acc>(before, at, after, j, l).squared();
        if constexpr (std::is_same_v<Out, T>) {
          results[l] = narrow<T>(root(squared) * Acc(1.0 / 16));
        } else {
          results[l] = squared > limit;
        }
      }
      store<kAdjacent>(to + j * row_stride, results, voxels, out.voxel_stride);
    }
    to += size.height * row_stride;
    before = at;
    at = after;
    third = fourth;
  }
}

// The largest square of an unscaled gradient whose magnitude is not above the threshold, which is
// at least 0. Comparing squares with it needs no root and gives exactly the same edges.
template <class Acc>
Acc squared_limit(Acc threshold) {
  using Bits = std::conditional_t<sizeof(Acc) == 4, uint32_t, uint64_t>;
  const auto number = [](Bits bits) {  // such numbers are in the order of their bits
    Acc value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  const Acc infinity = std::numeric_limits<Acc>::infinity();
  Bits flat = 0, edge;
  std::memcpy(&edge, &infinity, sizeof edge);
  if (!(infinity > threshold)) return infinity;
  while (edge - flat > 1) {
    const Bits middle = flat + (edge - flat) / 2;
    (math::sobel_magnitude(number(middle)) > threshold ? edge : flat) = middle;
  }
  return number(flat);
}

template <class T, class Out>
void launch_magnitude(const char* name, const Tensor& x, const Tensor& out, const Size& size,
                      double threshold, const Resources& resources) {
  const auto launch_as = [&](auto adjacent) {
    constexpr bool kAdjacent = decltype(adjacent)::value;
    const auto kernel = magnitude_kernel<T, Out, kAdjacent>;
    const Columns<kAlongX<T, kAdjacent>, kAlongY> columns(
        name, size, x, resident_blocks(resources.device, kernel, kThreads));
    launch(name, resources, divide_up(columns.count(), kThreads), kThreads, 0, kernel, x, out,
           columns, squared_limit(Accumulate<T>(threshold)));
  };
  constexpr int X = kAlongX<T, true>;
  if (adjacent<T, X>(x, size) && adjacent<Out, X>(out, size)) return launch_as(std::true_type());
  launch_as(std::false_type());
}

}  // namespace
}  // namespace egcnn::cuda
