// The gradient of GroupNorm and ReLU: the sums of each channel of each block, those of each channel
// of a sample, what they say about each group and weight, the gradient of x.
#include "group_norm_relu.cuh"

namespace egcnn::cuda {
namespace {

// Sums of g, the gradient before the ReLU, and of g h with h = (x - mean) * rstd.
template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    norm_sums_kernel(NormGrid grid, NormParameters<Accumulate<T>> p, const T* __restrict__ x,
                     const T* __restrict__ grad, NormPair<Accumulate<T>>* __restrict__ partials) {
  using Acc = Accumulate<T>;
  __shared__ NormPair<Acc> shared[kNormThreads];
  const auto load = [&](int64_t at) { return NormPair<T>{x[at], grad[at]}; };
  NormThread thread(grid, blockIdx.x);
  while (thread.next_channel()) {
    NormPair<Acc> sums = {0, 0};
    if (thread.has_voxels()) {
      const NormChannel<Acc> channel(p, thread);
      thread.for_elements(load, [&](int64_t, const NormPair<T>& in) {
        const Acc distance = widen(in.first) - channel.mean;
        const Acc g = channel(distance) <= 0 ? 0 : widen(in.second);
        sums.first += g;
        sums.second += g * distance;
      });
      sums.second *= p.rstd[thread.group()];
    }
    thread.reduce(shared, sums, [&](const NormPair<Acc>& all) {
      partials[blockIdx.x * grid.members + thread.member()] = all;
    });
  }
}

// One channel of a sample a block.
template <class Acc>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    norm_channels_kernel(NormGrid grid, const NormPair<Acc>* __restrict__ partials,
                         NormPair<Acc>* __restrict__ channels) {
  __shared__ NormPair<Acc> shared[kNormThreads];
  const int64_t sample = divide(blockIdx.x, grid.channels);
  const int64_t channel = blockIdx.x - sample * grid.channels;
  NormPair<Acc> sums = {0, 0};
  for (int64_t chunk = threadIdx.x; chunk < grid.chunks; chunk += kNormThreads) {
    sums += partials[grid.partial(sample, channel, chunk)];
  }
  reduce_block(shared, sums);
  if (threadIdx.x == 0) channels[blockIdx.x] = shared[0];
}

// With means over the group, dx = rstd * (w g - mean(w g) - h * mean(w g h)), which is
// g * scale + (x - mean) * slope + offset. A thread has a group of a sample, and a channel of the
// weights.
template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    norm_factors_kernel(NormGrid grid, NormParameters<Accumulate<T>> p,
                        const NormPair<Accumulate<T>>* __restrict__ channels,
                        NormPair<Accumulate<T>>* __restrict__ factors,
                        Accumulate<T>* __restrict__ grad_weight,
                        Accumulate<T>* __restrict__ grad_bias) {
  using Acc = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * kNormThreads + threadIdx.x;
  if (i < grid.samples * grid.groups) {
    const int64_t of_group = grid.channels / grid.groups;
    const int64_t sample = divide(i, grid.groups), first = (i - sample * grid.groups) * of_group;
    NormPair<Acc> means = {0, 0};
    for (int64_t c = first; c < first + of_group; ++c) {
      const NormPair<Acc> sums = channels[sample * grid.channels + c];
      means += {p.weight[c] * sums.first, p.weight[c] * sums.second};
    }
    const Acc share = p.rstd[i] / Acc(of_group * grid.voxels);
    factors[i] = {-p.rstd[i] * share * means.second, -share * means.first};
  }
  if (i < grid.channels) {
    NormPair<Acc> sums = {0, 0};
    for (int64_t sample = 0; sample < grid.samples; ++sample) {
      sums += channels[sample * grid.channels + i];
    }
    grad_bias[i] = sums.first;
    grad_weight[i] = sums.second;
  }
}

template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    normalize_backward_kernel(NormGrid grid, NormParameters<Accumulate<T>> p,
                              const T* __restrict__ x, const T* __restrict__ grad,
                              const NormPair<Accumulate<T>>* __restrict__ factors,
                              T* __restrict__ grad_x) {
  using Acc = Accumulate<T>;
  const auto load = [&](int64_t at) { return NormPair<T>{x[at], grad[at]}; };
  NormThread thread(grid, gridDim.x - 1 - blockIdx.x);
  while (thread.next_channel()) {
    if (!thread.has_channel()) continue;
    const NormChannel<Acc> channel(p, thread);
    const auto [slope, offset] = factors[thread.group()];
    thread.for_elements(load,
                        [&, slope = slope, offset = offset](int64_t at, const NormPair<T>& in) {
                          const Acc distance = widen(in.first) - channel.mean;
                          const Acc g = channel(distance) <= 0 ? 0 : widen(in.second);
                          grad_x[at] = narrow<T>(g * channel.scale + (distance * slope + offset));
                        });
  }
}

}  // namespace

size_t group_norm_relu_backward_workspace(const GroupNormReLUBackward& p) {
  if (p.size.empty()) return 0;
  const NormGrid grid(p);
  const int64_t pair = 2 * accumulator_bytes(p.x.dtype);
  return (grid.partials() + grid.samples * (grid.channels + grid.groups)) * pair;
}

void group_norm_relu_backward_launch(const GroupNormReLUBackward& p) {
  if (p.size.empty()) {
    const int64_t bytes = p.size.channels * accumulator_bytes(p.x.dtype);
    clear("group_norm_relu_backward", p.resources, p.grad_weight, bytes);
    return clear("group_norm_relu_backward", p.resources, p.grad_bias, bytes);
  }
  with_float(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulate<T>;
    const NormGrid grid(p);
    const NormParameters<Acc> parameters(p);
    const T* const x = static_cast<const T*>(p.x.data);
    const T* const grad = static_cast<const T*>(p.grad.data);
    auto* const partials = static_cast<NormPair<Acc>*>(p.resources.workspace);
    auto *const channels = partials + grid.partials(), *const factors =
                                                           channels + grid.samples * grid.channels;
    launch("group_norm_relu_backward: sums", p.resources, grid.blocks(), kNormThreads, 0,
           norm_sums_kernel<T>, grid, parameters, x, grad, partials);
    launch("group_norm_relu_backward: channels", p.resources, grid.samples * grid.channels,
           kNormThreads, 0, norm_channels_kernel<Acc>, grid, partials, channels);
    const int64_t threads = std::max(grid.samples * grid.groups, grid.channels);
    launch("group_norm_relu_backward: factors", p.resources, divide_up(threads, kNormThreads),
           kNormThreads, 0, norm_factors_kernel<T>, grid, parameters, channels, factors,
           static_cast<Acc*>(p.grad_weight), static_cast<Acc*>(p.grad_bias));
    launch("group_norm_relu_backward", p.resources, grid.blocks(), kNormThreads, 0,
           normalize_backward_kernel<T>, grid, parameters, x, grad, factors,
           static_cast<T*>(p.grad_x.data));
  });
}

}  // namespace egcnn::cuda
