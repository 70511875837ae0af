// The simulated GPU: three multiprocessors, so that kernels with a block or two for each loop over
// tiles even at small sizes; otherwise the limits of an H100.
#include "cuda_runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr int kVersion = 13000;
constexpr int kDevices = 1;
constexpr int kMultiprocessors = 3;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kThreadsPerBlock = 1024;
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kSharedDefault = 48 << 10;
constexpr int kSharedOptIn = 227 << 10;
constexpr int kSharedPerMultiprocessor = 228 << 10;
constexpr int kSharedReserved = 1 << 10;  // per block, by the driver

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// The dynamic shared memory of kernels that raised their limit.
std::mutex opt_in_mutex;
std::map<const void*, int> opt_in;

int dynamic_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(opt_in_mutex);
  const auto found = opt_in.find(kernel);
  return found == opt_in.end() ? kSharedDefault : found->second;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotSupported: return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = kSharedDefault; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = kThreadsPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = CUDA_ON_CPU_ARCHITECTURE / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = CUDA_ON_CPU_ARCHITECTURE % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = kSharedOptIn; return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes != 0) std::memset(to, value, bytes);
  return cudaSuccess;
}

namespace cuda_on_cpu {

cudaError_t function_attributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  attributes->maxThreadsPerBlock = kThreadsPerBlock;
  attributes->numRegs = 32;
  attributes->maxDynamicSharedSizeBytes = dynamic_limit(kernel);
  return cudaSuccess;
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > kSharedOptIn) return result(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(opt_in_mutex);
  opt_in[kernel] = value;
  return cudaSuccess;
}

cudaError_t active_blocks(int* blocks, const void* kernel, int threads, size_t dynamic_bytes) {
  if (threads <= 0) return result(cudaErrorInvalidValue);
  const bool fits = threads <= kThreadsPerBlock && dynamic_bytes <= size_t(dynamic_limit(kernel));
  const int by_memory = int(kSharedPerMultiprocessor / (dynamic_bytes + kSharedReserved));
  *blocks =
      fits ? std::min({kBlocksPerMultiprocessor, kThreadsPerMultiprocessor / threads, by_memory})
           : 0;
  return cudaSuccess;
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const bool grid_fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7FFFFFFFu &&
                         grid.y <= 0xFFFFu && grid.z <= 0xFFFFu;
  const bool block_fits = block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 &&
                          block.y <= 1024 && block.z <= 64 &&
                          block.x * block.y * block.z <= unsigned(kThreadsPerBlock);
  if (!grid_fits || !block_fits) return result(cudaErrorInvalidConfiguration);
  if (config.dynamicSmemBytes > size_t(dynamic_limit(kernel))) {
    return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu
