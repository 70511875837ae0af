// The edge-gated layer (Eqs. 1 and 2), in blocks of voxels that stay in the second-level cache from
// the load to the store. With the inputs x = (e, m) and W = (We, Wm), a block's sums are s = W x + b;
// backward, dx = W^T ds, dW = ds x^T and db the sum of ds.
#include <omp.h>

#include <utility>
#include <vector>

#include "edge_gate_block.h"
#include "edge_gate_last.h"
#include "edge_gate_plan.h"
#include "pages.h"

namespace egcnn::EGCNN_ISA {

// W, row after row, and then b.
template <class Acc, class Params>
static void pack_weights(const Params& p, Acc* packed) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  for (int64_t g = 0; g < p.gates; ++g) {
    const Acc* weight_e = static_cast<const Acc*>(p.weight_e) + g * ce;
    const Acc* weight_m = static_cast<const Acc*>(p.weight_m) + g * cm;
    for (int64_t c = 0; c < ce; ++c) *packed++ = weight_e[c];
    for (int64_t c = 0; c < cm; ++c) *packed++ = weight_m[c];
  }
  for (int64_t g = 0; g < p.gates; ++g) *packed++ = static_cast<const Acc*>(p.bias)[g];
}

template <class Acc>
static inline Block find_block(const EdgeGatePlan& plan, const Size& size, int64_t job) {
  const int64_t voxel = job % plan.blocks * plan.block, rest = size.voxels() - voxel;
  const int64_t n = rest < plan.block ? rest : plan.block;
  return {job / plan.blocks, voxel, n, (n + kPanel<Acc> - 1) / kPanel<Acc> * kPanel<Acc>};
}

// An output, and how it is written.
struct Out {
  Tensor tensor;
  bool stream;  // if it is large: past the caches, and in large pages
};

static Out prepare(const Tensor& tensor, int64_t batch) {
  const int64_t bytes = batch * tensor.batch_stride * float_bytes(tensor.dtype);
  advise_huge(tensor.data, bytes);
  return {tensor, bytes > kStreamed};
}

// Loads a block's rows, and hands each of their vectors to use(row)(position, vector).
template <class Acc, class Use>
static inline void load_each(const Tensor& t, int64_t channels, const Block& block, Ahead& ahead,
                             Acc* staging, Acc* rows, int64_t pitch, Use&& use) {
  const bool apart = t.voxel_stride == 1;
  if (!apart) load_block(t, channels, block, ahead, staging, rows, pitch);
  for (int64_t c = 0; c < channels; ++c) {
    Acc* row = rows + c * pitch;
    const auto with = use(c);
    if (apart) {
      load_row(t, c, block, ahead, row, with);
    } else {
      for (int64_t i = 0; i < block.filled; i += kLanes<Acc>) with(i, load_vector(row + i));
    }
  }
}

// Stores a block's rows, their vectors from make(row)(position). What is ahead comes meanwhile.
template <class Acc, class Make>
static inline void store_each(const Out& out, int64_t channels, const Block& block, Ahead& ahead,
                              Acc* staging, Acc* rows, int64_t pitch, Make&& make) {
  const bool apart = out.tensor.voxel_stride == 1;
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t c = 0; c < channels; ++c) {
    const auto vector = make(c);
    const Ahead::Lines lines = ahead.take(block.filled / lanes);
    const auto next = [=](int64_t i) __attribute__((always_inline)) {
      if (i < lines.count * lanes) __builtin_prefetch(lines.at + i / lanes * 64, 0, 2);
      return vector(i);
    };
    if (apart) {
      store_row<Acc>(out.tensor, c, block, out.stream, next);
    } else {
      Acc* row = rows + c * pitch;
      for (int64_t i = 0; i < block.filled; i += lanes) store_vector(row + i, next(i));
    }
  }
  if (!apart) store_block(out.tensor, channels, block, out.stream, staging, rows, pitch);
}

