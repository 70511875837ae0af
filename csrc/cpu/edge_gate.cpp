// The edge-gated layer (Eqs. 1 and 2), in blocks of voxels that stay in the second-level cache from
// the load to the store. With the inputs x = (e, m, 1) and W = (We, Wm, b), a block's sums are
// s = W x; backward, dx = W^T ds and dW = ds x^T.
#include <omp.h>

#include "edge_gate_block.h"
#include "edge_gate_plan.h"
#include "pages.h"
#include "vector_math.h"

namespace egcnn::EGCNN_ISA {

// The gate of math/gate.h as loops over vectors take it.
template <class Acc>
static inline Acc gate(Acc sum, bool relu) {
  return vector::sigmoid(relu && sum < 0 ? Acc(0) : sum);
}

template <class Acc>
static inline Acc gate_slope(Acc sum, Acc alpha, bool relu) {
  return relu && sum <= 0 ? Acc(0) : alpha * (1 - alpha);
}

// W, row after row.
template <class Acc, class Params>
static void pack_weights(const Params& p, Acc* packed) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  for (int64_t g = 0; g < p.gates; ++g) {
    const Acc* weight_e = static_cast<const Acc*>(p.weight_e) + g * ce;
    const Acc* weight_m = static_cast<const Acc*>(p.weight_m) + g * cm;
    for (int64_t c = 0; c < ce; ++c) *packed++ = weight_e[c];
    for (int64_t c = 0; c < cm; ++c) *packed++ = weight_m[c];
    *packed++ = static_cast<const Acc*>(p.bias)[g];
  }
}

template <class Acc>
static inline Block find_block(const EdgeGatePlan& plan, const Size& size, int64_t job) {
  const int64_t voxel = job % plan.blocks * plan.block, rest = size.voxels() - voxel;
  const int64_t n = rest < plan.block ? rest : plan.block;
  return {job / plan.blocks, voxel, n, (n + kPanel<Acc> - 1) / kPanel<Acc> * kPanel<Acc>};
}

// Whether an output is streamed. In large pages, if it is large.
static bool prepare(const Tensor& out, int64_t batch) {
  const int64_t bytes = batch * out.batch_stride * float_bytes(out.dtype);
  advise_huge(out.data, bytes);
  return bytes > kStreamed;
}

template <class Acc>
static void edge_gate(const EdgeGate& p) {
  const EdgeGatePlan plan(p.size, p.main_channels, p.gates, false);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t inputs = plan.inputs, pitch = plan.pitch;
  constexpr int64_t panel = kPanel<Acc>;
  Acc* weights = static_cast<Acc*>(p.resources.workspace);
  pack_weights(p, weights);
  const bool stream = prepare(p.out, p.size.batch);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* x = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *e = x, *m = x + ce * pitch, *ones = m + cm * pitch;
    Acc *sums = ones + pitch, *staging = x + plan.staging;
    for (int64_t v = 0; v < plan.block; ++v) ones[v] = 1;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < plan.jobs; ++job) {
      const Block block = find_block<Acc>(plan, p.size, job);
      load_block(p.e, ce, block, staging, e, pitch);
      load_block(p.m, cm, block, staging, m, pitch);
      for (int64_t v = 0; v < block.filled; v += panel) {
        prefetch_panel<Acc>(p.e, ce, block, v);
        prefetch_panel<Acc>(p.m, cm, block, v);
        multiply(gates, inputs, weights, inputs, 1, x + v, pitch, sums, panel, false);
        for (int64_t i = 0; i < gates * panel; ++i) sums[i] = 1 + gate(sums[i], p.relu);
        for (int64_t c = 0; c < ce; ++c) {
          const Acc* factor = sums + (gates == 1 ? 0 : c) * panel;
          for (int64_t i = 0; i < panel; ++i) e[c * pitch + v + i] *= factor[i];
        }
      }
      store_block(p.out, ce, block, stream, staging, e, pitch);
    }
    stream_fence();
  }
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  if (p.e.dtype == DType::f64) return edge_gate<double>(p);
  edge_gate<float>(p);
}

