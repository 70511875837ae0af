// The gate with one attention value per voxel. It is memory-bound, since each row is used as it is
// loaded: forward adds it to the sums, backward also to the gradient of the attention value.
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
#include "matmul.h"
#include "plan.h"
#include "prefetch.h"
#include "resampled.h"
#include "voxel_channels_last.h"
#include "weights.h"

namespace egcnn::EGCNN_ISA {

// Whether all volumes have channels in whole vectors, and one size.
template <class Acc>
static bool in_vectors(const EdgeGate& p, const Size* coarse, const Tensor& like_e) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  return !coarse && channels_in_vectors<Acc>(p.e, ce) && channels_in_vectors<Acc>(p.m, cm) &&
         channels_in_vectors<Acc>(like_e, ce);
}

template <class Acc>
static bool in_vectors(const EdgeGateBackward& p, const Size* coarse) {
  return in_vectors<Acc>(p, coarse, p.grad) &&
         channels_in_vectors<Acc>(p.grad_e, p.size.channels) &&
         channels_in_vectors<Acc>(p.grad_m, p.main_channels) && p.grad.dtype == p.e.dtype;
}

// Loads or interpolates a block's rows of e, and hands their vectors to use(c)(position, vector).
template <class Acc, class Use>
static inline void load_edge(const EdgeGate& p, Upsampled<Acc>* upsampled, const Block& block,
                             PrefetchQueue& queue, Acc* transit, Acc* e, int64_t pitch,
                             const Use& use) {
  if (!upsampled) return load_each(p.e, p.size.channels, block, queue, transit, e, pitch, use);
  upsampled->load(block, e, pitch);
  use_each(p.size.channels, block, e, pitch, use);
}

static void queue_next(PrefetchQueue& queue, const EdgeGate& p, const Size* coarse,
                       const Block& block) {
  queue = PrefetchQueue();
  if (!coarse) add_next(queue, p.e, p.size.channels, block);
  add_next(queue, p.m, p.main_channels, block);
}

template <class Acc>
static void voxel_gate_in(const EdgeGate& p, const Size* coarse) {
  const EdgeGatePlan plan(p, coarse);
  const int64_t ce = p.size.channels, cm = p.main_channels, pitch = plan.pitch;
  constexpr int64_t lanes = kLanes<Acc>;
  Acc* weights = static_cast<Acc*>(p.resources.workspace);
  pack_weights(p, weights);
  const Output out(p.out, p.size.batch);
  const auto low = lowest<Acc>(p.relu);
  const Resampled<Acc> resampled(p, coarse, plan);
  const bool channels_last = in_vectors<Acc>(p, coarse, p.out);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* e = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *m = e + ce * pitch, *sums = m + cm * pitch, *transit = e + plan.transit;
    const auto upsampled = resampled.upsampled(e);
    PrefetchQueue queue;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < plan.jobs; ++job) {
      const Block block = block_at<Acc>(plan, p.size, job);
      if (channels_last) {
        voxel_channels_last<Acc>(p, block, weights, out.stream, {ce, e}, {cm, m});
        continue;
      }
      const int64_t n = block.padded;
      for (int64_t v = 0; v < n; ++v) sums[v] = weights[ce + cm];
      const auto add = [=](int64_t c) {
        return [sums, weight = weights[c]](int64_t i, Vector<Acc> x) {
          store_vector(sums + i, load_vector(sums + i) + weight * x);
        };
      };
      load_edge(p, upsampled.get(), block, queue, transit, e, pitch, add);
      load_each(p.m, cm, block, queue, transit, m, pitch, [=](int64_t c) { return add(ce + c); });
      for (int64_t v = 0; v < n; v += lanes) {
        store_vector(sums + v, 1 + sigmoid<Acc>(load_vector(sums + v), low));
      }
      queue_next(queue, p, coarse, block);
      store_each(out, ce, block, queue, transit, e, pitch, [=](int64_t c) {
        return [sums, row = e + c * pitch](int64_t i) {
          return load_vector(row + i) * load_vector(sums + i);
        };
      });
    }
    stream_fence();
  }
}

void voxel_gate(const EdgeGate& p, const Size* coarse) {
  with_accumulator(p.e.dtype, [&](auto acc) { voxel_gate_in<decltype(acc)>(p, coarse); });
}

