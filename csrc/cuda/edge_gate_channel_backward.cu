// The gradients of the edge gate with one attention value per channel of e.
//
// `many` stands for more than one chunk of e or of m. With one of each, as in most networks where
// volumes are large, the gradients of the weights are summed in shared memory; otherwise in the
// block's row of `partials`. With more than one chunk of gates, their slopes are recomputed for
// each chunk of results: slow, but without limits.
#include "edge_gate.cuh"
#include "edge_gate_staging.cuh"

namespace egcnn::cuda {
namespace {

// Blocks per multiprocessor that registers and shared memory have to allow.
template <bool many, class T>
constexpr int kChannelBackwardBlocks = sizeof(T) == 2 && !many ? 3 : 2;

// The slopes of the loss in the arguments of a chunk of gates' activations, staged too. `x` returns
// the same chunk of e. Where `chunk` is that chunk, `result` gains the gradient past the gates.
template <bool tf32, bool many, class T>
__device__ __forceinline__ void make_slopes(const ChannelGate<T>& gate, const AnyView<T>& grad,
                                            const LaneVoxels& place, int64_t gates, int64_t chunk,
                                            int64_t gate_chunks, int64_t chunks, LaneValues<T>& x,
                                            LaneArray<Accumulate<T>>& slopes,
                                            LaneArray<Accumulate<T>>& result, Staging<T>& staging) {
  using Acc = Accumulate<T>;
  LaneValues<T> g;
  load(gate.e, gate.e_channels, place, gates, x);
  if (!many) load(grad, gate.e_channels, place, gates, g);
  gate_sums<tf32, many ? 1 : 2>(gate, place, gates, gate_chunks, chunks, x, slopes);
  if (many) load(grad, gate.e_channels, place, gates, g);  // later, where registers are short
  Acc grad_bias[kLaneChannels] = {};
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int v = 0; v < kLaneVoxels; ++v) {
      const Acc y = g(c, v), alpha = math::gate(slopes[c][v], gate.relu);
      const Acc slope = math::gate_slope(slopes[c][v], alpha, gate.relu);
      const Acc d = y * x(c, v) * slope;
      if (chunk == gates) result[c][v] = y * alpha + (many ? y + result[c][v] : y);
      slopes[c][v] = factor<kSplit<tf32, T>>(d);
      grad_bias[c] += d;
    }
  }
  staging.store_slopes(slopes);
  staging.bias[lane_channel() + lane_index() / 4] = sum_over_voxels(grad_bias);
}

// Writes a chunk of the gradient of e, or of m.
template <class T>
__device__ __forceinline__ void store_chunk(const ChannelGate<T>& gate, const AnyView<T>& grad_e,
                                            const AnyView<T>& grad_m, const LaneVoxels& place,
                                            int64_t gate_chunks, int64_t chunk,
                                            LaneArray<Accumulate<T>>& result) {
  const bool of_e = chunk < gate_chunks;
  AnyView<T> view = grad_e;
  if (!of_e) view = grad_m;
  store(view, of_e ? gate.e_channels : gate.m_channels, place, of_e ? chunk : chunk - gate_chunks,
        result);
}

