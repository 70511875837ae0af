// The edge-gated layer (Eqs. 1 and 2). Warps stay and walk over the tiles of all volumes. Backward,
// each warp or block sums the gradients of weights and bias in a row of `partials` of its own, and a
// second kernel adds up the rows in order. How many there are depends on the sizes and on the number
// of the device's multiprocessors, so the same device gives the same bits.
#include <algorithm>

#include "edge_gate_channel.cuh"
#include "edge_gate_voxel.cuh"

namespace egcnn::cuda {
namespace {

// --- Sums of the partial gradients of weights and bias ---

template <class Acc>
struct WeightGradients {
  Acc *weight_e, *weight_m, *bias;
  int64_t e_channels, m_channels, gates;

  explicit WeightGradients(const EdgeGateBackward& p)
      : weight_e(static_cast<Acc*>(p.grad_weight_e)),
        weight_m(static_cast<Acc*>(p.grad_weight_m)),
        bias(static_cast<Acc*>(p.grad_bias)),
        e_channels(p.size.channels),
        m_channels(p.main_channels),
        gates(p.gates) {}
};

// A row of partials is as one of the two kernels writes it. Columns beyond the weights have no place.
template <class Acc>
struct VoxelColumns : WeightGradients<Acc> {
  using WeightGradients<Acc>::WeightGradients;

  __host__ __device__ int64_t count() const { return this->e_channels + this->m_channels + 1; }

  __device__ Acc* place(int64_t column) const {
    if (column < this->e_channels) return this->weight_e + column;
    column -= this->e_channels;
    return column < this->m_channels ? this->weight_m + column : this->bias;
  }
};

template <class Acc>
struct ChannelColumns : WeightGradients<Acc> {
  int64_t e_chunks, chunks, weights;

  explicit ChannelColumns(const EdgeGateBackward& p)
      : WeightGradients<Acc>(p),
        e_chunks(divide_up<int64_t>(p.size.channels, kChunk)),
        chunks(e_chunks + divide_up<int64_t>(p.main_channels, kChunk)),
        weights(e_chunks * chunks * kFragments) {}

  __host__ __device__ int64_t count() const { return weights + e_chunks * kChunk; }

  __device__ Acc* place(int64_t column) const {
    if (column >= weights) {
      column -= weights;
      return column < this->gates ? this->bias + column : nullptr;
    }
    const int64_t pair = column / kFragments, chunk = pair % chunks;
    const int64_t gate = pair / chunks * kChunk + product_gate(int(column % kFragments));
    const bool of_e = chunk < e_chunks;
    const int64_t channels = of_e ? this->e_channels : this->m_channels;
    const int64_t channel =
        (of_e ? chunk : chunk - e_chunks) * kChunk + product_channel(int(column % kFragments));
    if (gate >= this->gates || channel >= channels) return nullptr;
    return (of_e ? this->weight_e : this->weight_m) + gate * channels + channel;
  }
};

// 32 columns a block; its warps share the rows.
template <class Acc, class Columns>
__global__ void __launch_bounds__(1024)
    sum_partials_kernel(const Acc* partials, int64_t rows, Columns columns) {
  __shared__ Acc sums[32][33];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  const bool there = column < columns.count();
  Acc sum = 0;
#pragma unroll 4
  for (int64_t row = threadIdx.x / 32; there && row < rows; row += 32) {
    sum += partials[row * columns.count() + column];
  }
  sums[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || !there) return;
  sum = 0;
  for (int warp = 0; warp < 32; ++warp) sum += sums[warp][threadIdx.x];
  if (Acc* to = columns.place(column)) *to = sum;
}

// --- Launches ---

// Enough blocks for all tiles, but no more than the device's multiprocessors hold at a time.
template <class Params>
int64_t block_count(const Params& p, int warps, int64_t blocks_to_multiprocessor) {
  const int64_t tiles = p.size.batch * divide_up<int64_t>(p.size.voxels(), kTile);
  return std::min(divide_up<int64_t>(tiles, warps),
                  blocks_to_multiprocessor * multiprocessors(p.resources.device));
}

// Whether products may be made in TF32. The types other than float32 have but one way.
template <class T, class Params, class Body>
void with_tf32(const Params& p, Body&& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (p.tf32) return body(std::true_type());
  }
  body(std::false_type());
}

template <bool tf32, class T>
void pack_weights(const ChannelGate<T>& gate, const Resources& resources, bool transposed_too) {
  const int64_t count = gate.packed_count(transposed_too);
  launch("edge_gate: packing weights", resources, divide_up<int64_t>(count, 256), 256, 0,
         pack_weights_kernel<tf32, T>, gate, count);
}

template <class T>
void forward(const EdgeGate& p) {
  const View<T> out(p.out, p.size.channels, p.size.voxels());
  if (p.gates == 1) {
    return launch("edge_gate", p.resources, block_count(p, kWarps, kVoxelBlocks<T>), kThreads, 0,
                  voxel_gate_kernel<T>, Gate<T>(p), out);
  }
  with_tf32<T>(p, [&](auto tf32) {
    const ChannelGate<T> gate(p);
    pack_weights<tf32>(gate, p.resources, false);
    launch("edge_gate", p.resources, block_count(p, kWarps, kChannelBlocks<T>), kThreads, 0,
           channel_gate_kernel<tf32, T>, gate, out);
  });
}

// The workspace holds the packed weights, then the partials. Of these there are at most 128 MB; only
// for layers with hundreds of channels is that less than a row for each block.
template <class T>
struct Backward {
  using Acc = Accumulate<T>;
  const EdgeGateBackward& p;
  const bool channel, many;  // as the kernels' names and parameters say
  int64_t packed, columns, blocks, rows;