template <class Acc, bool kResampled>
static void voxel_gate_backward_in(const EdgeGateBackward& p, const Size* coarse) {
  const EdgeGatePlan plan(p, coarse);
  const int64_t ce = p.size.channels, cm = p.main_channels, depth = plan.inputs, pitch = plan.pitch;
  constexpr int64_t lanes = kLanes<Acc>;
  double* grad_weights = static_cast<double*>(p.resources.workspace);
  Acc* weights = reinterpret_cast<Acc*>(grad_weights + plan.chunks * plan.weights);
  pack_weights(p, weights);
  const Output out_e(p.grad_e, p.size.batch), out_m(p.grad_m, p.size.batch);
  const auto low = lowest<Acc>(p.relu);
  const Resampled<Acc> resampled(p, coarse, plan, out_e,
                                 weights + plan.weights + p.resources.threads * plan.scratch);
  const bool channels_last = in_vectors<Acc>(p, coarse);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* e = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *m = e + ce * pitch, *grad = m + cm * pitch, *sums = grad + ce * pitch;
    Acc *factor = sums + pitch, *transit = e + plan.transit;
    const auto upsampled = resampled.upsampled(e);
    const auto gradient = resampled.gradient(e);
    PrefetchQueue queue;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      double* partial = grad_weights + chunk * plan.weights;
      for (int64_t i = 0; i < plan.weights; ++i) partial[i] = 0;
      const auto differentiate = [&](const Block& block) __attribute__((always_inline)) {
        if (channels_last) {
          voxel_channels_last_backward<Acc>(p, block, weights, out_e.stream, out_m.stream, {ce, e},
                                            {cm, m}, {ce, grad}, partial);
          return;
        }
        const int64_t n = block.padded;
        for (int64_t v = 0; v < n; ++v) sums[v] = weights[depth], factor[v] = 0;
        const auto add = [=](int64_t c) {
          return [sums, weight = weights[c]](int64_t i, Vector<Acc> x) {
            store_vector(sums + i, load_vector(sums + i) + weight * x);
          };
        };
        load_edge(p, upsampled.get(), block, queue, transit, e, pitch, add);
        load_each(p.m, cm, block, queue, transit, m, pitch, [=](int64_t c) { return add(ce + c); });
        // The gradient of the attention value is a sum over all channels.
        load_each(p.grad, ce, block, queue, transit, grad, pitch, [=](int64_t c) {
          return [factor, row = e + c * pitch](int64_t i, Vector<Acc> x) {
            store_vector(factor + i, load_vector(factor + i) + load_vector(row + i) * x);
          };
        });
        for (int64_t v = 0; v < n; v += lanes) {
          const auto sum = load_vector(sums + v), alpha = sigmoid<Acc>(sum, low);
          store_vector(sums + v, load_vector(factor + v) * slope<Acc>(sum, alpha, low));
          store_vector(factor + v, 1 + alpha);
        }
        matmul_transposed(1, depth, n, sums, e, pitch, partial);
        partial[depth] += sum_row(n, sums);
        queue_next(queue, p, coarse, block);
        add_next(queue, p.grad, ce, block);
        const auto grad_e = [=](int64_t c) {
          return [sums, factor, row = grad + c * pitch, weight = weights[c]](int64_t i) {
            return load_vector(row + i) * load_vector(factor + i) + weight * load_vector(sums + i);
          };
        };
        if constexpr (kResampled) {
          make_each(ce, block, queue, grad, pitch, grad_e);
          gradient->add(block, grad, pitch);
        } else {
          store_each(out_e, ce, block, queue, transit, grad, pitch, grad_e);
        }
        store_each(out_m, cm, block, queue, transit, m, pitch, [=](int64_t c) {
          return [sums, weight = weights[ce + c]](int64_t i) {
            return weight * load_vector(sums + i);
          };
        });
      };
      each_block<kResampled>(plan, p.size, chunk, gradient.get(), differentiate);
    }
    resampled.store_borders(e);
    stream_fence();
  }
  sum_chunks<Acc>(p, plan, grad_weights);
}

void voxel_gate_backward(const EdgeGateBackward& p, const Size* coarse) {
  with_accumulator(p.e.dtype, [&](auto acc) {
    if (coarse) {
      voxel_gate_backward_in<decltype(acc), true>(p, coarse);
    } else {
      voxel_gate_backward_in<decltype(acc), false>(p, nullptr);
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
