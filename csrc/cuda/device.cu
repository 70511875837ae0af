// Whether the machine's driver and GPU can run what this build holds.
#include <cuda_runtime.h>

#include "../ops.h"

namespace egcnn::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

const char* device_status() {
  int driver = 0, toolkit = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "there is no NVIDIA driver on this machine";
  }
  if (cudaRuntimeGetVersion(&toolkit) == cudaSuccess && driver / 1000 < toolkit / 1000) {
    return "the NVIDIA driver is older than the CUDA toolkit of this build";
  }
  const cudaError_t count = cudaGetDeviceCount(&devices);
  if (count != cudaSuccess) return cudaGetErrorString(count);
  if (devices == 0) return "there is no NVIDIA GPU on this machine";
  cudaFuncAttributes attributes;
  const cudaError_t image = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaGetLastError();  // leave no error behind for somebody else's check
  if (image != cudaSuccess) return "this build holds no code for this GPU";
  return "";
}

}  // namespace egcnn::cuda
