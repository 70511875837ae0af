// Products of a 16x8 and an 8x8 matrix by a warp on tensor cores, and ways to get their fragments
// wrong. `multiply BUG` compares with plain C++ and says what it finds; `multiply none` is correct.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

enum class Bug {
  none,
  swapped_a,       // rows 8 apart and columns 4 apart take each other's place
  transposed_b,    // row and column of b
  wrong_d,         // columns q and q + 4 instead of 2 q and 2 q + 1
  neighbours_a,    // columns 2 q and 2 q + 1, as in f16, instead of q and q + 4
  swapped_halves,  // of f16: the first of two numbers in the upper half
  half_a_warp,     // the other half does not come
  another_place,   // half of the warp comes to another call
  unrounded,       // float32 numbers where TF32 is expected
};
constexpr const char* kNames[] = {
    "none",           "swapped_a",   "transposed_b",  "wrong_d",   "neighbours_a",
    "swapped_halves", "half_a_warp", "another_place", "unrounded",
};

namespace ptx = cuda_on_cpu::ptx;

__device__ void multiply_tf32(const float* a, const float* b, float (&d)[4], Bug bug) {
  const int r = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4;
  const int second = bug == Bug::neighbours_a ? 1 : 4;
  const int first = bug == Bug::neighbours_a ? 2 * q : q;
  const auto bits = [](float x) { return __float_as_uint(x); };
  uint32_t x[4] = {bits(a[r * 8 + first]), bits(a[(r + 8) * 8 + first]),
                   bits(a[r * 8 + first + second]), bits(a[(r + 8) * 8 + first + second])};
  uint32_t y[2] = {bits(b[q * 8 + r]), bits(b[(q + 4) * 8 + r])};
  if (bug == Bug::swapped_a) std::swap(x[1], x[2]);
  if (bug == Bug::transposed_b) {
    y[0] = bits(b[r * 8 + q]);
    y[1] = bits(b[r * 8 + q + 4]);
  }
  if (bug == Bug::half_a_warp && threadIdx.x < 16) return;
  if (bug == Bug::another_place && threadIdx.x < 16) {
    ptx::mma_m16n8k8_tf32(d[0], d[1], d[2], d[3], x, y);
  } else {
    ptx::mma_m16n8k8_tf32(d[0], d[1], d[2], d[3], x, y);
  }
}

__device__ void multiply_f16(const float* a, const float* b, float (&d)[4], Bug bug) {
  const int r = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4;
  const auto pair = [&](float x, float y) {
    if (bug == Bug::swapped_halves) std::swap(x, y);
    return uint32_t(__half_as_ushort(__float2half_rn(x))) |
           uint32_t(__half_as_ushort(__float2half_rn(y))) << 16;
  };
  const uint32_t x[2] = {pair(a[r * 8 + 2 * q], a[r * 8 + 2 * q + 1]),
                         pair(a[(r + 8) * 8 + 2 * q], a[(r + 8) * 8 + 2 * q + 1])};
  const uint32_t y = uint32_t(__half_as_ushort(__float2half_rn(b[2 * q * 8 + r]))) |
                     uint32_t(__half_as_ushort(__float2half_rn(b[(2 * q + 1) * 8 + r]))) << 16;
  ptx::mma_m16n8k8_f16(d[0], d[1], d[2], d[3], x, y);
}

__global__ void multiply_kernel(const float* a, const float* b, float* out, bool f16, Bug bug) {
  const int r = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4;
  float d[4] = {};
  f16 ? multiply_f16(a, b, d, bug) : multiply_tf32(a, b, d, bug);
  const int column = bug == Bug::wrong_d ? q : 2 * q, step = bug == Bug::wrong_d ? 4 : 1;
  for (int i = 0; i < 4; ++i) out[(r + i / 2 * 8) * 8 + column + i % 2 * step] = d[i];
}

int run(Bug bug) {
  std::vector<float> a(16 * 8), b(8 * 8), out(16 * 8);
  for (int i = 0; i < 16 * 8; ++i) a[size_t(i)] = float(i * i % 13 - 6);
  for (int i = 0; i < 8 * 8; ++i) b[size_t(i)] = float(i * i % 11 - 5);
  if (bug == Bug::unrounded) {  // to the next number in TF32, 1 + 2^-10, where this is cut off
    std::fill(a.begin(), a.end(), 1 + 0.75f / 1024);
  }
  int wrong = 0;
  for (const bool f16 : {false, true}) {
    cudaLaunchConfig_t config{};
    config.gridDim = 1;
    config.blockDim = 32;
    cudaLaunchKernelEx(&config, multiply_kernel, a.data(), b.data(), out.data(), f16, bug);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float sum = 0;
        for (int k = 0; k < 8; ++k) {
          const float x = a[size_t(row * 8 + k)];
          sum += (bug == Bug::unrounded ? 1 + 1.0f / 1024 : x) * b[size_t(k * 8 + column)];
        }
        wrong += out[size_t(row * 8 + column)] != sum;
      }
    }
  }
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
  std::printf("usage: multiply BUG\n");
  return 2;
}
