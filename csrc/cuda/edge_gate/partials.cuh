// Sums of the gradients of weights and bias in two stages that do not depend on timing: each warp
// or block sums in a row of `partials` of its own, and a second kernel adds up the rows in order.
// The number of rows depends on the sizes and on how many blocks the device holds alone, so that
// the same device gives the same bits.
#pragma once

#include "tile.cuh"

namespace egcnn::cuda {
namespace {

// Destinations of the sums. Derived classes map the columns of `partials` to addresses; null is
// padding.
template <class Acc>
struct WeightGradients {
  Acc *weight_e, *weight_m, *bias;
  int64_t e_channels, m_channels, gates;

  explicit WeightGradients(const EdgeGateBackward& p)
      : weight_e(static_cast<Acc*>(p.grad_weight_e)), weight_m(static_cast<Acc*>(p.grad_weight_m)),
        bias(static_cast<Acc*>(p.grad_bias)), e_channels(p.size.channels),
        m_channels(p.main_channels), gates(p.gates) {}
};

// Nothing is gated, so no weight has a gradient; m may still have channels.
inline void clear_gradients(const EdgeGateBackward& p) {
  const auto clear_numbers = [&](void* data, int64_t count, int64_t bytes) {
    clear("edge_gate_backward", p.resources, data, count * bytes);
  };
  const int64_t bytes = accumulator_bytes(p.e.dtype);
  clear_numbers(p.grad_m.data, p.size.batch * p.main_channels * p.size.voxels(),
                float_bytes(p.e.dtype));
  clear_numbers(p.grad_weight_e, p.gates * p.size.channels, bytes);
  clear_numbers(p.grad_weight_m, p.gates * p.main_channels, bytes);
  clear_numbers(p.grad_bias, p.gates, bytes);
}

// 32 columns per block; its warps share the rows.
template <class Acc, class Columns>
__global__ void __launch_bounds__(1024)
    sum_partials_kernel(const Acc* partials, int64_t rows, Columns columns) {
  __shared__ Acc sums[32][33];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  const bool inside = column < columns.count();
  Acc sum = 0;
#pragma unroll 4
  for (int64_t row = threadIdx.x / 32; inside && row < rows; row += 32) {
    sum += partials[row * columns.count() + column];
  }
  sums[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || !inside) return;
  sum = 0;
  for (int warp = 0; warp < 32; ++warp) sum += sums[warp][threadIdx.x];
  if (Acc* to = columns.place(column)) *to = sum;
}

template <class Acc, class Columns>
void sum_partials(const Acc* partials, int64_t rows, const Columns& columns,
                  const Resources& resources) {
  launch("edge_gate_backward: sums", resources, divide_up(columns.count(), 32), 1024, 0,
         sum_partials_kernel<Acc, Columns>, partials, rows, columns);
}

// At most 128 MB of partials; only layers with hundreds of channels then get fewer blocks than the
// GPU holds.
template <class Acc>
int64_t limit_blocks(int64_t blocks, int64_t rows_per_block, int64_t columns) {
  const int64_t most = (int64_t(128) << 20) / (rows_per_block * columns * int64_t(sizeof(Acc)));
  return std::min(blocks, std::max<int64_t>(most, 1));
}

}  // namespace
}  // namespace egcnn::cuda