  explicit Backward(const EdgeGateBackward& p)
      : p(p),
        channel(p.gates != 1),
        many(std::is_same_v<T, double> || p.size.channels > kChunk || p.main_channels > kChunk ||
             p.main_channels == 0) {
    packed = channel ? ChannelGate<T>(p).packed_count(true) : 0;
    columns = channel ? ChannelColumns<Acc>(p).count() : VoxelColumns<Acc>(p).count();
    blocks = !channel ? block_count(p, kWarps, kVoxelBlocks<T>)
             : many   ? block_count(p, kBackwardWarps<T>, kChannelBackwardBlocks<true, T>)
                      : block_count(p, kBackwardWarps<T>, kChannelBackwardBlocks<false, T>);
    const int64_t rows_to_block = channel ? 1 : kWarps;
    const int64_t most = (int64_t(128) << 20) / (rows_to_block * columns * int64_t(sizeof(Acc)));
    blocks = std::min(blocks, std::max<int64_t>(most, 1));
    rows = blocks * rows_to_block;
  }

  size_t workspace() const { return size_t(packed + rows * columns) * sizeof(Acc); }

  void launch_all() const {
    const View<T> grad(p.grad, p.size.channels, p.size.voxels());
    const View<T> grad_e(p.grad_e, p.size.channels, p.size.voxels());
    const View<T> grad_m(p.grad_m, p.main_channels, p.size.voxels());
    Acc* partials = static_cast<Acc*>(p.resources.workspace) + packed;
    if (!channel) {
      launch("edge_gate_backward", p.resources, blocks, kThreads, 0, voxel_gate_backward_kernel<T>,
             Gate<T>(p), grad, grad_e, grad_m, partials);
      return sum_partials(partials, VoxelColumns<Acc>(p));
    }
    with_tf32<T>(p, [&](auto tf32) {
      const ChannelGate<T> gate(p);
      pack_weights<tf32>(gate, p.resources, true);
      auto kernel = channel_gate_backward_kernel<tf32, true, T>;
      if constexpr (!std::is_same_v<T, double>) {  // to which speed is no matter
        if (!many) kernel = channel_gate_backward_kernel<tf32, false, T>;
      }
      launch("edge_gate_backward", p.resources, blocks, 32 * kBackwardWarps<T>, 0, kernel, gate,
             grad, grad_e, grad_m, partials);
    });
    sum_partials(partials, ChannelColumns<Acc>(p));
  }

  template <class Columns>
  void sum_partials(const Acc* partials, const Columns& to) const {
    launch("edge_gate_backward: sums", p.resources, divide_up<int64_t>(columns, 32), 1024, 0,
           sum_partials_kernel<Acc, Columns>, partials, rows, to);
  }
};

}  // namespace

size_t edge_gate_workspace(const EdgeGate& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.gates != 1) bytes = ChannelGate<T>(p).packed_count(false) * sizeof(Accumulate<T>);
  });
  return bytes;
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  const DeviceGuard guard(p.resources.device);
  with_float(p.e.dtype, [&](auto* type) { forward<std::remove_pointer_t<decltype(type)>>(p); });
}

size_t edge_gate_backward_workspace(const EdgeGateBackward& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    bytes = Backward<std::remove_pointer_t<decltype(type)>>(p).workspace();
  });
  return bytes;
}

void edge_gate_backward_launch(const EdgeGateBackward& p) {
  const DeviceGuard guard(p.resources.device);
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (!p.size.empty()) return Backward<T>(p).launch_all();
    // Nothing is gated, so nothing has a gradient; what there is of m and of weights gets zero.
    const auto zero = [&](void* to, int64_t count, size_t size) {
      if (count == 0) return;
      check(cudaMemsetAsync(to, 0, count * size, static_cast<cudaStream_t>(p.resources.stream)),
            "edge_gate_backward");
    };
    zero(p.grad_m.data, p.size.batch * p.main_channels * p.size.voxels(), sizeof(T));
    zero(p.grad_weight_e, p.gates * p.size.channels, sizeof(Accumulate<T>));
    zero(p.grad_weight_m, p.gates * p.main_channels, sizeof(Accumulate<T>));
    zero(p.grad_bias, p.gates, sizeof(Accumulate<T>));
  });
}

}  // namespace egcnn::cuda
