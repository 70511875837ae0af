// The gradients of the edge gate with one attention value per voxel.
#include "edge_gate.cuh"
#include "partials.cuh"
#include "voxel.cuh"

namespace egcnn::cuda {
namespace {

// partial += slopes · x over the tile's voxels, for each channel of a chunk.
template <class T, class Acc>
__device__ __forceinline__ void add_weight_gradients(const Acc (&slopes)[kLaneVoxels],
                                                     const LaneValues<T>& x, int64_t channels,
                                                     int64_t chunk, Acc* partial) {
  Acc sums[kLaneChannels];
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    sums[c] = 0;
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) sums[c] += slopes[v] * x(c, v);
  }
  const Acc sum = sum_over_voxels(sums);
  const int64_t channel = chunk * kChunk + lane_channel() + lane_index() / 4;
  if (channel < channels) partial[channel] += sum;
}

// Computes the attention values, and converts slopes from d loss / d alpha to those in the
// activation's argument.
template <class Acc>
__device__ __forceinline__ void activate(const Acc (&sums)[kLaneVoxels], Acc bias, bool relu,
                                         Acc (&alpha)[kLaneVoxels], Acc (&slopes)[kLaneVoxels],
                                         Acc& grad_bias) {
#pragma unroll
  for (int v = 0; v < kLaneVoxels; ++v) {
    const Acc sum = sums[v] + bias;
    alpha[v] = attention(sum, relu);
    slopes[v] *= attention_slope(sum, alpha[v], relu);
    grad_bias += slopes[v];
  }
}

// grad_e = g + g alpha + w_e slope, for a chunk.
template <class T, Layout kLayout, class Acc>
__device__ __forceinline__ void write_grad_e(const Gate<T, kLayout>& gate,
                                             const View<T, kLayout>& grad_e,
                                             const LaneVoxels& place, int64_t chunk,
                                             const LaneValues<T>& g,
                                             const Acc (&alpha)[kLaneVoxels],
                                             const Acc (&slopes)[kLaneVoxels]) {
  Acc w[kLaneChannels];
  load_weights(gate.weight_e, gate.e_channels, chunk, w);
  LaneArray<Acc> result;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) {
      const Acc y = g(c, v);
      result[c][v] = y + y * alpha[v] + w[c] * slopes[v];
    }
  }
  store(grad_e, gate.e_channels, place, chunk, result);
}

// grad_m = w_m slope, for a chunk.
template <class T, Layout kLayout, class Acc>
__device__ __forceinline__ void write_grad_m(const Gate<T, kLayout>& gate,
                                             const View<T, kLayout>& grad_m,
                                             const LaneVoxels& place, int64_t chunk,
                                             const Acc (&slopes)[kLaneVoxels]) {
  Acc w[kLaneChannels];
  load_weights(gate.weight_m, gate.m_channels, chunk, w);
  LaneArray<Acc> result;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) result[c][v] = w[c] * slopes[v];
  }
  store(grad_m, gate.m_channels, place, chunk, result);
}

