// The gradients of the edge gate with one attention value per channel, for any number of chunks.
// The slopes of a chunk of gates are recomputed for each chunk of results, and the gradients of the
// weights summed in the block's row of `partials`: slow, but without limits.
#pragma once

#include "staging.cuh"

namespace egcnn::cuda {
namespace {

// The slopes of the loss in the arguments of a chunk of gates' activations. `x` returns the same
// chunk of e. Where `chunk` is that chunk, `result` gains the gradient past the gates.
template <bool tf32, class T>
__device__ __forceinline__ void make_slopes(const ChannelGate<T, true>& gate,
                                            const AnyView<T>& grad, const LaneVoxels& place,
                                            int64_t gates, int64_t chunk, LaneValues<T>& x,
                                            LaneArray<Accumulate<T>>& slopes,
                                            LaneArray<Accumulate<T>>& result) {
  using Acc = Accumulate<T>;
  LaneValues<T> g;
  load(gate.e, gate.e_channels, place, gates, x);
  gate_sums<tf32>(gate, place, gates, x, slopes);
  load(grad, gate.e_channels, place, gates, g);  // late, because registers are short
  make_slopes(x, g, gate.relu, slopes, [&](int c, int v, Acc value) {
    if (chunk == gates) result[c][v] += value;
  });
  round_slopes<kSplit<tf32, T>>(slopes);
}

// Writes a chunk of the gradient of e, or of m.
template <class T>
__device__ __forceinline__ void store_chunk(const ChannelGate<T, true>& gate,
                                            const AnyView<T>& grad_e, const AnyView<T>& grad_m,
                                            const LaneVoxels& place, int64_t chunk,
                                            const LaneArray<Accumulate<T>>& result) {
  const int64_t gate_chunks = gate.gate_chunks();
  const bool of_e = chunk < gate_chunks;
  AnyView<T> view = grad_e;
  if (!of_e) view = grad_m;
  store(view, of_e ? gate.e_channels : gate.m_channels, place, of_e ? chunk : chunk - gate_chunks,
        result);
}

template <bool tf32, class T>
__global__ void __launch_bounds__(kBackwardThreads<T>, 2)
    channel_gate_chunks_backward_kernel(ChannelGate<T, true> gate, AnyView<T> grad,
                                        AnyView<T> grad_e, AnyView<T> grad_m,
                                        Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  constexpr int warps = kBackwardWarps<T>;
  constexpr bool split = kSplit<tf32, T>;
  __shared__ Staging<T> stagings[warps];
  const int warp = threadIdx.x / kWarpSize;
  Staging<T>& staging = stagings[warp];
  const int64_t gate_chunks = gate.gate_chunks(), chunks = gate.chunks();
  const int64_t weights = gate_chunks * chunks * kFragments;
  const int64_t columns = weights + gate_chunks * kChunk;
  Acc* partial = partials + blockIdx.x * columns;
  for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) partial[i] = 0;
  __syncthreads();

  for (uint32_t first = blockIdx.x * warps; first < gate.tiles; first += gridDim.x * warps) {
    const LaneVoxels place = gate.lane_voxels(first + warp);
#pragma unroll 1
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      LaneArray<Acc> result = {};
      for (int64_t gates = 0; gates < gate_chunks; ++gates) {
        LaneValues<T> x;
        LaneArray<Acc> slopes;
        make_slopes<tf32>(gate, grad, place, gates, chunk, x, slopes, result);
        staging.store_slopes(slopes);
        if (chunk != gates) load_chunk(gate, place, chunk, x);
        multiply<split, split>(slopes, gate.weights.grad_fragments(gates, chunk), result);
        if (gates == gate_chunks - 1) store_chunk(gate, grad_e, grad_m, place, chunk, result);
        staging.store_values(x);
        __syncthreads();
        if (chunk == 0) {
          SlopeSums<warps>::store(SlopeSums<warps>::add(stagings),
                                  partial + weights + gates * kChunk);
        }
        add_product<split>(stagings, partial + (gates * chunks + chunk) * kFragments);
        __syncthreads();
      }
    }
  }
}

}  // namespace
}  // namespace egcnn::cuda
