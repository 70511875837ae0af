// The gradient of the Sobel magnitude: the transposed stencil, applied to the slopes q of the loss
// along (gz, gy, gx). Along an axis, let s be the part that the stencil smooths and d the part that
// it differences; the transposed stencil gives
//   s[i - 1] + 2 s[i] + s[i + 1] + d[i - 1] - d[i + 1] = (s + d)[i - 1] + 2 s[i] + (s - d)[i + 1].
// Beyond a border, take the border's s and -d, so that s + d there is s - d at the border.
#include "gradient.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kRows = 4, kSlopeRows = kRows + 2;

// The slopes of one plane, for a column's rows and one on either side.
template <class Acc>
struct Slopes {
  Acc z[kSlopeRows], y[kSlopeRows], x[kSlopeRows];

  using SlopePlane = Plane<Acc, 1, kSlopeRows>;

  // `grad` is the incoming gradient, `height` the number of rows from first_y to the border.
  template <class T>
  __device__ __forceinline__ Slopes(const SlopePlane& before, const SlopePlane& at,
                                    const SlopePlane& after, const T (&grad)[kSlopeRows],
                                    int first_y, int height) {
#pragma unroll
    for (int j = 0; j < kSlopeRows; ++j) {
      const Gradient<Acc> g(before, at, after, j, 0);
      const Acc slope = widen(grad[j]) * g.slope();
      z[j] = slope * g.z, y[j] = slope * g.y, x[j] = slope * g.x;
      if (j > 0 && j - 1 == height) z[j] = z[j - 1], y[j] = -y[j - 1], x[j] = x[j - 1];
    }
    if (first_y == 0) z[0] = z[1], y[0] = -y[1], x[0] = x[1];
  }
};

// The outer threads of a block only provide the halo of their neighbours along x, `adjacent`
// threads away.
template <class T, bool kAdjacent>
__global__ void __launch_bounds__(kThreads, 3)
    magnitude_backward_kernel(Tensor grad, Tensor x, Tensor grad_x, Columns<1, kRows> columns) {
  using Acc = Accumulate<T>;
  __shared__ Acc sums[2][kRows][kThreads], differences[2][kRows][kThreads];
  const Size& size = columns.size;
  const int thread = threadIdx.x, step = int(columns.adjacent);
  const int64_t unclamped = int64_t(blockIdx.x) * (kThreads - 2 * step) + thread - step;
  Column c = columns[unsigned(clamp(unclamped, columns.count()))];
  const bool inner = thread >= step && thread < kThreads - step && unclamped < columns.count() &&
                     c.channel < size.channels;
  c.channel = min(c.channel, size.channels - 1);

  Window<T, 1, kSlopeRows, kAdjacent> window(x, size, c, c.y - 1, c.z - 2);
  const int64_t grad_plane = size.height * size.width * grad.voxel_stride;
  const T* grad_from =
      static_cast<const T*>(grad.data) + grad.offset(c.batch, c.channel, c.y * size.width + c.x);
  int grad_row[kSlopeRows];
#pragma unroll
  for (int j = 0; j < kSlopeRows; ++j) {
    grad_row[j] =
        (clamp(c.y + j - 1, int(size.height)) - c.y) * int(size.width * grad.voxel_stride);
  }
  const int64_t row_stride = size.width * grad_x.voxel_stride;
  T* to = static_cast<T*>(grad_x.data) +
          grad_x.offset(c.batch, c.channel, (c.z * size.height + c.y) * size.width + c.x);
  const int height = min(kSlopeRows, int(size.height) - c.y);
  const int rows = inner ? min(kRows, height) : 0;

  // Along z, q.z is d and the others are s. Along x, q.x is d, so keep the sums over the planes so
  // far and s + d of the plane before separately for it.
  Acc sum_s[kRows] = {}, sum_d[kRows] = {}, before_yz[kRows] = {}, before_x[kRows] = {};
  const int depth = int(size.depth);
  // Prefetch the next plane's inputs while this one is computed.
  T next_grad[kSlopeRows];
  const auto load_grad = [&](int z) {
    const T* plane = grad_from + clamp(z, depth) * grad_plane;
#pragma unroll
    for (int j = 0; j < kSlopeRows; ++j) next_grad[j] = plane[grad_row[j]];
  };
  load_grad(c.z - 1);
  Plane<Acc, 1, kSlopeRows> before(window.next()), at(window.next());
  auto next = window.next();
  for (int k = -1; k <= columns.planes; ++k) {
    const int z = c.z + k;
    const auto after_next = window.next();
    const Plane<Acc, 1, kSlopeRows> after(next);
    const Slopes<Acc> q(before, at, after, next_grad, c.y, height);
    load_grad(z + 1);
    Acc s[kRows], sum[kRows], difference[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const Acc from_z = math::smooth(q.z[j], q.z[j + 1], q.z[j + 2]);
      const Acc from_y = math::difference(q.y[j + 2], q.y[j]);
      const Acc from_x = math::smooth(q.x[j], q.x[j + 1], q.x[j + 2]);
      s[j] = sum_s[j] + (z == depth ? before_yz[j] : from_y - from_z);
      const Acc d = sum_d[j] + (z == depth ? before_x[j] : from_x);
      sum_s[j] = (z == 0 ? from_y - from_z : before_yz[j]) + Acc(2) * from_y;
      sum_d[j] = (z == 0 ? from_x : before_x[j]) + Acc(2) * from_x;
      before_yz[j] = from_y + from_z;
      before_x[j] = from_x;
      sums[k & 1][j][thread] = sum[j] = s[j] + d;
      differences[k & 1][j][thread] = difference[j] = s[j] - d;
    }
    __syncthreads();  // one is enough: the next plane goes to the other buffer
    if (k > 0 && z <= depth) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (j >= rows) break;
        const Acc left = c.x == 0 ? difference[j] : sums[k & 1][j][thread - step];
        const Acc right = c.x + 1 == size.width ? sum[j] : differences[k & 1][j][thread + step];
        to[j * row_stride] = narrow<T>(math::smooth(left, s[j], right));
      }
      to += size.height * row_stride;
    }
    before = at;
    at = after;
    next = after_next;
  }
}

}  // namespace

size_t sobel_magnitude_backward_workspace(const SobelMagnitudeBackward&) { return 0; }

void sobel_magnitude_backward_launch(const SobelMagnitudeBackward& p) {
  if (p.size.empty()) return;
  with_float(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto kernel = adjacent<T, 1>(p.x, p.size) ? magnitude_backward_kernel<T, true>
                                                    : magnitude_backward_kernel<T, false>;
    const Columns<1, kRows> columns("sobel_magnitude_backward", p.size, p.x,
                                    resident_blocks(p.resources.device, kernel, kThreads));
    launch("sobel_magnitude_backward", p.resources,
           divide_up(columns.count(), kThreads - 2 * int64_t(columns.adjacent)), kThreads, 0,
           kernel, p.grad, p.x, p.grad_x, columns);
  });
}

}  // namespace egcnn::cuda
