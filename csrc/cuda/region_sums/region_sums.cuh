// What the sums over voxels of Eqs. 4 to 6 and their gradient share: a chunk of a sample, of which
// each thread holds some voxels, one channel after the other.
#pragma once

#include "../device/fast_math.cuh"
#include "../device/launch.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kSumThreads = 256, kVoxels = 8, kChunk = kSumThreads * kVoxels;

// The sigmoid p of z, 1 - p without cancellation, and the softplus of -|z|.
template <class Acc>
struct Logistic {
  Acc p, complement, softplus;

  __device__ __forceinline__ Logistic(Acc z) {
    const Acc e = exp_of(z < 0 ? z : -z), inverse = reciprocal_of(1 + e), small = e * inverse;
    p = z < 0 ? small : inverse;
    complement = z < 0 ? inverse : small;
    softplus = minus_log(inverse, small);
  }

  __device__ __forceinline__ static float exp_of(float x) { return fast_exp2(1.44269504f * x); }
  __device__ __forceinline__ static double exp_of(double x) { return math::exp(x); }
  __device__ __forceinline__ static float reciprocal_of(float x) { return reciprocal(x); }
  __device__ __forceinline__ static double reciprocal_of(double x) { return 1 / x; }
};

// Whether the truth counts a voxel; see RegionSums.
__device__ __forceinline__ bool counted(uint8_t truth) { return truth < 2; }

// The voxels of one thread of a chunk.
template <class T>
class Voxels {
 public:
  using Acc = Accumulate<T>;

  __device__ __forceinline__ Voxels(const RegionSums& p, int64_t batch, int64_t chunk)
      : first_(chunk * kChunk + threadIdx.x),
        inside_(min(p.size.voxels() - first_ + kSumThreads - 1, int64_t(kChunk)) / kSumThreads),
        logits_(static_cast<const T*>(p.logits.data) + p.logits.offset(batch, 0, first_)),
        target_(static_cast<const uint8_t*>(p.target.data) + p.target.offset(batch, 0, first_)) {}

  __device__ __forceinline__ bool has(int i) const { return i < inside_; }
  __device__ __forceinline__ int64_t first() const { return first_; }

  // The logits and the truth of a channel; 0 and "does not count" beyond the volume.
  __device__ __forceinline__ void read(const RegionSums& p, int64_t channel, Acc (&z)[kVoxels],
                                       uint8_t (&truth)[kVoxels]) const {
    read(p, channel, z);
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) {
      truth[i] = has(i) ? target_[channel * p.target.channel_stride +
                                  int64_t(i) * kSumThreads * p.target.voxel_stride]
                        : 2;
    }
  }

  __device__ __forceinline__ void read(const RegionSums& p, int64_t channel,
                                       Acc (&z)[kVoxels]) const {
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) {
      z[i] = has(i) ? widen(logits_[channel * p.logits.channel_stride +
                                    int64_t(i) * kSumThreads * p.logits.voxel_stride])
                    : Acc(0);
    }
  }

 private:
  int64_t first_;
  int inside_;
  const T* logits_;
  const uint8_t* target_;
};

// The softmax of a thread's voxels, whose normalization takes a pass over the channels.
template <class T>
class Softmax {
 public:
  using Acc = Accumulate<T>;

  __device__ __forceinline__ Softmax(const RegionSums& p, const Voxels<T>& voxels) {
    Acc z[kVoxels];
    voxels.read(p, 0, highest_);
    for (int64_t c = 1; c < p.size.channels; ++c) {
      voxels.read(p, c, z);
#pragma unroll
      for (int i = 0; i < kVoxels; ++i) highest_[i] = z[i] > highest_[i] ? z[i] : highest_[i];
    }
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) inverse_[i] = 0;
    for (int64_t c = 0; c < p.size.channels; ++c) {
      voxels.read(p, c, z);
#pragma unroll
      for (int i = 0; i < kVoxels; ++i) inverse_[i] += Logistic<Acc>::exp_of(z[i] - highest_[i]);
    }
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) inverse_[i] = Logistic<Acc>::reciprocal_of(inverse_[i]);
  }

  __device__ __forceinline__ Acc operator()(int i, Acc z) const {
    return Logistic<Acc>::exp_of(z - highest_[i]) * inverse_[i];
  }

 private:
  Acc highest_[kVoxels], inverse_[kVoxels];
};

// In place of a Softmax where there is none.
struct Nothing {
  template <class... Arguments>
  __device__ __forceinline__ explicit Nothing(const Arguments&...) {}
};

// Calls body with constants for softmax and entropy.
template <class Body>
void with_kind(const RegionSums& p, Body&& body) {
  if (p.softmax) return body(std::true_type(), std::false_type());
  if (p.entropy) return body(std::false_type(), std::true_type());
  body(std::false_type(), std::false_type());
}

}  // namespace
}  // namespace egcnn::cuda
