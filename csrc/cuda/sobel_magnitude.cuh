// The Sobel magnitude, and the edges of floats.
#pragma once

#include "sobel_gradient.cuh"

namespace egcnn::cuda {
namespace {

// Writes the magnitude, or as a byte whether it is above the threshold. Four blocks per
// multiprocessor leave a thread the registers it needs.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads, 4)
    magnitude_kernel(Tensor x, Tensor out, Columns columns, double threshold) {
  using Acc = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= columns.count()) return;
  const Size& size = columns.size;
  const Column c = columns[i];
  if (c.channel >= size.channels) return;
  const Window<T, kRows> window(x, size, c, c.y);
  const int64_t row_stride = size.width * out.voxel_stride;
  Out* to = static_cast<Out*>(out.data) +
            offset(out, c.batch, c.channel, (c.z * size.height + c.y) * size.width + c.x);
  const int planes = int(min(columns.planes, size.depth - c.z));
  const int rows = int(min(int64_t(kRows), size.height - c.y));
  Plane<Acc, kRows> before(window, c.z - 1), at(window, c.z);
#pragma unroll 3  // rotates `before`, `at` and `after` without moves
  for (int k = 0; k < planes; ++k) {
    const Plane<Acc, kRows> after(window, c.z + k + 1);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (j >= rows) break;
      const Acc magnitude = Gradient<Acc>(before, at, after, j).magnitude();
      if constexpr (std::is_same_v<Out, T>) {
        to[j * row_stride] = narrow<T>(magnitude);
      } else {
        to[j * row_stride] = magnitude > Acc(threshold);
      }
    }
    to += size.height * row_stride;
    before = at;
    at = after;
  }
}

template <class T, class Out>
void launch_magnitude(const char* name, const Tensor& x, const Tensor& out, const Size& size,
                      double threshold, const Resources& resources) {
  const auto kernel = magnitude_kernel<T, Out>;
  const Columns columns(size, x, resident_blocks(resources.device, kernel, kThreads));
  launch(name, resources, divide_up<int64_t>(columns.count(), kThreads), kThreads, 0, kernel, x,
         out, columns, threshold);
}

}  // namespace
}  // namespace egcnn::cuda
