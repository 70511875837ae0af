// The gate with one attention value per channel: matmuls of the weights and a block of all inputs.
#include <omp.h>

#include <cstdint>

#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/stream.h"
#include "../simd/threads.h"
#include "../simd/vectors.h"
#include "blocks.h"
#include "coarse_gradient.h"
#include "gate.h"
#include "inputs.h"
#include "matmul.h"
#include "plan.h"
#include "prefetch.h"
#include "resampled.h"
#include "weights.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
static void channel_gate_in(const EdgeGate& p, const Size* coarse) {
  const EdgeGatePlan plan(p, coarse);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t depth = plan.inputs, pitch = plan.pitch;
  constexpr int64_t panel = kPanel<Acc>, lanes = kLanes<Acc>;
  Acc* weights = static_cast<Acc*>(p.resources.workspace);
  const Acc* bias = weights + gates * depth;
  pack_weights(p, weights);
  const Output out(p.out, p.size.batch);
  const auto low = lowest<Acc>(p.relu);
  const Resampled<Acc> resampled(p, coarse, plan);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* scratch = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *sums = scratch + plan.sums, *transit = scratch + plan.transit;
    const auto upsampled = resampled.upsampled(scratch);
    BlockInputs<Acc> inputs(plan, scratch, {{&p.e, ce, upsampled.get()}, {&p.m, cm}});
    PrefetchQueue queue;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < plan.jobs; ++job) {
      const Block block = block_at<Acc>(plan, p.size, job);
      Acc* e = inputs.load(block, queue);
      for (int64_t v = 0; v < block.padded; v += panel) {
        matmul<Left::kAsIs, Result::kStored>(gates, depth, weights, depth, e + v, pitch, sums,
                                             panel, queue);
        for (int64_t c = 0; c < ce; ++c) {
          Acc* row = e + c * pitch + v;
          for (int64_t i = 0; i < panel; i += lanes) {
            const auto alpha = sigmoid<Acc>(load_vector(sums + c * panel + i) + bias[c], low);
            const auto value = load_vector(row + i);
            store_vector(row + i, value + value * alpha);
          }
        }
      }
      inputs.finish(queue);
      store_block(out.tensor, ce, block, out.stream, transit, e, pitch);
    }
    stream_fence();
  }
}

void channel_gate(const EdgeGate& p, const Size* coarse) {
  with_accumulator(p.e.dtype, [&](auto acc) { channel_gate_in<decltype(acc)>(p, coarse); });
}

template <class Acc, bool kResampled>
static void channel_gate_backward_in(const EdgeGateBackward& p, const Size* coarse) {
  const EdgeGatePlan plan(p, coarse);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t depth = plan.inputs, pitch = plan.pitch;
  constexpr int64_t panel = kPanel<Acc>, lanes = kLanes<Acc>;
  double* grad_weights = static_cast<double*>(p.resources.workspace);
  Acc* weights = reinterpret_cast<Acc*>(grad_weights + plan.chunks * plan.weights);
  const Acc* bias = weights + gates * depth;
  pack_weights(p, weights);
  const Output out_e(p.grad_e, p.size.batch);
  const Output out_m(p.grad_m, p.size.batch);
  const auto low = lowest<Acc>(p.relu);
  const Resampled<Acc> resampled(p, coarse, plan, out_e,
                                 weights + plan.weights + p.resources.threads * plan.scratch);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* scratch = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *sums = scratch + plan.sums, *transit = scratch + plan.transit;
    const auto upsampled = resampled.upsampled(scratch);
    const auto gradient = resampled.gradient(scratch);
    BlockInputs<Acc> inputs(plan, scratch,
                            {{&p.e, ce, upsampled.get()}, {&p.m, cm}, {&p.grad, ce}});
    PrefetchQueue queue;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      double* partial = grad_weights + chunk * plan.weights;
      for (int64_t i = 0; i < plan.weights; ++i) partial[i] = 0;
      const auto differentiate = [&](const Block& block) __attribute__((always_inline)) {
        Acc *e = inputs.load(block, queue), *m = e + ce * pitch, *grad = m + cm * pitch;
        for (int64_t v = 0; v < block.padded; v += panel) {
          matmul<Left::kAsIs, Result::kStored>(gates, depth, weights, depth, e + v, pitch, sums + v,
                                               pitch, queue);
          // Convert the sums to ds, and grad to the part of de that bypasses the gate.
          for (int64_t c = 0; c < ce; ++c) {
            for (int64_t i = c * pitch + v; i < c * pitch + v + panel; i += lanes) {
              const auto sum = load_vector(sums + i) + bias[c], alpha = sigmoid<Acc>(sum, low);
              const auto grad_out = load_vector(grad + i);
              store_vector(sums + i, grad_out * load_vector(e + i) * slope<Acc>(sum, alpha, low));
              store_vector(grad + i, grad_out + grad_out * alpha);
            }
          }
          matmul<Left::kTransposed, Result::kAdded>(ce, gates, weights, depth, sums + v, pitch,
                                                    grad + v, pitch, queue);
        }
        matmul_transposed(gates, depth, block.padded, sums, e, pitch, partial);
        for (int64_t g = 0; g < gates; ++g) {
          partial[gates * depth + g] += sum_row(block.padded, sums + g * pitch);
        }
        for (int64_t v = 0; v < block.padded; v += panel) {
          matmul<Left::kTransposed, Result::kStored>(cm, gates, weights + ce, depth, sums + v,
                                                     pitch, m + v, pitch, queue);
        }
        inputs.finish(queue);
        if constexpr (kResampled) {
          gradient->add(block, grad, pitch);
        } else {
          store_block(p.grad_e, ce, block, out_e.stream, transit, grad, pitch);
        }
        store_block(p.grad_m, cm, block, out_m.stream, transit, m, pitch);
      };
      each_block<kResampled>(plan, p.size, chunk, gradient.get(), differentiate);
    }
    resampled.store_borders(scratch);
    stream_fence();
  }
  sum_chunks<Acc>(p, plan, grad_weights);
}

void channel_gate_backward(const EdgeGateBackward& p, const Size* coarse) {
  with_accumulator(p.e.dtype, [&](auto acc) {
    if (coarse) {
      channel_gate_backward_in<decltype(acc), true>(p, coarse);
    } else {
      channel_gate_backward_in<decltype(acc), false>(p, nullptr);
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