template <bool tf32, bool many, class T>
__global__ void __launch_bounds__(kWarpSize* kBackwardWarps<T>, kChannelBackwardBlocks<many, T>)
    channel_gate_backward_kernel(ChannelGate<T> gate, AnyView<T> grad, AnyView<T> grad_e,
                                 AnyView<T> grad_m, Accumulate<T>* partials) {
  using Acc = Accumulate<T>;
  constexpr int warps = kBackwardWarps<T>;
  constexpr bool split = kSplit<tf32, T>;
  __shared__ Staging<T> stagings[warps];
  __shared__ __align__(16) Acc shared_products[many ? 4 : 2 * kFragments];
  const int warp = threadIdx.x / kWarpSize;
  Staging<T>& staging = stagings[warp];
  const int64_t gate_chunks = many ? gate.gate_chunks() : 1, chunks = many ? gate.chunks() : 2;
  const int64_t weights = gate_chunks * chunks * kFragments;
  Acc* partial = partials + blockIdx.x * (weights + gate_chunks * kChunk);
  Acc* const products = many ? partial : shared_products;
  for (int64_t i = threadIdx.x; i < weights; i += blockDim.x) products[i] = 0;
  for (int64_t i = threadIdx.x; i < gate_chunks * kChunk; i += blockDim.x) partial[weights + i] = 0;
  __syncthreads();

  for (uint32_t first = blockIdx.x * warps; first < gate.tiles; first += gridDim.x * warps) {
    const LaneVoxels place = gate.lane_voxels(first + warp);
    LaneArray<Acc> slopes;
#pragma unroll(many ? 1 : 2)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      LaneArray<Acc> result = {};
      for (int64_t gates = 0; gates < gate_chunks; ++gates) {
        LaneValues<T> x;
        if (chunk == 0 || gate_chunks > 1) {
          make_slopes<tf32, many>(gate, grad, place, gates, chunk, gate_chunks, chunks, x, slopes,
                                  result, staging);
        }
        if (chunk != gates) load_chunk(gate, place, gate_chunks, chunk, x);
        multiply<split, split>(slopes, gate.weights.grad_fragments(gates, chunk), result);
        if (gates == gate_chunks - 1) {
          store_chunk(gate, grad_e, grad_m, place, gate_chunks, chunk, result);
        }
        staging.store_values(x);
        __syncthreads();
        if (chunk == 0 && warp == 0) {
          Acc sum = 0;
#pragma unroll
          for (int i = 0; i < warps; ++i) sum += stagings[i].bias[lane_index()];
          partial[weights + gates * kChunk + lane_index()] += sum;
        }
#pragma unroll
        for (int quarter = 0; quarter < 4; quarter += warps) {
          add_quarter<split>(stagings, quarter + warp,
                             products + (gates * chunks + chunk) * kFragments);
        }
        __syncthreads();
      }
    }
  }
  if (!many) {
    for (int i = threadIdx.x; i < weights; i += blockDim.x) partial[i] = products[i];
  }
}

// --- Launches ---

template <class T, bool tf32>
auto choose_kernel(bool many) {
  auto kernel = channel_gate_backward_kernel<tf32, true, T>;
  if constexpr (!std::is_same_v<T, double>) {  // which serves gradient checks: one kernel will do
    if (!many) kernel = channel_gate_backward_kernel<tf32, false, T>;
  }
  return kernel;
}

// The workspace holds the packed weights, then the partials, one row per block.
template <class T, bool tf32>
struct Plan {
  using Acc = Accumulate<T>;
  bool many;
  int64_t packed, columns, blocks;

  explicit Plan(const EdgeGateBackward& p)
      : many(std::is_same_v<T, double> || p.size.channels > kChunk || p.main_channels > kChunk ||
             p.main_channels == 0),
        packed(PackedWeights<T>(p).count(true)), columns(ChannelColumns<Acc>(p).count()),
        blocks(limit_blocks<Acc>(block_count(p, choose_kernel<T, tf32>(many), kBackwardWarps<T>), 1,
                                 columns)) {}

  size_t workspace() const { return size_t(packed + blocks * columns) * sizeof(Acc); }
};

template <class T>
void launch_backward(const EdgeGateBackward& p) {
  using Acc = Accumulate<T>;
  const int64_t voxels = p.size.voxels();
  with_tf32<T>(p, [&](auto tf32) {
    const Plan<T, tf32> plan(p);
    Acc* partials = static_cast<Acc*>(p.resources.workspace) + plan.packed;
    pack_weights<T, tf32>(p, true);
    launch("edge_gate_backward", p.resources, plan.blocks, kWarpSize * kBackwardWarps<T>, 0,
           choose_kernel<T, tf32>(plan.many), ChannelGate<T>(p),
           AnyView<T>(p.grad, p.size.channels, voxels),
           AnyView<T>(p.grad_e, p.size.channels, voxels),
           AnyView<T>(p.grad_m, p.main_channels, voxels), partials);
    sum_partials(partials, plan.blocks, ChannelColumns<Acc>(p), p.resources);
  });
}

}  // namespace

size_t channel_gate_backward_workspace(const EdgeGateBackward& p) {
  size_t bytes = 0;
  with_float(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_tf32<T>(p, [&](auto tf32) { bytes = Plan<T, tf32>(p).workspace(); });
  });
  return bytes;
}

void channel_gate_backward_launch(const EdgeGateBackward& p) {
  with_float(p.e.dtype,
             [&](auto* type) { launch_backward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
