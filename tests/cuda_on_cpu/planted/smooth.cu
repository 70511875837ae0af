// A typical kernel (tiles with a halo in shared memory, a reduction over the block) with planted
// bugs. `smooth BUG` runs it, compares with plain C++ and reports differences; `smooth none` is
// correct.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

enum class Bug {
  none,
  missing_barrier,       // between writing the tile and reading it
  missing_last_barrier,  // between reading the tile and writing the next
  shared_past_end,
  global_past_end,
  divergent_barrier,
  wrong_halo,
  exited_lanes,
  unwritten_sum,
};
constexpr const char* kNames[] = {
    "none",            "missing_barrier",   "missing_last_barrier",
    "shared_past_end", "global_past_end",   "divergent_barrier",
    "wrong_halo",      "exited_lanes",      "unwritten_sum",
};

constexpr int kThreads = 64;

// Only from the left: threads that run in the order of their numbers find what they need even
// without a barrier.
__device__ float smoothed(const float* at) { return at[-2] + 2 * at[-1] + at[0]; }

// out[i] = in[i - 2] + 2 in[i - 1] + in[i], the first element repeated, and each block's sum of it.
__global__ void smooth_kernel(const float* in, float* out, float* sums, int n, Bug bug) {
  __shared__ float tile[kThreads + 2];
  __shared__ float warp_sums[kThreads / 32];
  const int t = int(threadIdx.x);
  float sum = 0;
  for (int first = int(blockIdx.x) * kThreads; first < n; first += int(gridDim.x) * kThreads) {
    const int i = first + t;
    const bool inside = bug == Bug::global_past_end ? i <= n : i < n;
    if (inside) tile[t + 2] = in[i];
    if (t < 2) tile[t] = in[max(first + t - (bug == Bug::wrong_halo ? 1 : 2), 0)];
    if (bug == Bug::divergent_barrier) {
      if (inside) __syncthreads();
    } else if (bug != Bug::missing_barrier) {
      __syncthreads();
    }
    if (inside) {
      out[i] = smoothed(tile + t + (bug == Bug::shared_past_end ? 3 : 2));
      sum += out[i];
    }
    if (bug != Bug::missing_last_barrier) __syncthreads();
  }
  if (bug == Bug::exited_lanes && t == kThreads - 1) return;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xFFFFFFFF, sum, step);
  if (t % 32 == 0 && !(bug == Bug::unwritten_sum && t > 0)) warp_sums[t / 32] = sum;
  __syncthreads();
  if (t == 0) sums[blockIdx.x] = warp_sums[0] + warp_sums[1];
}

int run(Bug bug) {
  constexpr int n = 500, blocks = 3;
  const float poison = -1e30f;
  std::vector<float> in(n), out(n, poison), sums(blocks, poison);
  std::vector<float> expected(n), sums_expected(blocks);
  for (int i = 0; i < n; ++i) in[size_t(i)] = float(i * i % 13);
  for (int i = 0; i < n; ++i) {
    const size_t before = size_t(std::max(i - 1, 0)), first = size_t(std::max(i - 2, 0));
    expected[size_t(i)] = in[first] + 2 * in[before] + in[size_t(i)];
    sums_expected[size_t(i / kThreads % blocks)] += expected[size_t(i)];
  }
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = kThreads;
  cudaLaunchKernelEx(&config, smooth_kernel, in.data(), out.data(), sums.data(), n, bug);
  int wrong = 0;
  for (int i = 0; i < n; ++i) wrong += out[size_t(i)] != expected[size_t(i)];
  for (int b = 0; b < blocks; ++b) wrong += sums[size_t(b)] != sums_expected[size_t(b)];
  if (wrong != 0) std::printf("%d results differ from the reference\n", wrong);
  return wrong != 0;
}

}  // namespace

int main(int count, char** arguments) {
  for (int bug = 0; count == 2 && bug < int(std::size(kNames)); ++bug) {
    if (std::string(arguments[1]) != kNames[bug]) continue;
    try {
      return run(Bug(bug));
    } catch (const std::runtime_error& error) {
      std::printf("%s\n", error.what());
      return 1;
    }
  }
  std::printf("usage: smooth BUG\n");
  return 2;
}
