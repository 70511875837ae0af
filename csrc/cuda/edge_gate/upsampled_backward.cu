// The gradients of the edge gate with e at another resolution.
#include "upsampled_backward.cuh"
#include "upsampled_chunks.cuh"

namespace egcnn::cuda {
namespace {

// --- One attention value per voxel ---

// Columns of a single row of sums, each of which stays where it is.
template <class Acc>
struct KeptColumns {
  Acc* row;
  int64_t columns;

  __host__ __device__ int64_t count() const { return columns; }
  __device__ Acc* place(int64_t column) const { return row + column; }
};

// All gates have the same weights, whose gradients are the sums over the gates: of the weights, one
// gate has them all (tie_slopes). A thread has a channel of e or of m, or the bias.
template <class Acc>
__global__ void __launch_bounds__(256)
    sum_gates_kernel(ChannelColumns<Acc> columns, const Acc* row) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t ce = columns.e_channels, cm = columns.m_channels;
  if (i > ce + cm) return;
  Acc sum = 0;
  if (i == ce + cm) {
    for (int64_t gate = 0; gate < ce; ++gate) sum += row[columns.weights + gate];
    *columns.bias = sum;
    return;
  }
  const int64_t channel = i < ce ? i : i - ce;
  const int64_t chunk = channel / kChunk + (i < ce ? 0 : columns.e_chunks);
  for (int64_t gates = 0; gates < columns.e_chunks; ++gates) {
    const Acc* from = row + (gates * columns.chunks + chunk) * kFragments;
    for (int at = 0; at < kFragments; ++at) {
      if (product_channel(at) == channel % kChunk) sum += from[at];
    }
  }
  (i < ce ? columns.weight_e : columns.weight_m)[channel] = sum;
}

// --- Launches ---

template <bool tf32, bool many, class T>
auto choose_kernel() {
  if constexpr (many) {
    return upsampled_gate_chunks_backward_kernel<tf32, T>;
  } else {
    return upsampled_gate_backward_kernel<tf32, T>;
  }
}

// The samples from one on, as a call of its own.
EdgeGateUpsampledBackward samples_of(EdgeGateUpsampledBackward p, int64_t first, int64_t count,
                                     int64_t element) {
  for (Tensor* tensor : {&p.e, &p.m, &p.grad, &p.grad_e, &p.grad_m}) {
    tensor->data = static_cast<char*>(tensor->data) + first * tensor->batch_stride * element;
  }
  p.size.batch = p.coarse.batch = count;
  return p;
}

// How a call is shared out among launches and blocks. The workspace holds, one after the other, the
// packed weights; the partials, one row per block, and a row of their sums; the windows; and what
// the interpolation needs.
template <class T>
struct Plan {
  using Acc = Accumulate<T>;
  int64_t samples;       // of a launch: as many as have windows of 128 MB, or one
  Columns<Acc> columns;  // of a launch, without memory
  int64_t blocks, packed, row;

  template <class Kernel>
  Plan(const EdgeGateUpsampledBackward& p, Kernel kernel, bool many)
      : Plan(p, resident_blocks(p.resources.device, kernel, kMarchThreads<T>), many) {}

  int64_t partials() const { return (blocks + 1) * row; }
  // Of all that comes before what the interpolation needs.
  int64_t count() const { return packed + partials() + columns.size(); }

 private:
  Plan(const EdgeGateUpsampledBackward& p, int64_t resident, bool many)
      : samples(std::clamp<int64_t>(
            (int64_t(128) << 20) / (make_columns(p, resident, 1).size() * int64_t(sizeof(Acc))), 1,
            p.size.batch)),
        columns(make_columns(p, resident, samples)), packed(PackedWeights<T>(p).count(true)),
        row(ChannelColumns<Acc>(p).count()) {
    const int64_t chunks = many ? ChannelColumns<Acc>(p).chunks : 1;
    blocks = limit_blocks<Acc>(std::min(columns.count * chunks, resident), 1, row);
  }

