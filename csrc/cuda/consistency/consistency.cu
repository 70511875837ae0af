// The consistency loss (Eqs. 7 and 8), forward. Only edge voxels count, and only their 3x3x3
// neighbourhoods are read, so noise and softmax are computed in that band alone. Each block takes
// a tile of the volume and there
//   marks the candidates, voxels whose neighbourhood is not constant: no other is an edge,
//   draws the sample in the band around them,
//   compares at each edge: | ‖∇p‖ - ‖∇y‖ |.
//
// All sums are of integers, so the result does not depend on the order of the atomics.
#include "plan.cuh"

namespace egcnn::cuda {
namespace {

__device__ unsigned to_fixed(float mismatch, int) {
  return unsigned(__float2int_rn(mismatch * float(1 << kFloatFractionBits)));
}
__device__ unsigned long long to_fixed(double mismatch, int bits) {
  return (unsigned long long)(llrint(ldexp(mismatch, bits)));
}

// A tile's sums, in shared memory: a class has the number of its edges and, in pieces, the sum of
// their mismatches. 32-bit atomics need not be waited for, and pieces leave them room for carries.
template <class Acc>
struct Sums {
  using Amount = decltype(to_fixed(Acc(), 0));
  static constexpr int kPieceBits = 22, kPieces = divide_up<int>(8 * sizeof(Amount), kPieceBits);
  static constexpr int kWords = 1 + kPieces;
  static_assert(2 * ForwardBox::kCoreRows * ForwardBox::kWidth / kWarpSize <=
                    1 << (32 - kPieceBits),
                "pieces hold what all warps add");

  // Adds the edges of a warp's `lanes`. Call with all its lanes, each with its mismatch.
  static __device__ void add(uint32_t* sums, int c, unsigned lanes, Amount mismatch) {
    const int lane = lane_index();
    mismatch = warp_sum(mismatch);
    if (lane >= kWords) return;
    const int bits = kPieceBits * (lane - 1);
    const uint32_t piece = uint32_t(mismatch >> max(bits, 0)) & ((1u << kPieceBits) - 1);
    atomicAdd(sums + c * kWords + lane, lane == 0 ? uint32_t(__popc(lanes)) : piece);
  }

  static __device__ void add_to_totals(const uint32_t* sums, int classes,
                                       unsigned long long* totals) {
#pragma unroll 1
    for (int c = threadIdx.x; c < classes; c += kThreads) {
      const uint32_t* of = sums + c * kWords;
      if (of[0] == 0) continue;
      unsigned long long amount = 0;
      for (int i = kPieces; i > 0; --i) amount = (amount << kPieceBits) + of[i];
      atomicAdd(totals + 2 * c, (unsigned long long)(of[0]));
      atomicAdd(totals + 2 * c + 1, amount);
    }
  }
};

// Adds the listed edges and their mismatches to the sums.
template <class B, class Acc>
__device__ __forceinline__ void compare(const Task& t, const uint8_t* truth,
                                        const Samples<Acc>& samples, const List& list, int count,
                                        uint32_t* sums) {
  for_each_edge<B>(
      t, truth, samples, list, count,
      [&](const Position& at, int c, unsigned lanes, int k, const Gradients& of_truth,
          const Gradients& of_hard) {
        typename Sums<Acc>::Amount amount = 0;
        if (lanes >> lane_index() & 1) {
          const Acc mismatch =
              term<B>(of_truth, of_hard, k, samples.soft, c * B::kBytes + at.index).mismatch;
          if (mismatch == mismatch) {
            amount = to_fixed(mismatch < 0 ? -mismatch : mismatch, t.fraction_bits);
          } else {
            atomicExch(t.invalid, 1);
          }
        }
        Sums<Acc>::add(sums, c, lanes, amount);
      });
}

template <class T>
__global__ void __launch_bounds__(kThreads, ForwardBox::kBlocks)
    compare_kernel(const __grid_constant__ Task t) {
  using B = ForwardBox;
  using Acc = Accumulate<T>;
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ union {
    Changes<B> changes;
    List list;
  } memory;
  __shared__ uint4 candidates[B::kSetRows];
  __shared__ int64_t rows[B::kRows];
  __shared__ uint32_t sums[kMaxClasses * Sums<Acc>::kWords];
  alignas(16) __shared__ uint32_t keys[math::kPhiloxKeys];
  __shared__ Tile tile;
  start_tiles(tile);
  while (next_tile<B>(t, tile)) {
    locate_rows<B>(t, tile, rows);
    __syncthreads();
    if (mark_candidates<B>(t, tile, rows, truth, memory.changes, candidates)) {
      const auto samples = Samples<Acc>::template of<B>(t, hard);
      List& list = memory.list;
      make_keys(t, keys);
      for (int i = threadIdx.x; i < t.classes * Sums<Acc>::kWords; i += kThreads) sums[i] = 0;
      draw<T, B>(t, tile, rows, keys, candidates, list, samples);
      for_each_list<B>(
          list, [&](int z, int y) { return candidates[B::set_row(z, y)]; },
          [&](int count) { compare<B>(t, truth, samples, list, count, sums); });
      Sums<Acc>::add_to_totals(sums, t.classes, t.totals + 2 * tile.pair);
    }
  }
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

Plan plan_of(const Consistency& p) {
  Plan plan;
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    plan = make_plan<ForwardBox>({p, nullptr, {}}, compare_kernel<T>);
  });
  return plan;
}

}  // namespace

size_t consistency_workspace(const Consistency& p) { return p.size.empty() ? 0 : plan_of(p).bytes; }

void consistency_launch(const Consistency& p) {
  if (p.size.empty()) {
    clear("consistency", p.resources, p.edges, p.size.batch * p.size.channels * sizeof *p.edges);
    return clear("consistency", p.resources, p.loss, accumulator_bytes(p.logits.dtype));
  }
  const Plan plan = plan_of(p);
  const Task& t = plan.task;
  // `totals` and `invalid` come first in the workspace, `soft` right behind them.
  clear("consistency", p.resources, t.totals,
        static_cast<char*>(t.soft) - reinterpret_cast<char*>(t.totals));
  launch("consistency: compare", p.resources, plan.blocks, kThreads, 0, plan.kernel, t);
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("consistency: loss", p.resources, 1, 32, 0, loss_kernel<Accumulate<T>>, t);
  });
}

}  // namespace egcnn::cuda
