// The consistency loss (Eqs. 7 and 8), forward. Only edge voxels count, and only their 3x3x3
// neighbourhoods are read, so noise and softmax are computed in that band alone. Each block takes
// a tile of the volume and there
//   marks the candidates, voxels whose neighbourhood is not constant: no other is an edge,
//   draws the sample in the band around them,
//   compares at each edge: | ‖∇p‖ - ‖∇y‖ |.
//
// All sums are of integers, so atomics may come in any order and the result is the same to the bit.
#include "consistency_plan.cuh"

namespace egcnn::cuda {
namespace {

__device__ unsigned to_fixed(float mismatch, int) {
  return unsigned(__float2int_rn(mismatch * float(1 << kFloatFractionBits)));
}
__device__ unsigned long long to_fixed(double mismatch, int bits) {
  return (unsigned long long)(llrint(ldexp(mismatch, bits)));
}

template <class V>
__device__ V warp_sum(V value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ unsigned warp_sum(unsigned value) { return __reduce_add_sync(kAllLanes, value); }
#endif

// Adds the listed edges and their mismatches to the totals.
template <class B, class Acc>
__device__ __forceinline__ void compare(const Task& t, const uint8_t* truth,
                                        const Samples<Acc>& samples, const List& list, int count,
                                        unsigned long long* totals) {
  const int lane = lane_index();
  for_each_edge<B>(
      t, truth, samples, list, count,
      [&](const Position& at, int c, unsigned lanes, int k, const Gradients& of_truth,
          const Gradients& of_hard) {
        decltype(to_fixed(Acc(), 0)) amount = 0;
        if (lanes >> lane & 1) {
          const Acc mismatch =
              term<B>(of_truth, of_hard, k, samples.soft, c * B::kBytes + at.index).mismatch;
          if (mismatch == mismatch) {
            amount = to_fixed(mismatch < 0 ? -mismatch : mismatch, t.fraction_bits);
          } else {
            atomicExch(t.invalid, 1);
          }
        }
        amount = warp_sum(amount);
        if (lane < 2) {
          atomicAdd(totals + 2 * c + lane,
                    (unsigned long long)(lane == 0 ? __popc(lanes) : amount));
        }
      });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    compare_kernel(const __grid_constant__ Task t, unsigned first_tile) {
  using B = ForwardBox;
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ union {
    Changes<B> changes;
    List list;
  } memory;
  __shared__ uint4 candidates[B::kSetRows];
  __shared__ int64_t rows[B::kRows];
  alignas(16) __shared__ uint32_t keys[math::kPhiloxKeys];
  __shared__ Tile tile;
  if (threadIdx.x == 0) tile = tile_at<B>(t, first_tile + blockIdx.x);
  __syncthreads();
  locate_rows<B>(t, tile, rows);
  __syncthreads();
  if (!mark_candidates<B>(t, tile, rows, truth, memory.changes, candidates)) return;

  const auto samples = Samples<Accumulate<T>>::template of<B>(t, hard);
  List& list = memory.list;
  make_keys(t, keys);
  draw<T, B>(t, tile, rows, keys, candidates, list, samples);
  for_each_list<B>(
      list, [&](int z, int y) { return candidates[B::set_row(z, y)]; },
      [&](int count) { compare<B>(t, truth, samples, list, count, t.totals + 2 * tile.pair); });
}

// One warp: the loss, and the number of edges for backward.
template <class Acc>
__global__ void loss_kernel(const __grid_constant__ Task t) {
  double loss = 0;
  for (int64_t i = threadIdx.x; i < t.p.size.batch * t.p.size.channels; i += 32) {
    const int64_t edges = int64_t(t.totals[2 * i]);
    loss += ldexp(double(t.totals[2 * i + 1]), -t.fraction_bits) * edge_weight(t, edges);
    t.p.edges[i] = edges;
  }
  loss = warp_sum(loss);
  if (threadIdx.x == 0) *static_cast<Acc*>(t.p.loss) = *t.invalid ? Acc(NAN) : Acc(loss);
}

void clear(const Resources& resources, void* data, size_t bytes) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(resources.stream)),
        "cudaMemsetAsync");
}

}  // namespace

size_t consistency_workspace(const Consistency& p) {
  return p.size.empty() ? 0 : make_plan({p, nullptr, {}}, true).bytes;
}

void consistency_launch(const Consistency& p) {
  if (p.size.empty()) {
    const bool is_double = p.logits.dtype == DType::f64;
    clear(p.resources, p.edges, p.size.batch * p.size.channels * sizeof *p.edges);
    return clear(p.resources, p.loss, is_double ? sizeof(double) : sizeof(float));
  }
  const Plan plan = make_plan({p, nullptr, {}}, true);
  const Task& t = plan.task;
  // `totals` and `invalid` come first in the workspace, `scales` right behind them.
  clear(p.resources, t.totals, static_cast<char*>(t.scales) - reinterpret_cast<char*>(t.totals));
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_tiles("consistency's compare_kernel", plan, tile_count<ForwardBox>(p), plan.blocks,
                 compare_kernel<T>);
    launch("consistency's loss_kernel", p.resources, 1, 32, 0, loss_kernel<Accumulate<T>>, t);
  });
}

}  // namespace egcnn::cuda
