// Whether this machine's driver and GPU can run the kernels of this build.
#include <cuda_runtime.h>

#include <string>

#include "../ops.h"

namespace egcnn::cuda {
namespace {

__global__ void probe_kernel() {}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// The first driver that runs the code of a major version.
const char* first_driver(int cuda) { return cuda == 12000 ? "525" : cuda == 13000 ? "580" : ""; }

std::string remedy(int driver, int needed) {
  const std::string newer = first_driver(needed), major = std::to_string(driver / 1000);
  std::string text = newer.empty() ? "" : ": update it to " + newer + " or later";
  if (driver >= 12000) text += ", or build egcnn with an nvcc of CUDA " + major + " in CUDA_HOME";
  return text;
}

std::string why_not() {
  int driver = 0, toolkit = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "there is no NVIDIA driver on this machine";
  }
  cudaRuntimeGetVersion(&toolkit);
  // Within a major version, every driver runs the code of every toolkit.
  const int needed = toolkit / 1000 * 1000;
  if (driver < needed) {
    return "the NVIDIA driver supports CUDA up to " + version(driver) +
           ", and this build needs a driver for CUDA " + version(needed) + " or later" +
           remedy(driver, needed);
  }
  if (const cudaError_t error = cudaGetDeviceCount(&devices)) return cudaGetErrorString(error);
  // Ask the driver to load a kernel. Comparing architectures is not enough: the driver may compile
  // this build's PTX, or fail to if the toolkit is a newer minor version.
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel)) {
    std::string built;
    for (int architecture : {__CUDA_ARCH_LIST__}) built += std::to_string(architecture / 10) + " ";
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return "this build holds code for GPU architectures " + built + "and this GPU has " +
           std::to_string(10 * major + minor) +
           ", where the driver says: " + cudaGetErrorString(error);
  }
  return "";
}

}  // namespace

const char* device_status() {
  thread_local std::string status;
  status = why_not();
  cudaGetLastError();  // clear it, or the next check would report it
  return status.c_str();
}

}  // namespace egcnn::cuda
