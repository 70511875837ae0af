// Kernels for test_instructions.py: one PTX instruction each, on what every lane brings.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

namespace ptx = cuda_on_cpu::ptx;

template <class... Parameters, class... Arguments>
void launch(unsigned threads, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = threads;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Row t of each array is that of thread t.
__global__ void tf32_kernel(const uint32_t (*a)[4], const uint32_t (*b)[2], float (*d)[4]) {
  const unsigned t = threadIdx.x;
  ptx::mma_m16n8k8_tf32(d[t][0], d[t][1], d[t][2], d[t][3], a[t], b[t]);
}

__global__ void f16_kernel(const uint32_t (*a)[2], const uint32_t* b, float (*d)[4]) {
  const unsigned t = threadIdx.x;
  ptx::mma_m16n8k8_f16(d[t][0], d[t][1], d[t][2], d[t][3], a[t], b[t]);
}

__global__ void approximate_kernel(int function, const float* x, float* out, int n) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    switch (function) {
      case 0: out[i] = ptx::lg2_approx(x[i]); break;
      case 1: out[i] = ptx::sqrt_approx(x[i]); break;
      case 2: out[i] = ptx::ex2_approx(x[i]); break;
      case 3: out[i] = ptx::rcp_approx(x[i]); break;
      default: out[i] = ptx::rsqrt_approx(x[i]); break;
    }
  }
}

template <class Body>
const char* sentence_of(Body&& body) {
  static std::string sentence;
  try {
    body();
    return "";
  } catch (const std::runtime_error& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}

}  // namespace

// The sentence that the launch ends in; empty if all is well.
EXPORT const char* run_tf32(unsigned threads, const uint32_t (*a)[4], const uint32_t (*b)[2],
                            float (*d)[4]) {
  return sentence_of([&] { launch(threads, tf32_kernel, a, b, d); });
}

EXPORT const char* run_f16(unsigned threads, const uint32_t (*a)[2], const uint32_t* b,
                           float (*d)[4]) {
  return sentence_of([&] { launch(threads, f16_kernel, a, b, d); });
}

EXPORT void run_approximate(int function, const float* x, float* out, int n) {
  launch(32, approximate_kernel, function, x, out, n);
}
