// The gradient of the sums over voxels that Eqs. 4 to 6 are made of.
#include "region_sums.cuh"

namespace egcnn::cuda {
namespace {

// One thread's voxels of one channel.
template <class T>
__device__ __forceinline__ void write(const RegionSumsBackward& p, const Voxels<T>& voxels,
                                      int64_t batch, int64_t channel,
                                      const Accumulate<T> (&grad)[kVoxels]) {
  T* to =
      static_cast<T*>(p.grad_logits.data) + p.grad_logits.offset(batch, channel, voxels.first());
#pragma unroll
  for (int i = 0; i < kVoxels; ++i) {
    if (voxels.has(i)) {
      to[int64_t(i) * kSumThreads * p.grad_logits.voxel_stride] = narrow<T>(grad[i]);
    }
  }
}

template <class T, bool kEntropy>
__global__ void __launch_bounds__(kSumThreads)
    region_sums_backward_kernel(RegionSumsBackward p, int64_t chunks) {
  using Acc = Accumulate<T>;
  constexpr int kSums = RegionSums::sum_count(kEntropy);
  const int64_t batch = blockIdx.x / chunks;
  const Voxels<T> voxels(p, batch, blockIdx.x % chunks);
  const Acc* grads = static_cast<const Acc*>(p.grad) + batch * p.size.channels * kSums;
  for (int64_t c = 0; c < p.size.channels; ++c, grads += kSums) {
    Acc z[kVoxels];
    uint8_t truth[kVoxels];
    voxels.read(p, c, z, truth);
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) {
      const bool inside = truth[i] != 0;
      const Logistic<Acc> found(z[i]);
      Acc grad =
          ((inside ? grads[0] : Acc(0)) + 2 * grads[1] * found.p) * found.p * found.complement;
      if constexpr (kEntropy) {
        grad += inside ? -grads[3] * found.complement : grads[4] * found.p;
      }
      z[i] = counted(truth[i]) ? grad : Acc(0);
    }
    write(p, voxels, batch, c, z);
  }
}

// dz = p (dp - sum over channels of p dp), where dp is the gradient with respect to p.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    region_sums_backward_softmax_kernel(RegionSumsBackward p, int64_t chunks) {
  using Acc = Accumulate<T>;
  const int64_t batch = blockIdx.x / chunks;
  const Voxels<T> voxels(p, batch, blockIdx.x % chunks);
  const Softmax<T> softmax(p, voxels);
  constexpr int kSums = RegionSums::sum_count(false);
  const Acc* const grads = static_cast<const Acc*>(p.grad) + batch * p.size.channels * kSums;
  // Calls body(i, p, dp, z[i]) for the voxels of a channel. Both are 0 where one does not count,
  // whose logit may be NaN.
  const auto for_voxels = [&](int64_t c, Acc(&z)[kVoxels], auto&& body) {
    uint8_t truth[kVoxels];
    voxels.read(p, c, z, truth);
    const Acc overlap = grads[kSums * c], squares = 2 * grads[kSums * c + 1];
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) {
      const Acc probability = counted(truth[i]) ? softmax(i, z[i]) : Acc(0);
      body(i, probability, (truth[i] == 1 ? overlap : Acc(0)) + squares * probability, z[i]);
    }
  };
  Acc z[kVoxels], mean[kVoxels] = {};
  for (int64_t c = 0; c < p.size.channels; ++c) {
    for_voxels(c, z,
               [&](int i, Acc probability, Acc slope, Acc&) { mean[i] += slope * probability; });
  }
  for (int64_t c = 0; c < p.size.channels; ++c) {
    for_voxels(c, z, [&](int i, Acc probability, Acc slope, Acc& out) {
      out = probability * (slope - mean[i]);
    });
    write(p, voxels, batch, c, z);
  }
}

}  // namespace

size_t region_sums_backward_workspace(const RegionSumsBackward&) { return 0; }

void region_sums_backward_launch(const RegionSumsBackward& p) {
  if (p.size.empty()) return;
  const int64_t chunks = divide_up(p.size.voxels(), kChunk);
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_kind(p, [&](auto softmax, auto entropy) {
      auto* kernel = region_sums_backward_kernel<T, entropy>;
      if constexpr (softmax) kernel = region_sums_backward_softmax_kernel<T>;
      launch("region_sums_backward", p.resources, p.size.batch * chunks, kSumThreads, 0, kernel, p,
             chunks);
    });
  });
}

}  // namespace egcnn::cuda
