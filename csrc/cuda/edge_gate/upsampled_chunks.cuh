// The gradients of the edge gate with an interpolated e, for any number of chunks. A block marches
// for one chunk of results, which it sums in shared memory, and recomputes the slopes of every
// chunk of gates for it: slow, but without limits.
#pragma once

#include "upsampled_backward.cuh"

namespace egcnn::cuda {
namespace {

template <bool tf32, class T>
__global__ void __launch_bounds__(kMarchThreads<T>, 2)
    upsampled_gate_chunks_backward_kernel(UpsampledGate<T, true> gate,
                                          Columns<Accumulate<T>> columns, AnyView<T> grad,
                                          AnyView<T> grad_m, Accumulate<T>* partials, bool add) {
  using Acc = Accumulate<T>;
  constexpr int warps = kMarchWarps<T>;
  constexpr bool split = kSplit<tf32, T>;
  __shared__ Staging<T> stagings[warps];
  __shared__ PlaneSums<Acc, warps> planes;
  __shared__ BiasSums<Acc, warps> bias_sums;
  auto& staging = stagings[threadIdx.x / kWarpSize];
  const int gate_chunks = int(gate.gate_chunks()), chunks = int(gate.chunks());
  const int64_t weights = int64_t(gate_chunks) * chunks * kFragments;
  const int64_t count = weights + gate_chunks * kChunk;
  Acc* const partial = partials + blockIdx.x * count;
  for (int64_t i = threadIdx.x; i < count && !add; i += blockDim.x) partial[i] = 0;
  __syncthreads();

  for (uint32_t index = blockIdx.x; index < uint32_t(columns.count) * chunks; index += gridDim.x) {
    const Column<Acc> column(columns, index / uint32_t(chunks));
    const int chunk = int(index % uint32_t(chunks));
    const bool of_e = chunk < gate_chunks;
    March<Acc, warps> march(columns, column, of_e ? chunk : 0, planes);
#pragma unroll 1
    for (RowVoxels place = first_place(gate, columns, column); place.z < column.z_end;
         step(columns.grid, place)) {
      if (of_e) march.advance(place.z);
      Acc sums[kLaneVoxels] = {};
#pragma unroll 1
      for (int gates = 0; gates < gate_chunks; ++gates) {
        LaneArray<Acc> slopes, result = {};
        gate_sums<tf32>(gate, place, gates, slopes);
        Interpolated<T> e;  // again, because registers are short
        interpolate(gate.coarse, place, gates, e);
        LaneValues<T> g;
        load(grad, gate.e_channels, place, gates, g);
        make_slopes(e, g, gate.relu, slopes, [&](int c, int v, Acc value) {
          if (chunk == gates) result[c][v] += value;
        });
        if (chunk == 0) bias_sums.own() = sum_slopes(slopes);
        if (gate.gates == 1) tie_slopes(sums, gates == gate_chunks - 1, slopes);
        round_slopes<split>(slopes);
        staging.store_slopes(slopes);
        multiply<split, split>(slopes, gate.weights.grad_fragments(gates, chunk), result);
        if (of_e) {
          march.add(place.z, result);
          interpolate(gate.coarse, place, chunk, e);
          staging.store_values(narrowed<T>(e));
        } else {
          planes.add(0, Acc(1), result);
          LaneValues<T> m;
          load(gate.m, gate.m_channels, place, chunk - gate_chunks, m);
          staging.store_values(m);
        }
        __syncthreads();
        if (chunk == 0 && threadIdx.x < kChunk) {
          partial[weights + gates * kChunk + threadIdx.x] += bias_sums.add();
        }
        add_product<split>(stagings, partial + int64_t(gates * chunks + chunk) * kFragments);
        __syncthreads();
      }
      if (!of_e) {
        LaneArray<Acc> result;
        planes.take(0, result);
        store(grad_m, gate.m_channels, place, chunk - gate_chunks, result);
      }
    }
    if (of_e) march.finish();
  }
}

}  // namespace
}  // namespace egcnn::cuda