  static Columns<Acc> make_columns(const EdgeGateUpsampledBackward& p, int64_t resident,
                                   int64_t samples) {
    return Columns<Acc>(Coarse<T>(p, nullptr).grid, kMarchRows<T>, samples,
                        divide_up<int64_t>(p.size.channels, kChunk), resident);
  }
};

template <class T, class Body>
void with_plan(const EdgeGateUpsampledBackward& p, Body&& body) {
  with_tf32<T>(p, [&](auto tf32) {
    with_many<T>(p, [&](auto many) {
      const auto kernel = choose_kernel<tf32, many, T>();
      body(Plan<T>(p, kernel, many), kernel, tf32, many);
    });
  });
}

template <class T>
void sum_weight_gradients(const EdgeGateUpsampledBackward& p, Accumulate<T>* partials,
                          const Plan<T>& plan) {
  using Acc = Accumulate<T>;
  const ChannelColumns<Acc> columns(p);
  if (p.gates > 1) return sum_partials(partials, plan.blocks, columns, p.resources);
  Acc* row = partials + plan.blocks * plan.row;
  sum_partials(partials, plan.blocks, KeptColumns<Acc>{row, plan.row}, p.resources);
  const int64_t count = columns.e_channels + columns.m_channels + 1;
  launch("edge_gate_upsampled_backward: sums over gates", p.resources,
         divide_up<int64_t>(count, 256), 256, 0, sum_gates_kernel<Acc>, columns, row);
}

template <class T>
void launch_backward(const EdgeGateUpsampledBackward& p) {
  using Acc = Accumulate<T>;
  with_plan<T>(p, [&](const Plan<T>& plan, auto kernel, auto tf32, auto many) {
    Acc* const partials = static_cast<Acc*>(p.resources.workspace) + plan.packed;
    Columns<Acc> columns = plan.columns;
    columns.windows = partials + plan.partials();
    pack_weights<T, tf32>(p, true);
    for (int64_t first = 0; first < p.size.batch; first += plan.samples) {
      const int64_t count = std::min(plan.samples, p.size.batch - first);
      const EdgeGateUpsampledBackward q = samples_of(p, first, count, sizeof(T));
      const Coarse<T> coarse(q, columns.windows + plan.columns.size());
      prepare(q, coarse);
      columns.grid = coarse.grid;
      columns.count = plan.columns.count / plan.samples * count;
      launch("edge_gate_upsampled_backward", q.resources, plan.blocks, kMarchThreads<T>, 0, kernel,
             UpsampledGate<T, many>(q, coarse), columns,
             AnyView<T>(q.grad, q.size.channels, q.size.width),
             AnyView<T>(q.grad_m, q.main_channels, q.size.width), partials, first > 0);
      sum_windows<T>(columns, q.grad_e, q.coarse, q.resources);
    }
    sum_weight_gradients(p, partials, plan);
  });
}

template <class T>
size_t backward_workspace(const EdgeGateUpsampledBackward& p) {
  size_t bytes = 0;
  with_plan<T>(p, [&](const Plan<T>& plan, auto, auto, auto) {
    const EdgeGateUpsampledBackward q = samples_of(p, 0, plan.samples, 0);
    bytes = size_t(plan.count()) * sizeof(Accumulate<T>) + Coarse<T>(q, nullptr).bytes();
  });
  return bytes;
}

}  // namespace

size_t edge_gate_upsampled_backward_workspace(const EdgeGateUpsampledBackward& p) {
  size_t bytes = 0;
  if (p.size.empty()) return bytes;
  with_float(p.e.dtype, [&](auto* type) {
    bytes = backward_workspace<std::remove_pointer_t<decltype(type)>>(p);
  });
  return bytes;
}

void edge_gate_upsampled_backward_launch(const EdgeGateUpsampledBackward& p) {
  if (p.size.empty()) return clear_gradients(p);
  with_float(p.e.dtype,
             [&](auto* type) { launch_backward<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace egcnn::cuda