// One attention value a voxel: as fast as memory, if each row is worked on as it comes.
template <class Acc>
static void voxel_gate(const EdgeGate& p) {
  const EdgeGatePlan plan(p);
  const int64_t ce = p.size.channels, cm = p.main_channels, pitch = plan.pitch;
  constexpr int64_t lanes = kLanes<Acc>;
  Acc* weights = static_cast<Acc*>(p.resources.workspace);
  pack_weights(p, weights);
  const Out out = prepare(p.out, p.size.batch);
  const auto low = lowest<Acc>(p.relu);
  const bool by_voxel = in_vectors<Acc>(p.e, ce) && in_vectors<Acc>(p.m, cm);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* e = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *m = e + ce * pitch, *sums = m + cm * pitch, *staging = e + plan.staging;
    Ahead ahead;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < plan.jobs; ++job) {
      const Block block = find_block<Acc>(plan, p.size, job);
      if (by_voxel) {
        voxel_gate_last<Acc>(p, block, weights, out.stream, {ce, e}, {cm, m});
        continue;
      }
      const int64_t n = block.filled;
      for (int64_t v = 0; v < n; ++v) sums[v] = weights[ce + cm];
      const auto add = [=](int64_t c) {
        return [sums, weight = weights[c]](int64_t i, Vector<Acc> x) {
          store_vector(sums + i, load_vector(sums + i) + weight * x);
        };
      };
      load_each(p.e, ce, block, ahead, staging, e, pitch, add);
      load_each(p.m, cm, block, ahead, staging, m, pitch, [=](int64_t c) { return add(ce + c); });
      for (int64_t v = 0; v < n; v += lanes) {
        store_vector(sums + v, 1 + sigmoid<Acc>(load_vector(sums + v), low));
      }
      ahead = Ahead();
      add_next(ahead, p.e, ce, block);
      add_next(ahead, p.m, cm, block);
      store_each(out, ce, block, ahead, staging, e, pitch, [=](int64_t c) {
        return [sums, row = e + c * pitch](int64_t i) {
          return load_vector(row + i) * load_vector(sums + i);
        };
      });
    }
    stream_fence();
  }
}

// The inputs' rows of one block after the other. Where the plan says so, the products bring those of
// the next block meanwhile.
template <class Acc>
class Inputs {
 public:
  struct Input {
    const Tensor& tensor;
    int64_t channels;
  };

  Inputs(const EdgeGatePlan& plan, const Size& size, Acc* scratch, std::vector<Input> inputs)
      : plan_(plan), size_(size), inputs_(std::move(inputs)), now_(scratch),
        next_(scratch + plan.sums / 2), staging_(scratch + plan.staging) {}

  // All rows of a job's block, one input's after the other's.
  Acc* load(int64_t job, const Block& block, Ahead& ahead) {
    const int64_t pitch = plan_.pitch;
    if (brought_ == job) {
      std::swap(now_, next_);
    } else {
      Acc* to = now_;
      for (const Input& input : inputs_) {
        load_block(input.tensor, input.channels, block, ahead, staging_, to, pitch);
        to += input.channels * pitch;
      }
    }
    ahead = Ahead();
    // Whole blocks only: the rows of others are filled up with zeros.
    const bool brings = plan_.brings && block.voxel + block.n + plan_.block <= size_.voxels();
    brought_ = brings ? job + 1 : -1;
    Acc* to = next_;
    for (const Input& input : inputs_) {
      add_next(ahead, input.tensor, input.channels, block, brings ? to : nullptr,
               pitch * sizeof(Acc));
      to += input.channels * pitch;
    }
    return now_;
  }

  // To be called when the products are through.
  void finish(Ahead& ahead) const {
    if (brought_ >= 0) ahead.bring_rest();
  }

 private:
  const EdgeGatePlan& plan_;
  const Size& size_;
  std::vector<Input> inputs_;
  Acc *now_, *next_, *staging_;
  int64_t brought_ = -1;  // the job whose rows are there before its turn
};

template <class Acc>
static void channel_gate(const EdgeGate& p) {
  const EdgeGatePlan plan(p);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t inputs = plan.inputs, pitch = plan.pitch;
  constexpr int64_t panel = kPanel<Acc>, lanes = kLanes<Acc>;
  Acc* weights = static_cast<Acc*>(p.resources.workspace);
  const Acc* bias = weights + gates * inputs;
  pack_weights(p, weights);
  const Out out = prepare(p.out, p.size.batch);
  const auto low = lowest<Acc>(p.relu);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* scratch = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *sums = scratch + plan.sums, *staging = scratch + plan.staging;
    Inputs<Acc> rows(plan, p.size, scratch, {{p.e, ce}, {p.m, cm}});
    Ahead ahead;
#pragma omp for schedule(static)
    for (int64_t job = 0; job < plan.jobs; ++job) {
      const Block block = find_block<Acc>(plan, p.size, job);
      Acc* e = rows.load(job, block, ahead);
      for (int64_t v = 0; v < block.filled; v += panel) {
        multiply(gates, inputs, weights, inputs, 1, e + v, pitch, sums, panel, false, ahead);
        for (int64_t c = 0; c < ce; ++c) {
          Acc* row = e + c * pitch + v;
          for (int64_t i = 0; i < panel; i += lanes) {
            const auto alpha = sigmoid<Acc>(load_vector(sums + c * panel + i) + bias[c], low);
            const auto value = load_vector(row + i);
            store_vector(row + i, value + value * alpha);
          }
        }
      }
      rows.finish(ahead);
      store_block(out.tensor, ce, block, out.stream, staging, e, pitch);
    }
    stream_fence();
  }
}

