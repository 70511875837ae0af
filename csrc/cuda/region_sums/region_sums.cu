// The sums over voxels that Eqs. 4 to 6 are made of. Each block sums a chunk of a sample; a second
// kernel adds up the chunks in order, so that the result does not depend on timing.
#include "../device/warp.cuh"
#include "region_sums.cuh"

namespace egcnn::cuda {
namespace {

template <class T, bool kSoftmax, bool kEntropy>
__global__ void __launch_bounds__(kSumThreads, 3)
    region_sums_kernel(RegionSums p, Accumulate<T>* partials, int64_t chunks) {
  using Acc = Accumulate<T>;
  constexpr int kSums = RegionSums::sum_count(kEntropy), kWarps = kSumThreads / kWarpSize;
  __shared__ Acc warp_sums[2][kWarps][kSums];
  const Voxels<T> voxels(p, blockIdx.x / chunks, blockIdx.x % chunks);
  const std::conditional_t<kSoftmax, Softmax<T>, Nothing> softmax(p, voxels);
  const int warp = threadIdx.x / kWarpSize;
  Acc* to = partials + int64_t(blockIdx.x) * p.size.channels * kSums;
  for (int64_t c = 0; c < p.size.channels; ++c, to += kSums) {
    Acc z[kVoxels], sums[kSums] = {};
    uint8_t truth[kVoxels];
    voxels.read(p, c, z, truth);
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) {
      if (!counted(truth[i])) continue;
      const bool inside = truth[i] != 0;
      Acc probability;
      if constexpr (kSoftmax) {
        probability = softmax(i, z[i]);
      } else {
        const Logistic<Acc> found(z[i]);
        probability = found.p;
        if constexpr (kEntropy) {
          const Acc positive = z[i] < 0 ? Acc(0) : z[i];
          sums[3] += inside ? found.softplus + (positive - z[i]) : Acc(0);
          sums[4] += inside ? Acc(0) : found.softplus + positive;
        }
      }
      sums[0] += inside ? probability : Acc(0);
      sums[1] += probability * probability;
      sums[2] += inside ? Acc(1) : Acc(0);
    }
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const Acc sum = warp_sum(sums[k]);
      if (lane_index() == 0) warp_sums[c & 1][warp][k] = sum;
    }
    __syncthreads();  // one is enough: the next channel goes to the other half
    if (threadIdx.x < kSums) {
      Acc sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += warp_sums[c & 1][w][threadIdx.x];
      to[threadIdx.x] = sum;
    }
  }
}

// One warp adds up the chunks of a sum, in double.
template <class Acc>
__global__ void __launch_bounds__(kWarpSize)
    add_chunks_kernel(const Acc* partials, int64_t chunks, int64_t columns, Acc* sums) {
  const int64_t batch = blockIdx.x / columns, column = blockIdx.x % columns;
  double sum = 0;
  for (int64_t chunk = lane_index(); chunk < chunks; chunk += kWarpSize) {
    sum += double(partials[(batch * chunks + chunk) * columns + column]);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) sums[blockIdx.x] = Acc(sum);
}

int64_t chunk_count(const RegionSums& p) { return divide_up(p.size.voxels(), kChunk); }

}  // namespace

size_t region_sums_workspace(const RegionSums& p) {
  return p.size.batch * chunk_count(p) * p.size.channels * p.sum_count() *
         accumulator_bytes(p.logits.dtype);
}

void region_sums_launch(const RegionSums& p) {
  const int64_t chunks = chunk_count(p), columns = p.size.channels * p.sum_count();
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulate<T>;
    Acc* const partials = static_cast<Acc*>(p.resources.workspace);
    with_kind(p, [&](auto softmax, auto entropy) {
      if (columns == 0) return;
      launch("region_sums", p.resources, p.size.batch * chunks, kSumThreads, 0,
             region_sums_kernel<T, softmax, entropy>, p, partials, chunks);
    });
    launch("region_sums: chunks", p.resources, p.size.batch * columns, kWarpSize, 0,
           add_chunks_kernel<Acc>, partials, chunks, columns, static_cast<Acc*>(p.sums));
  });
}

}  // namespace egcnn::cuda
