// Registers the CUDA kernels as CPU kernels, so that the operators call them for tensors in host
// memory.
#include "ops.h"

const std::vector<egcnn::Kernels>& egcnn::cpu::kernels() {
  static const std::vector<Kernels> found{cuda::kernels()};
  return found;
}
