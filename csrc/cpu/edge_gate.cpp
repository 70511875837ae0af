// The edge-gated layer (Eqs. 1 and 2), in blocks of voxels that stay in the second-level cache
// between the two 1x1x1 convolutions and the product.
#include "../math/gate.h"
#include "workspaces.h"
#include "rows.h"

#include <omp.h>

namespace egcnn::EGCNN_ISA {

// Loads and stores a block of voxels of every channel, channel after channel. In channels_last_3d
// the block is one run of memory, which is turned over in the cache: `staging` holds it.
template <class Acc>
static inline void load_block(const Tensor& t, int64_t channels, int64_t batch, int64_t voxel,
                              int64_t n, Acc* __restrict staging, Acc* __restrict out) {
  if (t.voxel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      load(t, offset(t, batch, c, voxel), n, out + c * kBlock);
    }
    return;
  }
  const Tensor run{t.data, t.dtype, 0, 0, 1};
  load(run, offset(t, batch, 0, voxel), n * channels, staging);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t v = 0; v < n; ++v) out[c * kBlock + v] = staging[v * channels + c];
  }
}

template <class Acc>
static inline void store_block(const Tensor& t, int64_t channels, int64_t batch, int64_t voxel,
                               int64_t n, Acc* __restrict staging, const Acc* __restrict in) {
  if (t.voxel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      store(t, offset(t, batch, c, voxel), n, in + c * kBlock);
    }
    return;
  }
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t c = 0; c < channels; ++c) staging[v * channels + c] = in[c * kBlock + v];
  }
  const Tensor run{t.data, t.dtype, 0, 0, 1};
  store(run, offset(t, batch, 0, voxel), n * channels, staging);
}

// out[r] += sum over c of weight(r, c) * in[c]; four channels a pass, to load `out` less often.
template <class Acc, class Weight>
static inline void multiply(int64_t rows, int64_t channels, Weight&& weight, const Acc* in,
                            int64_t n, Acc* out) {
  for (int64_t r = 0; r < rows; ++r) {
    Acc* __restrict sum = out + r * kBlock;
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
      const Acc w0 = weight(r, c), w1 = weight(r, c + 1);
      const Acc w2 = weight(r, c + 2), w3 = weight(r, c + 3);
      const Acc *a = in + c * kBlock, *b = a + kBlock, *d = b + kBlock, *f = d + kBlock;
      for (int64_t v = 0; v < n; ++v) sum[v] += w0 * a[v] + w1 * b[v] + w2 * d[v] + w3 * f[v];
    }
    for (; c < channels; ++c) {
      const Acc w = weight(r, c);
      const Acc* a = in + c * kBlock;
      for (int64_t v = 0; v < n; ++v) sum[v] += w * a[v];
    }
  }
}

template <class Acc>
static inline Acc dot(const Acc* a, const Acc* b, int64_t n) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t v = 0; v < n; ++v) sum += a[v] * b[v];
  return sum;
}

// The argument of the gate's activation for a block.
template <class Acc, class Params>
static inline void gate_sums(const Params& p, const Acc* e, const Acc* m, int64_t n, Acc* sums) {
  const Acc* weight_e = static_cast<const Acc*>(p.weight_e);
  const Acc* weight_m = static_cast<const Acc*>(p.weight_m);
  const Acc* bias = static_cast<const Acc*>(p.bias);
  const int64_t ce = p.size.channels, cm = p.main_channels;
  for (int64_t g = 0; g < p.gates; ++g) {
    for (int64_t v = 0; v < n; ++v) sums[g * kBlock + v] = bias[g];
  }
  multiply(p.gates, ce, [&](int64_t g, int64_t c) { return weight_e[g * ce + c]; }, e, n, sums);
  multiply(p.gates, cm, [&](int64_t g, int64_t c) { return weight_m[g * cm + c]; }, m, n, sums);
}

template <class Acc>
static void edge_gate(const EdgeGate& p) {
  const int64_t ce = p.size.channels, cm = p.main_channels, voxels = p.size.voxels();
  const int64_t blocks = (voxels + kBlock - 1) / kBlock;
#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* e = static_cast<Acc*>(p.resources.workspace) +
             omp_get_thread_num() * edge_gate_scratch(ce, cm, p.gates);
    Acc* m = e + ce * kBlock;
    Acc* sums = m + cm * kBlock;
    Acc* staging = sums + p.gates * kBlock;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < p.size.batch * blocks; ++job) {
      const int64_t batch = job / blocks, voxel = job % blocks * kBlock;
      const int64_t n = voxels - voxel < kBlock ? voxels - voxel : kBlock;
      load_block(p.e, ce, batch, voxel, n, staging, e);
      load_block(p.m, cm, batch, voxel, n, staging, m);
      gate_sums(p, e, m, n, sums);
      for (int64_t i = 0; i < p.gates; ++i) {
        Acc* s = sums + i * kBlock;
        for (int64_t v = 0; v < n; ++v) s[v] = math::gate(s[v], p.relu);
      }
      for (int64_t c = 0; c < ce; ++c) {
        const Acc* alpha = sums + (p.gates == 1 ? 0 : c) * kBlock;
        Acc* x = e + c * kBlock;
        for (int64_t v = 0; v < n; ++v) x[v] = x[v] * alpha[v] + x[v];
      }
      store_block(p.out, ce, batch, voxel, n, staging, e);
    }
  }
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  if (p.e.dtype == DType::f64) return edge_gate<double>(p);
  edge_gate<float>(p);
}