// Turns a panel's sums into ds, and grad into the part of de that goes past the gate.
template <class Acc>
static inline void through_gate(int64_t channels, int64_t gates, bool relu, const Acc* e, Acc* grad,
                                Acc* sums, int64_t pitch) {
  constexpr int64_t panel = kPanel<Acc>;
  if (gates != 1) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = c * pitch; i < c * pitch + panel; ++i) {
        const Acc alpha = gate(sums[i], relu);
        sums[i] = grad[i] * e[i] * gate_slope(sums[i], alpha, relu);
        grad[i] *= 1 + alpha;
      }
    }
    return;
  }
  // One attention value gathers its gradient from every channel.
  Acc products[panel] = {}, factor[panel];
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < panel; ++i) products[i] += e[c * pitch + i] * grad[c * pitch + i];
  }
  for (int64_t i = 0; i < panel; ++i) {
    const Acc alpha = gate(sums[i], relu);
    sums[i] = products[i] * gate_slope(sums[i], alpha, relu);
    factor[i] = 1 + alpha;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < panel; ++i) grad[c * pitch + i] *= factor[i];
  }
}

// dW is summed in two stages: within each of a number of chunks that depends on the sizes alone,
// then over the chunks in order. So the threads change no bit of the result.
template <class Acc>
static void edge_gate_backward(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p.size, p.main_channels, p.gates, true);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t inputs = plan.inputs, pitch = plan.pitch;
  constexpr int64_t panel = kPanel<Acc>;
  double* grad_weights = static_cast<double*>(p.resources.workspace);
  Acc* weights = reinterpret_cast<Acc*>(grad_weights + plan.chunks * plan.weights);
  pack_weights(p, weights);
  const bool stream_e = prepare(p.grad_e, p.size.batch);
  const bool stream_m = prepare(p.grad_m, p.size.batch);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* x = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *e = x, *m = x + ce * pitch, *ones = m + cm * pitch;
    Acc *grad = ones + pitch, *sums = grad + ce * pitch, *staging = x + plan.staging;
    for (int64_t v = 0; v < plan.block; ++v) ones[v] = 1;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      double* partial = grad_weights + chunk * plan.weights;
      for (int64_t i = 0; i < plan.weights; ++i) partial[i] = 0;
      int64_t first, last;
      share(plan.jobs, plan.chunks, chunk, &first, &last);
      for (int64_t job = first; job < last; ++job) {
        const Block block = find_block<Acc>(plan, p.size, job);
        load_block(p.e, ce, block, staging, e, pitch);
        load_block(p.m, cm, block, staging, m, pitch);
        load_block(p.grad, ce, block, staging, grad, pitch);
        for (int64_t v = 0; v < block.filled; v += panel) {
          prefetch_panel<Acc>(p.e, ce, block, v);
          prefetch_panel<Acc>(p.m, cm, block, v);
          multiply(gates, inputs, weights, inputs, 1, x + v, pitch, sums + v, pitch, false);
          through_gate(ce, gates, p.relu, e + v, grad + v, sums + v, pitch);
          prefetch_panel<Acc>(p.grad, ce, block, v);
          multiply(ce, gates, weights, 1, inputs, sums + v, pitch, grad + v, pitch, true);
        }
        multiply_rows(gates, inputs, block.filled, sums, x, pitch, partial);
        for (int64_t v = 0; v < block.filled; v += panel) {
          multiply(cm, gates, weights + ce, 1, inputs, sums + v, pitch, m + v, pitch, false);
        }
        store_block(p.grad_e, ce, block, stream_e, staging, grad, pitch);
        store_block(p.grad_m, cm, block, stream_m, staging, m, pitch);
      }
    }
    stream_fence();
  }

  const auto total = [&](int64_t i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      sum += grad_weights[chunk * plan.weights + i];
    }
    return Acc(sum);
  };
  for (int64_t g = 0; g < gates; ++g) {
    const int64_t row = g * inputs;
    Acc* to_e = static_cast<Acc*>(p.grad_weight_e) + g * ce;
    Acc* to_m = static_cast<Acc*>(p.grad_weight_m) + g * cm;
    for (int64_t c = 0; c < ce; ++c) to_e[c] = total(row + c);
    for (int64_t c = 0; c < cm; ++c) to_m[c] = total(row + ce + c);
    static_cast<Acc*>(p.grad_bias)[g] = total(row + ce + cm);
  }
}

void edge_gate_backward_launch(const EdgeGateBackward& p) {
  // No early return on empty volumes: the weight gradients are then zero, not nothing.
  if (p.e.dtype == DType::f64) return edge_gate_backward<double>(p);
  edge_gate_backward<float>(p);
}

}  // namespace egcnn::EGCNN_ISA