// Each warp sums the gradients of weights and bias in its own row of `partials`.
template <class T, Layout kLayout>
__global__ void __launch_bounds__(kThreads, kVoxelBlocks<T>)
    voxel_gate_backward_kernel(Gate<T, kLayout> gate, View<T, kLayout> grad,
                               View<T, kLayout> grad_e, View<T, kLayout> grad_m,
                               Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  const int64_t ce = gate.e_channels, cm = gate.m_channels;
  Acc* partial = partials + warp_index() * (ce + cm + 1);
  for (int64_t i = lane_index(); i < ce + cm; i += kWarpSize) partial[i] = 0;
  __syncwarp();
  Acc grad_bias = 0;

  for (uint32_t tile = warp_index(); tile < gate.tiles; tile += warp_count()) {
    const LaneVoxels place = gate.lane_voxels(tile);
    LaneValues<T> e, g, m;  // keep the first chunks, as in the forward kernel
    load(gate.e, ce, place, 0, e);
    load(grad, ce, place, 0, g);
    if (cm > 0) load(gate.m, cm, place, 0, m);
    Acc sums[kLaneVoxels] = {}, slopes[kLaneVoxels] = {}, alpha[kLaneVoxels];
    add_dot(gate.weight_e, ce, 0, e, sums);
    add_dot(g, e, slopes);  // d out / d alpha = e
    for (int64_t chunk = 1; chunk < gate.e_chunks(); ++chunk) {
      LaneValues<T> x, y;
      load(gate.e, ce, place, chunk, x);
      load(grad, ce, place, chunk, y);
      add_dot(gate.weight_e, ce, chunk, x, sums);
      add_dot(y, x, slopes);
    }
    if (cm > 0) add_dot(gate.weight_m, cm, 0, m, sums);
    for (int64_t chunk = 1; chunk < gate.m_chunks(); ++chunk) {
      LaneValues<T> x;
      load(gate.m, cm, place, chunk, x);
      add_dot(gate.weight_m, cm, chunk, x, sums);
    }
    sum_over_channels(sums);
    sum_over_channels(slopes);
    activate(sums, *gate.bias, gate.relu, alpha, slopes, grad_bias);

    for (int64_t chunk = 0; chunk < gate.e_chunks(); ++chunk) {
      if (chunk > 0) {
        load(gate.e, ce, place, chunk, e);
        load(grad, ce, place, chunk, g);
      }
      add_weight_gradients(slopes, e, ce, chunk, partial);
      write_grad_e(gate, grad_e, place, chunk, g, alpha, slopes);
    }
    for (int64_t chunk = 0; chunk < gate.m_chunks(); ++chunk) {
      if (chunk > 0) load(gate.m, cm, place, chunk, m);
      add_weight_gradients(slopes, m, cm, chunk, partial + ce);
      write_grad_m(gate, grad_m, place, chunk, slopes);
    }
  }

#pragma unroll
  for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
    grad_bias += __shfl_xor_sync(kAllLanes, grad_bias, lanes);
  }
  if (lane_index() == 0) partial[ce + cm] = grad_bias;
}

// --- Launches ---

// The columns of a row of partials: weights of e, weights of m, bias.
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

template <class T, Layout kLayout>
int64_t backward_blocks(const EdgeGateBackward& p) {
  using Acc = Accumulate<T>;
  return limit_blocks<Acc>(block_count(p, voxel_gate_backward_kernel<T, kLayout>, kWarps), kWarps,
                           VoxelColumns<Acc>(p).count());
}

template <class T>
void launch_backward(const EdgeGateBackward& p) {
  using Acc = Accumulate<T>;
  const int64_t voxels = p.size.voxels();
  Acc* partials = static_cast<Acc*>(p.resources.workspace);
  with_layout<T>(p, [&](auto layout) {
    const int64_t blocks = backward_blocks<T, layout>(p);
    launch("edge_gate_backward", p.resources, blocks, kThreads, 0,
           voxel_gate_backward_kernel<T, layout>, Gate<T, layout>(p),
           View<T, layout>(p.grad, p.size.channels, voxels),
           View<T, layout>(p.grad_e, p.size.channels, voxels),
           View<T, layout>(p.grad_m, p.main_channels, voxels), partials);
    sum_partials(partials, blocks * kWarps, VoxelColumns<Acc>(p), p.resources);
  });
}

}  // namespace

size_t voxel_gate_backward_workspace(const EdgeGateBackward& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulate<T>;
    // For any layout: pointers, on whose alignment it depends, are not known yet.
    int64_t blocks = backward_blocks<T, Layout::any>(p);
    if constexpr (!std::is_same_v<T, double>) {
      blocks = std::max({blocks, backward_blocks<T, Layout::contiguous>(p),
                         backward_blocks<T, Layout::channels_last>(p)});
    }
    bytes = blocks * kWarps * VoxelColumns<Acc>(p).count() * sizeof(Acc);
  });
  return bytes;
}

void voxel_gate_backward_launch(const EdgeGateBackward& p) {
  with_float(p.e.dtype,
             [&](auto* type) { launch_backward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
