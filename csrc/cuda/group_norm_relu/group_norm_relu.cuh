// How GroupNorm's kernels share a volume among blocks and threads, and add up what threads found.
#pragma once

#include <algorithm>

#include "../device/launch.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kNormThreads = 256;
// Resident blocks per multiprocessor: leaves each thread 64 registers.
constexpr int kNormBlocks = 4;

// Of numbers of blocks or channels, below 2^31: 64 bits would take a call.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return uint32_t(a) / uint32_t(b);
}

// In memory a sample is one row of voxels after another: each of one channel, or in
// channels_last_3d a single one, whose voxels have all channels. A block has a chunk of a row's
// voxels. Whatever the number of channels, a thread has one at a time, and reads it of every so
// many voxels.
struct NormGrid {
  int64_t samples, channels, groups, voxels;
  int64_t members;  // channels of a voxel of a row
  int64_t chunk;    // voxels of a block
  int64_t chunks;   // of a row

  explicit NormGrid(const GroupNormReLU& p)
      : samples(p.size.batch), channels(p.size.channels), groups(p.groups), voxels(p.size.voxels()),
        members(p.x.voxel_stride == 1 ? 1 : channels) {
    // Enough blocks for any GPU, but for small volumes. It depends on the sizes alone, so that all
    // devices add in the same order.
    constexpr int64_t kBlocks = 8192, kLeastElements = 16 * kNormThreads;
    const int64_t elements = divide_up(samples * channels * voxels, kBlocks);
    chunk = std::min(divide_up(std::max(elements, kLeastElements), members), voxels);
    chunks = divide_up(voxels, chunk);
  }

  __host__ __device__ int64_t blocks_of_sample() const { return channels / members * chunks; }
  int64_t blocks() const { return samples * blocks_of_sample(); }
  // Pairs of sums, one of each channel of each block.
  int64_t partials() const { return blocks() * members; }

  __device__ int64_t group_of(int64_t sample, int64_t channel) const {
    return sample * groups + divide(channel, channels / groups);
  }
  // Where the sums of the channel's part of a chunk are.
  __device__ int64_t partial(int64_t sample, int64_t channel, int64_t chunk_index) const {
    const int64_t row = divide(channel, members), member = channel - row * members;
    return (sample * blocks_of_sample() + row * chunks + chunk_index) * members + member;
  }
  __device__ int64_t chunk_size(int64_t chunk_index) const {
    return min(chunk, voxels - chunk_index * chunk);
  }
};

// A thread's channels and voxels within a block's chunk.
class NormThread {
 public:
  __device__ NormThread(const NormGrid& grid, int64_t block) : grid_(grid) {
    sample_ = divide(block, grid.blocks_of_sample());
    const int64_t in_sample = block - sample_ * grid.blocks_of_sample();
    row_ = divide(in_sample, grid.chunks);
    const int64_t chunk_index = in_sample - row_ * grid.chunks;
    size_ = grid.chunk_size(chunk_index);
    start_ =
        ((sample_ * grid.channels / grid.members + row_) * grid.voxels + chunk_index * grid.chunk) *
        grid.members;
    width_ = int(min(grid.members, int64_t(kNormThreads)));
    lanes_ = kNormThreads / width_;
    lane_ = int(threadIdx.x) / width_;
    member_ = int(threadIdx.x) % width_;
  }

  // Goes to the next channel of this thread; false after the block's last. The threads of a block
  // go together, so that some may have none.
  __device__ bool next_channel() {
    member_ += started_ ? width_ : 0;
    started_ = true;
    return member_ - int(threadIdx.x) % width_ < grid_.members;
  }

  __device__ bool has_channel() const { return lane_ < lanes_ && member_ < grid_.members; }
  __device__ bool has_voxels() const { return has_channel() && lane_ < size_; }
  __device__ int64_t sample() const { return sample_; }
  __device__ int member() const { return member_; }
  __device__ int64_t channel() const { return row_ + member_; }
  __device__ int64_t group() const { return grid_.group_of(sample_, channel()); }

