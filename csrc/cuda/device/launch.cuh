// Launching kernels: the grid, element types, error messages.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../../ops.h"

namespace egcnn::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear it, or the next check would report it again
  throw std::runtime_error(std::string("egcnn: ") + what +
                           " failed on the GPU: " + cudaGetErrorString(error));
}

inline int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return count;
}

// How many blocks of a kernel all multiprocessors of a device hold at a time, at least one each.
// Asks the driver once for each kernel and device, the current one: a kernel is always launched
// with as many `threads` and bytes of `shared`.
template <class... Parameters>
int64_t resident_blocks(int device, void (*kernel)(Parameters...), int threads, size_t shared = 0) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& blocks = known[{reinterpret_cast<const void*>(kernel), device}];
  if (blocks == 0) {
    int each = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    blocks = int64_t(each < 1 ? 1 : each) * multiprocessors(device);
  }
  return blocks;
}

// Launches `blocks` blocks of `threads` threads, with `shared` bytes of dynamic_shared(). By
// cudaLaunchKernelEx instead of <<<>>>, because tests/cuda_on_cpu compiles the sources as C++.
template <class... Parameters, class... Arguments>
void launch(const char* name, const Resources& resources, int64_t blocks, int threads,
            size_t shared, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF) {
    throw std::runtime_error(std::string("egcnn: the volume is too large for ") + name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(resources.stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// Fills memory with zeros.
inline void clear(const char* name, const Resources& resources, void* data, size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(resources.stream)), name);
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 egcnn_dynamic_shared[];
  return reinterpret_cast<T*>(egcnn_dynamic_shared);
#else
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
#endif
}

// --- Element types ---

// The type of sums: double for double, float for all others.
template <class T>
struct AccumulateType {
  using Type = float;
};
template <>
struct AccumulateType<double> {
  using Type = double;
};
template <class T>
using Accumulate = typename AccumulateType<T>::Type;

template <class T>
__device__ __forceinline__ Accumulate<T> widen(T value) {
  return value;
}
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
// By a shift, which is one instruction even if the value is half of a word.
__device__ __forceinline__ float widen(__nv_bfloat16 value) {
  return __uint_as_float(uint32_t(__bfloat16_as_ushort(value)) << 16);
}

template <class T>
__device__ __forceinline__ T narrow(Accumulate<T> value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// Calls body with a null pointer to the element type of a floating-point `dtype`.
template <class Body>
void with_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64: return body(static_cast<double*>(nullptr));
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f16: return body(static_cast<__half*>(nullptr));
    default: return body(static_cast<__nv_bfloat16*>(nullptr));
  }
}

}  // namespace egcnn::cuda
