// GroupNorm and ReLU: the moments of each channel of each block, those of each group, the values.
#include "group_norm_relu.cuh"

namespace egcnn::cuda {
namespace {

// Around a pivot, a thread's first value, which is as near to its mean as its variance says.
template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    norm_moments_kernel(NormGrid grid, const T* __restrict__ x,
                        NormPair<Accumulate<T>>* __restrict__ partials) {
  using Acc = Accumulate<T>;
  __shared__ NormMoments<Acc> shared[kNormThreads];
  NormThread thread(grid, blockIdx.x);
  while (thread.next_channel()) {
    NormMoments<Acc> moments = {0, 0, 0};
    if (thread.has_voxels()) {
      const Acc pivot = widen(x[thread.first_element()]);
      Acc sum = 0, square = 0;
      thread.for_elements([&](int64_t at) { return x[at]; },
                          [&](int64_t, T value) {
                            const Acc distance = widen(value) - pivot;
                            sum += distance;
                            square += distance * distance;
                          });
      const Acc count = Acc(thread.elements());
      moments = {count, pivot + sum / count, square - sum * sum / count};
    }
    thread.reduce(shared, moments, [&](const NormMoments<Acc>& all) {
      partials[blockIdx.x * grid.members + thread.member()] = {all.mean, all.squares};
    });
  }
}

// One group a block.
template <class Acc>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    norm_groups_kernel(NormGrid grid, const NormPair<Acc>* __restrict__ partials, double eps,
                       Acc* __restrict__ mean, Acc* __restrict__ rstd) {
  __shared__ NormMoments<Acc> shared[kNormThreads];
  const int64_t of_group = grid.channels / grid.groups;
  const int64_t sample = divide(blockIdx.x, grid.groups);
  const int64_t first = (blockIdx.x - sample * grid.groups) * of_group;
  NormMoments<Acc> moments = {0, 0, 0};
  for (int64_t i = threadIdx.x; i < of_group * grid.chunks; i += kNormThreads) {
    const int64_t chunk = divide(i, of_group), channel = first + i - chunk * of_group;
    const NormPair<Acc> part = partials[grid.partial(sample, channel, chunk)];
    moments += NormMoments<Acc>{Acc(grid.chunk_size(chunk)), part.first, part.second};
  }
  reduce_block(shared, moments);
  if (threadIdx.x > 0) return;
  mean[blockIdx.x] = shared[0].mean;
  rstd[blockIdx.x] = Acc(1 / sqrt(double(shared[0].squares / shared[0].count) + eps));
}

// The blocks read last by norm_moments_kernel come first: they may still be cached.
template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    normalize_kernel(NormGrid grid, NormParameters<Accumulate<T>> p, const T* __restrict__ x,
                     T* __restrict__ out) {
  using Acc = Accumulate<T>;
  NormThread thread(grid, gridDim.x - 1 - blockIdx.x);
  while (thread.next_channel()) {
    if (!thread.has_channel()) continue;
    const NormChannel<Acc> channel(p, thread);
    thread.for_elements([&](int64_t at) { return x[at]; },
                        [&](int64_t at, T value) {
                          const Acc y = channel(widen(value) - channel.mean);
                          out[at] = narrow<T>(y < 0 ? 0 : y);  // NaN stays NaN
                        });
  }
}

}  // namespace

size_t group_norm_relu_workspace(const GroupNormReLU& p) {
  const int64_t pair = 2 * accumulator_bytes(p.x.dtype);
  return p.size.empty() ? 0 : NormGrid(p).partials() * pair;
}

void group_norm_relu_launch(const GroupNormReLU& p) {
  if (p.size.empty()) {
    const int64_t bytes = p.size.batch * p.groups * accumulator_bytes(p.x.dtype);
    clear("group_norm_relu", p.resources, p.mean, bytes);
    return clear("group_norm_relu", p.resources, p.rstd, bytes);
  }
  with_float(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulate<T>;
    const NormGrid grid(p);
    const NormParameters<Acc> parameters(p);
    const T* const x = static_cast<const T*>(p.x.data);
    auto* const partials = static_cast<NormPair<Acc>*>(p.resources.workspace);
    launch("group_norm_relu: moments", p.resources, grid.blocks(), kNormThreads, 0,
           norm_moments_kernel<T>, grid, x, partials);
    launch("group_norm_relu: groups", p.resources, grid.samples * grid.groups, kNormThreads, 0,
           norm_groups_kernel<Acc>, grid, partials, p.eps, parameters.mean, parameters.rstd);
    launch("group_norm_relu", p.resources, grid.blocks(), kNormThreads, 0, normalize_kernel<T>,
           grid, parameters, x, static_cast<T*>(p.out.data));
  });
}

}  // namespace egcnn::cuda