// Weight gradients are summed in two stages: within each of a number of chunks that depends on the
// sizes alone, then over the chunks in order. So the threads change no bit of the result.
template <class Acc>
static void edge_gate_backward(const EdgeGateBackward& p) {
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t voxels = p.size.voxels(), blocks = (voxels + kBlock - 1) / kBlock;
  const int64_t jobs = p.size.batch * blocks;
  const Acc* weight_e = static_cast<const Acc*>(p.weight_e);
  const Acc* weight_m = static_cast<const Acc*>(p.weight_m);
  const int64_t chunks = edge_gate_chunks(ce, cm, gates), sums_size = gates * (ce + cm + 1);
  double* partials = static_cast<double*>(p.resources.workspace);
  Acc* scratches = reinterpret_cast<Acc*>(partials + chunks * sums_size);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* e = scratches + omp_get_thread_num() * edge_gate_backward_scratch(ce, cm, gates);
    Acc* m = e + ce * kBlock;
    Acc* grad = m + cm * kBlock;
    Acc* sums = grad + ce * kBlock;
    Acc* grad_sums = sums + gates * kBlock;
    Acc* grad_m = grad_sums + gates * kBlock;
    Acc* staging = grad_m + cm * kBlock;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double* partial_e = partials + chunk * sums_size;
      double* partial_m = partial_e + gates * ce;
      double* partial_bias = partial_m + gates * cm;
      for (int64_t i = 0; i < sums_size; ++i) partial_e[i] = 0;
      int64_t first, last;
      share(jobs, chunks, chunk, &first, &last);
      for (int64_t job = first; job < last; ++job) {
        const int64_t batch = job / blocks, voxel = job % blocks * kBlock;
        const int64_t n = voxels - voxel < kBlock ? voxels - voxel : kBlock;
        load_block(p.e, ce, batch, voxel, n, staging, e);
        load_block(p.m, cm, batch, voxel, n, staging, m);
        load_block(p.grad, ce, batch, voxel, n, staging, grad);
        gate_sums(p, e, m, n, sums);

        // d out / d alpha = e; one attention value gathers it from every channel.
        for (int64_t c = 0; c < ce; ++c) {
          Acc* __restrict to = grad_sums + (gates == 1 ? 0 : c) * kBlock;
          const Acc *g = grad + c * kBlock, *x = e + c * kBlock;
          if (gates == 1 && c > 0) {
            for (int64_t v = 0; v < n; ++v) to[v] += g[v] * x[v];
          } else {
            for (int64_t v = 0; v < n; ++v) to[v] = g[v] * x[v];
          }
        }
        for (int64_t i = 0; i < gates; ++i) {
          Acc *__restrict s = sums + i * kBlock, *__restrict ds = grad_sums + i * kBlock;
          for (int64_t v = 0; v < n; ++v) {
            const Acc alpha = math::gate(s[v], p.relu);
            ds[v] *= math::gate_slope(s[v], alpha, p.relu);
            s[v] = alpha;
          }
        }
        for (int64_t i = 0; i < gates; ++i) {
          const Acc* ds = grad_sums + i * kBlock;
          for (int64_t c = 0; c < ce; ++c) partial_e[i * ce + c] += dot(ds, e + c * kBlock, n);
          for (int64_t c = 0; c < cm; ++c) partial_m[i * cm + c] += dot(ds, m + c * kBlock, n);
          Acc sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t v = 0; v < n; ++v) sum += ds[v];
          partial_bias[i] += sum;
        }

        for (int64_t c = 0; c < ce; ++c) {
          const Acc* alpha = sums + (gates == 1 ? 0 : c) * kBlock;
          Acc* g = grad + c * kBlock;
          for (int64_t v = 0; v < n; ++v) g[v] += g[v] * alpha[v];
        }
        multiply(ce, gates, [&](int64_t c, int64_t i) { return weight_e[i * ce + c]; }, grad_sums,
                 n, grad);
        for (int64_t i = 0; i < cm * kBlock; ++i) grad_m[i] = 0;
        multiply(cm, gates, [&](int64_t c, int64_t i) { return weight_m[i * cm + c]; }, grad_sums,
                 n, grad_m);
        store_block(p.grad_e, ce, batch, voxel, n, staging, grad);
        store_block(p.grad_m, cm, batch, voxel, n, staging, grad_m);
      }
    }
  }

  const auto reduce = [&](int64_t start, int64_t count, void* out) {
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += partials[chunk * sums_size + start + i];
      }
      static_cast<Acc*>(out)[i] = Acc(sum);
    }
  };
  reduce(0, gates * ce, p.grad_weight_e);
  reduce(gates * ce, gates * cm, p.grad_weight_m);
  reduce(gates * (ce + cm), gates, p.grad_bias);
}

void edge_gate_backward_launch(const EdgeGateBackward& p) {
  // No early return on empty volumes: the weight gradients are then zero, not nothing.
  if (p.e.dtype == DType::f64) return edge_gate_backward<double>(p);
  edge_gate_backward<float>(p);
}

}  // namespace egcnn::EGCNN_ISA
