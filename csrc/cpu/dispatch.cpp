// Chooses the instruction set at run time. The kernels are compiled once for each; this unit is
// compiled for the baseline.
#include <vector>

#include "../ops.h"

namespace egcnn {

namespace baseline {
extern const Kernels kernels;
}
#ifdef EGCNN_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

std::vector<Kernels> supported_kernels() {
  std::vector<Kernels> supported;
#ifdef EGCNN_X86
  // The levels x86-64-v4 and x86-64-v3, by the features that distinguish them from the level below.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    supported.push_back(avx512::kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    supported.push_back(avx2::kernels);
  }
#endif
  supported.push_back(baseline::kernels);
  return supported;
}

}  // namespace

const std::vector<Kernels>& cpu::kernels() {
  static const std::vector<Kernels> supported = supported_kernels();
  return supported;
}

}  // namespace egcnn
