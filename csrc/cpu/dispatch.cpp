// Picks, once, the instruction set that this machine runs. Every kernel unit was compiled for each
// of EGCNN_ISAS; this one for the oldest machine that the build supports.
#include "workspaces.h"

namespace egcnn {

#define EGCNN_DECLARE(isa)                                         \
  namespace isa {                                                  \
  void sobel_edges_launch(const SobelEdges&);                      \
  void sobel_magnitude_launch(const SobelMagnitude&);              \
  void sobel_magnitude_backward_launch(const SobelMagnitudeBackward&); \
  void edge_gate_launch(const EdgeGate&);                          \
  void edge_gate_backward_launch(const EdgeGateBackward&);         \
  void consistency_launch(const Consistency&);                     \
  void consistency_backward_launch(const Consistency&);            \
  }
EGCNN_DECLARE(baseline)
#ifdef EGCNN_X86
EGCNN_DECLARE(avx2)
EGCNN_DECLARE(avx512)
#endif

namespace cpu {
namespace {

struct Launches {
  const char* name;
  void (*sobel_edges)(const SobelEdges&);
  void (*sobel_magnitude)(const SobelMagnitude&);
  void (*sobel_magnitude_backward)(const SobelMagnitudeBackward&);
  void (*edge_gate)(const EdgeGate&);
  void (*edge_gate_backward)(const EdgeGateBackward&);
  void (*consistency)(const Consistency&);
  void (*consistency_backward)(const Consistency&);
};

#define EGCNN_LAUNCHES(isa)                                                             \
  {                                                                                     \
    #isa, isa::sobel_edges_launch, isa::sobel_magnitude_launch,                         \
        isa::sobel_magnitude_backward_launch, isa::edge_gate_launch,                    \
        isa::edge_gate_backward_launch, isa::consistency_launch,                        \
        isa::consistency_backward_launch                                                \
  }

Launches choose() {
#ifdef EGCNN_X86
  // The levels x86-64-v4 and x86-64-v3, by the features that tell them from the level below.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return EGCNN_LAUNCHES(avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    return EGCNN_LAUNCHES(avx2);
  }
#endif
  return EGCNN_LAUNCHES(baseline);
}

const Launches& launches() {
  static const Launches chosen = choose();
  return chosen;
}

}  // namespace

const char* instruction_set() { return launches().name; }

size_t sobel_edges_workspace(int64_t width, int threads) {
  return threads * kSobelRows * (width + 2) * sizeof(double);
}

size_t sobel_magnitude_backward_workspace(int64_t depth, int64_t height, int64_t width,
                                          int threads) {
  return (3 * depth * height * width + threads * (kSobelRows + 1) * (width + 2)) * sizeof(double);
}

size_t edge_gate_workspace(int64_t ce, int64_t cm, int64_t gates, int threads) {
  return threads * edge_gate_scratch(ce, cm, gates) * sizeof(double);
}

size_t edge_gate_backward_workspace(int64_t ce, int64_t cm, int64_t gates, int threads) {
  return (edge_gate_chunks(ce, cm, gates) * gates * (ce + cm + 1) +
          threads * edge_gate_backward_scratch(ce, cm, gates)) *
         sizeof(double);
}

size_t consistency_workspace(int64_t channels, int64_t depth, int64_t height, int64_t width,
                             int threads) {
  const Size size{1, channels, depth, height, width};
  return ConsistencyWorkspace<double>(size, nullptr).bytes(threads);
}

void sobel_edges_launch(const SobelEdges& p) { launches().sobel_edges(p); }
void sobel_magnitude_launch(const SobelMagnitude& p) { launches().sobel_magnitude(p); }
void sobel_magnitude_backward_launch(const SobelMagnitudeBackward& p) {
  launches().sobel_magnitude_backward(p);
}
void edge_gate_launch(const EdgeGate& p) { launches().edge_gate(p); }
void edge_gate_backward_launch(const EdgeGateBackward& p) { launches().edge_gate_backward(p); }
void consistency_launch(const Consistency& p) { launches().consistency(p); }
void consistency_backward_launch(const Consistency& p) { launches().consistency_backward(p); }

}  // namespace cpu
}  // namespace egcnn