size_t edge_gate_workspace(const EdgeGate& p) {
  const EdgeGatePlan plan(p);
  return (plan.weights + p.resources.threads * plan.scratch) * sizeof(double);
}

size_t edge_gate_backward_workspace(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p);
  return ((1 + plan.chunks) * plan.weights + p.resources.threads * plan.scratch) * sizeof(double);
}

void edge_gate_launch(const EdgeGate& p) {
  if (p.size.empty()) return;
  if (p.e.dtype == DType::f64) {
    return p.gates == 1 ? voxel_gate<double>(p) : channel_gate<double>(p);
  }
  return p.gates == 1 ? voxel_gate<float>(p) : channel_gate<float>(p);
}

// dW and db are summed in two stages: within each of a number of chunks that depends on the sizes
// alone, then over the chunks in order. So the threads change no bit of the result.
template <class Acc>
static void add_up(const EdgeGateBackward& p, const EdgeGatePlan& plan, const double* partial) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  const auto total = [&](int64_t i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sum += partial[chunk * plan.weights + i];
    return Acc(sum);
  };
  for (int64_t g = 0; g < p.gates; ++g) {
    const int64_t row = g * plan.inputs;
    Acc* to_e = static_cast<Acc*>(p.grad_weight_e) + g * ce;
    Acc* to_m = static_cast<Acc*>(p.grad_weight_m) + g * cm;
    for (int64_t c = 0; c < ce; ++c) to_e[c] = total(row + c);
    for (int64_t c = 0; c < cm; ++c) to_m[c] = total(row + ce + c);
    static_cast<Acc*>(p.grad_bias)[g] = total(p.gates * plan.inputs + g);
  }
}

template <class Acc>
static void voxel_gate_backward(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p);
  const int64_t ce = p.size.channels, cm = p.main_channels;
  const int64_t inputs = plan.inputs, pitch = plan.pitch;
  constexpr int64_t lanes = kLanes<Acc>;
  double* grad_weights = static_cast<double*>(p.resources.workspace);
  Acc* weights = reinterpret_cast<Acc*>(grad_weights + plan.chunks * plan.weights);
  pack_weights(p, weights);
  const Out out_e = prepare(p.grad_e, p.size.batch);
  const Out out_m = prepare(p.grad_m, p.size.batch);
  const auto low = lowest<Acc>(p.relu);
  const bool by_voxel = in_vectors<Acc>(p.e, ce) && in_vectors<Acc>(p.m, cm) &&
                        in_vectors<Acc>(p.grad, ce) && p.grad.dtype == p.e.dtype;

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* e = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *m = e + ce * pitch, *grad = m + cm * pitch, *sums = grad + ce * pitch;
    Acc *factor = sums + pitch, *staging = e + plan.staging;
    Ahead ahead;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      double* partial = grad_weights + chunk * plan.weights;
      for (int64_t i = 0; i < plan.weights; ++i) partial[i] = 0;
      int64_t first, last;
      share(plan.jobs, plan.chunks, chunk, &first, &last);
      for (int64_t job = first; job < last; ++job) {
        const Block block = find_block<Acc>(plan, p.size, job);
        if (by_voxel) {
          voxel_gate_last_backward<Acc>(p, block, weights, out_e.stream, out_m.stream, {ce, e},
                                        {cm, m}, {ce, grad}, partial);
          continue;
        }
        const int64_t n = block.filled;
        for (int64_t v = 0; v < n; ++v) sums[v] = weights[inputs], factor[v] = 0;
        const auto add = [=](int64_t c) {
          return [sums, weight = weights[c]](int64_t i, Vector<Acc> x) {
            store_vector(sums + i, load_vector(sums + i) + weight * x);
          };
        };
        load_each(p.e, ce, block, ahead, staging, e, pitch, add);
        load_each(p.m, cm, block, ahead, staging, m, pitch, [=](int64_t c) { return add(ce + c); });
        // One attention value gathers its gradient from every channel.
        load_each(p.grad, ce, block, ahead, staging, grad, pitch, [=](int64_t c) {
          return [factor, row = e + c * pitch](int64_t i, Vector<Acc> x) {
            store_vector(factor + i, load_vector(factor + i) + load_vector(row + i) * x);
          };
        });
        for (int64_t v = 0; v < n; v += lanes) {
          const auto sum = load_vector(sums + v), alpha = sigmoid<Acc>(sum, low);
          store_vector(sums + v, load_vector(factor + v) * slope<Acc>(sum, alpha, low));
          store_vector(factor + v, 1 + alpha);
        }
        multiply_rows(1, inputs, n, sums, e, pitch, partial);
        partial[inputs] += sum_row(n, sums);
        ahead = Ahead();
        add_next(ahead, p.e, ce, block);
        add_next(ahead, p.m, cm, block);
        add_next(ahead, p.grad, ce, block);
        store_each(out_e, ce, block, ahead, staging, grad, pitch, [=](int64_t c) {
          return [sums, factor, row = grad + c * pitch, weight = weights[c]](int64_t i) {
            return load_vector(row + i) * load_vector(factor + i) + weight * load_vector(sums + i);
          };
        });
        store_each(out_m, cm, block, ahead, staging, m, pitch, [=](int64_t c) {
          return [sums, weight = weights[ce + c]](int64_t i) {
            return weight * load_vector(sums + i);
          };
        });
      }
    }
    stream_fence();
  }
  add_up<Acc>(p, plan, grad_weights);
}