  // Calls use(element, load(element)) for each of the thread's voxels; several loads are on their
  // way at a time.
  template <class Load, class Use>
  __device__ __forceinline__ void for_elements(Load&& load, Use&& use) const {
    if (!has_channel()) return;
    constexpr int kAhead = 8;
    const int64_t step = int64_t(lanes_) * grid_.members;
    int64_t at = first_element(), left = has_voxels() ? elements() : 0;
    for (; left >= kAhead; left -= kAhead, at += kAhead * step) {
      decltype(load(at)) values[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) values[i] = load(at + i * step);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) use(at + i * step, values[i]);
    }
    for (; left > 0; --left, at += step) use(at, load(at));
  }
  __device__ int64_t first_element() const { return start_ + lane_ * grid_.members + member_; }
  // How many for_elements() calls; below 2^31, as chunks are.
  __device__ int64_t elements() const { return divide(size_ - lane_ + lanes_ - 1, lanes_); }

  // Adds up the values of the threads of each channel. All threads call it; the sum belongs to the
  // channel's first thread, for which it calls use(sum).
  template <class Sum, class Use>
  __device__ __forceinline__ void reduce(Sum* shared, const Sum& mine, Use&& use) const {
    shared[threadIdx.x] = mine;
    for (int step = kNormThreads / 2; step > 0; step /= 2) {
      __syncthreads();
      if (lane_ < step && lane_ + step < lanes_) {
        shared[threadIdx.x] += shared[threadIdx.x + step * width_];
      }
    }
    if (lane_ == 0 && member_ < grid_.members) use(shared[threadIdx.x]);
    __syncthreads();
  }

 private:
  const NormGrid& grid_;
  int64_t sample_, row_, size_, start_;
  int width_, lanes_, lane_, member_;
  bool started_ = false;
};

// Adds up the values of all threads of a block, for thread 0.
template <class Sum>
__device__ __forceinline__ void reduce_block(Sum* shared, const Sum& mine) {
  shared[threadIdx.x] = mine;
  for (int step = kNormThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < step) shared[threadIdx.x] += shared[threadIdx.x + step];
  }
  __syncthreads();
}

// The count, mean, and squares of the distances from the mean, of some values; no constructor,
// for shared memory.
template <class Acc>
struct NormMoments {
  Acc count, mean, squares;

  // Chan, Golub and LeVeque, 1979.
  __device__ void operator+=(const NormMoments& other) {
    if (other.count == 0) return;
    const Acc together = count + other.count, difference = other.mean - mean;
    const Acc share = other.count / together;
    mean += difference * share;
    squares += other.squares + difference * difference * count * share;
    count = together;
  }
};

// Of x and the gradient, or two sums.
template <class Acc>
struct NormPair {
  Acc first, second;

  __device__ void operator+=(const NormPair& other) {
    first += other.first;
    second += other.second;
  }
};

// What forward's kernels know of the channels and groups.
template <class Acc>
struct NormParameters {
  const Acc *weight, *bias;
  Acc *mean, *rstd;

  explicit NormParameters(const GroupNormReLU& p)
      : weight(static_cast<const Acc*>(p.weight)), bias(static_cast<const Acc*>(p.bias)),
        mean(static_cast<Acc*>(p.mean)), rstd(static_cast<Acc*>(p.rstd)) {}
};

// What a thread's channel gives: y = (x - mean) * scale + bias.
template <class Acc>
struct NormChannel {
  Acc mean, scale, bias;

  __device__ NormChannel(const NormParameters<Acc>& p, const NormThread& thread)
      : mean(p.mean[thread.group()]), scale(p.rstd[thread.group()] * p.weight[thread.channel()]),
        bias(p.bias[thread.channel()]) {}

  // From x - mean.
  __device__ Acc operator()(Acc distance) const { return distance * scale + bias; }
};

}  // namespace
}  // namespace egcnn::cuda
