// Tells which instruction sets this machine runs. Every kernel unit was compiled for each of them;
// this one for the oldest machine that the build supports.
#include "consistency_plan.h"
#include "edge_gate_plan.h"
#include "sobel_tiles.h"

namespace egcnn {

#define EGCNN_DECLARE(isa)                                             \
  namespace isa {                                                      \
  void sobel_edges_launch(const SobelEdges&);                          \
  void sobel_magnitude_launch(const SobelMagnitude&);                  \
  void sobel_magnitude_backward_launch(const SobelMagnitudeBackward&); \
  void edge_gate_launch(const EdgeGate&);                              \
  void edge_gate_backward_launch(const EdgeGateBackward&);             \
  void consistency_launch(const Consistency&);                         \
  void consistency_backward_launch(const Consistency&);                \
  }
EGCNN_DECLARE(baseline)
#ifdef EGCNN_X86
EGCNN_DECLARE(avx2)
EGCNN_DECLARE(avx512)
#endif

namespace {

// Bytes of workspace; large enough for either accumulation type.
size_t sobel_edges_workspace(const SobelEdges& p) {
  return p.size.empty() ? 0 : p.resources.threads * sobel_edges_tiles(p).bytes();
}

size_t sobel_magnitude_workspace(const SobelMagnitude& p) {
  return p.size.empty() ? 0 : p.resources.threads * sobel_magnitude_tiles(p).bytes();
}

size_t sobel_magnitude_backward_workspace(const SobelMagnitudeBackward& p) {
  return p.size.empty() ? 0 : p.resources.threads * sobel_magnitude_backward_tiles(p).bytes();
}

size_t edge_gate_workspace(const EdgeGate& p) {
  const EdgeGatePlan plan(p);
  return (plan.weights + p.resources.threads * plan.scratch) * sizeof(double);
}

size_t edge_gate_backward_workspace(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p);
  return ((1 + plan.chunks) * plan.weights + p.resources.threads * plan.scratch) * sizeof(double);
}

size_t consistency_workspace(const Consistency& p) {
  return p.logits.dtype == DType::f64 ? consistency_bytes<double>(p, false)
                                      : consistency_bytes<float>(p, false);
}

size_t consistency_backward_workspace(const Consistency& p) {
  return p.logits.dtype == DType::f64 ? consistency_bytes<double>(p, true)
                                      : consistency_bytes<float>(p, true);
}

#define EGCNN_KERNELS(isa)                                                        \
  {                                                                               \
    #isa,                                                                         \
        {sobel_edges_workspace, isa::sobel_edges_launch},                         \
        {sobel_magnitude_workspace, isa::sobel_magnitude_launch},                 \
        {sobel_magnitude_backward_workspace, isa::sobel_magnitude_backward_launch}, \
        {edge_gate_workspace, isa::edge_gate_launch},                             \
        {edge_gate_backward_workspace, isa::edge_gate_backward_launch},           \
        {consistency_workspace, isa::consistency_launch},                         \
        {consistency_backward_workspace, isa::consistency_backward_launch},                \
  }

std::vector<Kernels> find_kernels() {
  std::vector<Kernels> found;
#ifdef EGCNN_X86
  // The levels x86-64-v4 and x86-64-v3, by the features that tell them from the level below.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(EGCNN_KERNELS(avx512));
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    found.push_back(EGCNN_KERNELS(avx2));
  }
#endif
  found.push_back(EGCNN_KERNELS(baseline));
  return found;
}

}  // namespace

const std::vector<Kernels>& cpu::kernels() {
  static const std::vector<Kernels> found = find_kernels();
  return found;
}

}  // namespace egcnn