template <class Acc>
static void channel_gate_backward(const EdgeGateBackward& p) {
  const EdgeGatePlan plan(p);
  const int64_t ce = p.size.channels, cm = p.main_channels, gates = p.gates;
  const int64_t inputs = plan.inputs, pitch = plan.pitch;
  constexpr int64_t panel = kPanel<Acc>, lanes = kLanes<Acc>;
  double* grad_weights = static_cast<double*>(p.resources.workspace);
  Acc* weights = reinterpret_cast<Acc*>(grad_weights + plan.chunks * plan.weights);
  const Acc* bias = weights + gates * inputs;
  pack_weights(p, weights);
  const Out out_e = prepare(p.grad_e, p.size.batch);
  const Out out_m = prepare(p.grad_m, p.size.batch);
  const auto low = lowest<Acc>(p.relu);

#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* scratch = weights + plan.weights + omp_get_thread_num() * plan.scratch;
    Acc *sums = scratch + plan.sums, *staging = scratch + plan.staging;
    Inputs<Acc> rows(plan, p.size, scratch, {{p.e, ce}, {p.m, cm}, {p.grad, ce}});
    Ahead ahead;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      double* partial = grad_weights + chunk * plan.weights;
      for (int64_t i = 0; i < plan.weights; ++i) partial[i] = 0;
      int64_t first, last;
      share(plan.jobs, plan.chunks, chunk, &first, &last);
      for (int64_t job = first; job < last; ++job) {
        const Block block = find_block<Acc>(plan, p.size, job);
        Acc *e = rows.load(job, block, ahead), *m = e + ce * pitch, *grad = m + cm * pitch;
        for (int64_t v = 0; v < block.filled; v += panel) {
          multiply(gates, inputs, weights, inputs, 1, e + v, pitch, sums + v, pitch, false, ahead);
          // Turns the sums into ds, and grad into the part of de that goes past the gate.
          for (int64_t c = 0; c < ce; ++c) {
            for (int64_t i = c * pitch + v; i < c * pitch + v + panel; i += lanes) {
              const auto sum = load_vector(sums + i) + bias[c], alpha = sigmoid<Acc>(sum, low);
              const auto past = load_vector(grad + i);
              store_vector(sums + i, past * load_vector(e + i) * slope<Acc>(sum, alpha, low));
              store_vector(grad + i, past + past * alpha);
            }
          }
          multiply(ce, gates, weights, 1, inputs, sums + v, pitch, grad + v, pitch, true, ahead);
        }
        multiply_rows(gates, inputs, block.filled, sums, e, pitch, partial);
        for (int64_t g = 0; g < gates; ++g) {
          partial[gates * inputs + g] += sum_row(block.filled, sums + g * pitch);
        }
        for (int64_t v = 0; v < block.filled; v += panel) {
          multiply(cm, gates, weights + ce, 1, inputs, sums + v, pitch, m + v, pitch, false, ahead);
        }
        rows.finish(ahead);
        store_block(p.grad_e, ce, block, out_e.stream, staging, grad, pitch);
        store_block(p.grad_m, cm, block, out_m.stream, staging, m, pitch);
      }
    }
    stream_fence();
  }
  add_up<Acc>(p, plan, grad_weights);
}

void edge_gate_backward_launch(const EdgeGateBackward& p) {
  // No early return on empty volumes: the weight gradients are then zero, not nothing.
  if (p.e.dtype == DType::f64) {
    return p.gates == 1 ? voxel_gate_backward<double>(p) : channel_gate_backward<double>(p);
  }
  return p.gates == 1 ? voxel_gate_backward<float>(p) : channel_gate_backward<float>(p);
}

}  // namespace egcnn::EGCNN_ISA
