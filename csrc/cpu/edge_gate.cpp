// The edge-gated layer (Eqs. 1 and 2), in blocks of voxels that stay in the second-level cache from
// the load to the store. With x = (e, m, 1) and W = (We, Wm, b), a block's sums are W x; backward,
// with ds their gradient, dx = W^T ds and dW = ds x^T.
#include <omp.h>

#include "edge_gate_block.h"
#include "pages.h"
#include "vector_math.h"
#include "workspaces.h"

namespace egcnn::EGCNN_ISA {

// The gate of math/gate.h, for loops over vectors.
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

static size_t bytes(const Tensor& t, int64_t batch) {
  const int sizes[] = {8, 4, 2, 2};
  return batch * t.batch_stride * sizes[int(t.dtype)];
}

// Larger outputs leave the caches before anyone reads them again.
static bool streams(size_t bytes) { return bytes > size_t(8) << 20; }

// The block of inputs of a job, filled up with zeros to whole panels.
template <class Acc, class Params>
static inline void load_inputs(const Params& p, const EdgeGatePlan& plan, int64_t batch,
                               int64_t voxel, int64_t n, int64_t filled, Acc* staging, Acc* x) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  load_block(p.e, ce, batch, voxel, n, filled, staging, x, plan.pitch);
  load_block(p.m, cm, batch, voxel, n, filled, staging, x + ce * plan.pitch, plan.pitch);
  Acc* ones = x + (ce + cm) * plan.pitch;
  for (int64_t v = 0; v < filled; ++v) ones[v] = 1;
}

template <class Acc>
static inline int64_t fill(int64_t n) {
  return (n + kPanel<Acc> - 1) / kPanel<Acc> * kPanel<Acc>;
}

template <class Acc>
static void edge_gate(const EdgeGate& p) {
  const EdgeGatePlan plan(p.size, p.main_channels, p.gates, false);
  const int64_t ce = p.size.channels, voxels = p.size.voxels(), pitch = plan.pitch;
  Acc* weights = static_cast<Acc*>(p.resources.workspace);
  pack_weights(p, weights);
  const size_t size = bytes(p.out, p.size.batch);
  advise_huge(p.out.data, size);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* x = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc* sums = x + plan.inputs * pitch;
    Acc* staging = x + plan.staging;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < plan.jobs; ++job) {
      const int64_t batch = job / plan.blocks, voxel = job % plan.blocks * plan.block;
      const int64_t n = voxels - voxel < plan.block ? voxels - voxel : plan.block;
      const int64_t filled = fill<Acc>(n);
      load_inputs(p, plan, batch, voxel, n, filled, staging, x);
      for (int64_t v = 0; v < filled; v += kPanel<Acc>) {
        prefetch_block(p.e, ce, batch, voxel + n + v, kPanel<Acc>);
        prefetch_block(p.m, p.main_channels, batch, voxel + n + v, kPanel<Acc>);
        multiply(p.gates, plan.inputs, weights, plan.inputs, 1, x + v, pitch, sums, kPanel<Acc>,
                 false);
        for (int64_t i = 0; i < p.gates * kPanel<Acc>; ++i) sums[i] = 1 + gate(sums[i], p.relu);
        for (int64_t c = 0; c < ce; ++c) {
          Acc* e = x + c * pitch + v;
          const Acc* factor = sums + (p.gates == 1 ? 0 : c) * kPanel<Acc>;
          for (int64_t i = 0; i < kPanel<Acc>; ++i) e[i] *= factor[i];
        }
      }
      store_block(p.out, ce, batch, voxel, n, streams(size), staging, x, pitch);
    }
    end_streaming();
  }
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  if (p.e.dtype == DType::f64) return edge_gate<double>(p);
  edge_gate<float>(p);
}

// dW is summed in two stages: within each of a number of chunks that depends on the sizes alone,
// then over the chunks in order. So the threads change no bit of the result.
template <class Acc>
static void edge_gate_backward(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p.size, p.main_channels, p.gates, true);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t voxels = p.size.voxels(), inputs = plan.inputs, pitch = plan.pitch;
  double* grad_weights = static_cast<double*>(p.resources.workspace);
  Acc* weights = reinterpret_cast<Acc*>(grad_weights + plan.chunks * plan.weights);
  pack_weights(p, weights);
  const size_t size_e = bytes(p.grad_e, p.size.batch), size_m = bytes(p.grad_m, p.size.batch);
  advise_huge(p.grad_e.data, size_e);
  advise_huge(p.grad_m.data, size_m);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* x = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc* m = x + ce * pitch;
    Acc* grad = x + inputs * pitch;
    Acc* sums = grad + ce * pitch;
    Acc* staging = x + plan.staging;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      double* partial = grad_weights + chunk * plan.weights;
      for (int64_t i = 0; i < plan.weights; ++i) partial[i] = 0;
      int64_t first, last;
      share(plan.jobs, plan.chunks, chunk, &first, &last);
      for (int64_t job = first; job < last; ++job) {
        const int64_t batch = job / plan.blocks, voxel = job % plan.blocks * plan.block;
        const int64_t n = voxels - voxel < plan.block ? voxels - voxel : plan.block;
        const int64_t filled = fill<Acc>(n);
        load_inputs(p, plan, batch, voxel, n, filled, staging, x);
        load_block(p.grad, ce, batch, voxel, n, filled, staging, grad, pitch);
        for (int64_t v = 0; v < filled; v += kPanel<Acc>) {
          Acc *s = sums + v, *g = grad + v, *e = x + v;
          prefetch_block(p.e, ce, batch, voxel + n + v, kPanel<Acc>);
          prefetch_block(p.m, cm, batch, voxel + n + v, kPanel<Acc>);
          multiply(gates, inputs, weights, inputs, 1, e, pitch, s, pitch, false);
          // ds, in the place of the sums, and the part of de that goes past the gate.
          if (gates == 1) {
            Acc products[kPanel<Acc>] = {};
            for (int64_t c = 0; c < ce; ++c) {
              for (int64_t i = 0; i < kPanel<Acc>; ++i) {
                products[i] += e[c * pitch + i] * g[c * pitch + i];
              }
            }
            for (int64_t i = 0; i < kPanel<Acc>; ++i) {
              const Acc alpha = gate(s[i], p.relu);
              s[i] = products[i] * gate_slope(s[i], alpha, p.relu);
              products[i] = 1 + alpha;
            }
            for (int64_t c = 0; c < ce; ++c) {
              for (int64_t i = 0; i < kPanel<Acc>; ++i) g[c * pitch + i] *= products[i];
            }
          } else {
            for (int64_t c = 0; c < ce; ++c) {
              for (int64_t i = c * pitch; i < c * pitch + kPanel<Acc>; ++i) {
                const Acc alpha = gate(s[i], p.relu);
                s[i] = g[i] * e[i] * gate_slope(s[i], alpha, p.relu);
                g[i] *= 1 + alpha;
              }
            }
          }
          prefetch_block(p.grad, ce, batch, voxel + n + v, kPanel<Acc>);
          multiply(ce, gates, weights, 1, inputs, s, pitch, g, pitch, true);
        }
        multiply_rows(gates, inputs, filled, sums, x, pitch, partial);
        for (int64_t v = 0; v < filled; v += kPanel<Acc>) {
          multiply(cm, gates, weights + ce, 1, inputs, sums + v, pitch, m + v, pitch, false);
        }
        store_block(p.grad_e, ce, batch, voxel, n, streams(size_e), staging, grad, pitch);
        store_block(p.grad_m, cm, batch, voxel, n, streams(size_m), staging, m, pitch);
      }
    }
    end_streaming();
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
