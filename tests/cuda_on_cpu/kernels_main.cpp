// Runs every kernel of csrc/ops.h on small volumes, for the sanitizers: all types, formats and
// options, in buffers of exactly their size. Each case runs with the threads forward, in reverse
// and shuffled, over different garbage each time. The results must be identical; they differ if an
// element depends on the order or on the initial workspace, or if no thread writes it. With nvcc,
// benchmarks/gpu.sh compiles the same program for compute-sanitizer on a GPU.
//
//   kernels_main [EVERY]    runs only every EVERY-th case of each operator, from its first on, for
//                           slow tools such as race detectors; an odd number meets all options,
//                           which come by twos
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "ops.h"

namespace {

using egcnn::DType;
using egcnn::Kernel;
using egcnn::Size;
using egcnn::Tensor;

constexpr DType kFloats[] = {DType::f64, DType::f32, DType::f16, DType::bf16};
constexpr DType kIntegers[] = {DType::u8, DType::i8, DType::i16, DType::i32, DType::i64};
constexpr const char* kNames[] = {"f64", "f32", "f16", "bf16", "u8", "i8", "i16", "i32", "i64"};
constexpr size_t kBytes[] = {8, 4, 2, 2, 1, 1, 2, 4, 8};

int cases = 0, ran = 0, every = 1, failures = 0;

// Pseudo-random; options are drawn from it, so that all combinations occur.
unsigned draw() {
  static unsigned state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 16;
}

// --- Memory ---

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA says: %s\n", cudaGetErrorString(error));
  std::exit(2);
}

// Device memory. The host writes and reads it through copies.
class Buffer {
 public:
  Buffer() = default;
  // With `offset` the data start one element past the allocator's alignment.
  Buffer(int64_t count, size_t element, bool offset)
      : skip_(offset ? element : 0), bytes_(size_t(count) * element) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, skip_ + bytes_));
    memory_.reset(static_cast<unsigned char*>(memory));
  }
  void* data() const { return memory_.get() + skip_; }
  // fill(address) sets elements of a copy that starts as zeros.
  template <class Fill>
  void write(Fill&& fill) const {
    std::string host(bytes_, '\0');
    fill(static_cast<void*>(host.data()));
    check(cudaMemcpy(data(), host.data(), bytes_, cudaMemcpyHostToDevice));
  }
  void fill(int garbage) const { check(cudaMemset(data(), garbage, bytes_)); }
  std::string content() const {
    std::string host(bytes_, '\0');
    check(cudaMemcpy(host.data(), data(), bytes_, cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { cudaFree(memory); }
  };
  size_t skip_ = 0, bytes_ = 0;
  std::unique_ptr<unsigned char, Free> memory_;
};

void set(void* data, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::f64: static_cast<double*>(data)[i] = value; break;
    case DType::f32: static_cast<float*>(data)[i] = float(value); break;
    case DType::f16: static_cast<__half*>(data)[i] = __float2half_rn(float(value)); break;
    case DType::bf16:
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(float(value));
      break;
    case DType::u8: static_cast<uint8_t*>(data)[i] = uint8_t(value); break;
    case DType::i8: static_cast<int8_t*>(data)[i] = int8_t(value); break;
    case DType::i16: static_cast<int16_t*>(data)[i] = int16_t(value); break;
    case DType::i32: static_cast<int32_t*>(data)[i] = int32_t(value); break;
    case DType::i64: static_cast<int64_t*>(data)[i] = int64_t(value); break;
  }
}

double number(int64_t i) { return double(i * 7919 % 61 - 30) / 16; }

// A tensor and its memory.
struct Volume {
  Tensor tensor{};
  Buffer buffer;

  Volume(DType dtype, Size size) {
    const int64_t voxels = size.voxels(), channels = size.channels;
    buffer = Buffer(size.batch * channels * voxels, kBytes[int(dtype)], draw() % 3 == 0);
    tensor = {buffer.data(), dtype, channels * voxels, voxels, 1};
    if (draw() % 2) {  // channels_last_3d
      tensor.channel_stride = 1;
      tensor.voxel_stride = channels;
    }
  }

  // value(channel, z, y, x)
  template <class Value>
  Volume& fill(Size s, Value&& value) {
    buffer.write([&](void* data) {
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t v = 0; v < s.voxels(); ++v) {
            const int64_t i =
                b * tensor.batch_stride + c * tensor.channel_stride + v * tensor.voxel_stride;
            set(data, tensor.dtype, i,
                value(b + c, v / s.width / s.height, v / s.width % s.height, v % s.width));
          }
        }
      }
    });
    return *this;
  }

  Volume& fill_with_numbers(Size s) {
    return fill(s, [&](int64_t c, int64_t z, int64_t y, int64_t x) {
      return number(((c * s.depth + z) * s.height + y) * s.width + x);
    });
  }

  // Blocks of the classes 0 to count - 1.
  Volume& fill_with_classes(Size s, int64_t count) {
    return fill(s, [&](int64_t c, int64_t z, int64_t y, int64_t x) {
      return double((c + z / 2 + y / 3 * 5 + x / 9 * 7) % count);
    });
  }
};

Buffer numbers(DType dtype, int64_t count) {
  Buffer buffer(count, kBytes[int(dtype)], draw() % 2);
  buffer.write([&](void* data) {
    for (int64_t i = 0; i < count; ++i) set(data, dtype, i, number(i));
  });
  return buffer;
}

// --- Running ---

struct Variant {
  const char* name;
  int order;
  uint64_t seed;
  int garbage;
};
constexpr Variant kVariants[] = {
    {"forward", 0, 0, 0xA5}, {"reverse", 1, 0, 0x5A}, {"shuffled", 2, 1, 0xFF}};

bool selected(const char* name) {
  static std::map<std::string, int> counts;
  ++cases;
  if (counts[name]++ % every != 0) return false;
  ++ran;
  return true;
}

std::set<const void*> launched;  // kernels

template <class Params>
void run(const std::string& what, const Kernel<Params>& kernel, Params params,
         const std::vector<const Buffer*>& outputs) {
  launched.insert(&kernel);
  std::vector<std::string> first;
  for (const Variant& variant : kVariants) {
    params.resources = {nullptr, 1, 0, nullptr};
    const Buffer workspace(int64_t(kernel.workspace(params)), 1, false);
    workspace.fill(variant.garbage);
    params.resources.workspace = workspace.data();
    for (const Buffer* output : outputs) output->fill(variant.garbage);
#ifndef __NVCC__  // on a GPU the hardware chooses
    cuda_on_cpu_set_order(variant.order, variant.seed);
#endif
    try {
      kernel.launch(params);
    } catch (const std::exception& error) {
      std::printf("%s, %s: %s\n", what.c_str(), variant.name, error.what());
      ++failures;
      return;
    }
    std::vector<std::string> results;
    for (const Buffer* output : outputs) results.push_back(output->content());
    if (first.empty()) first = results;
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i] == first[i]) continue;
      const auto byte = std::mismatch(first[i].begin(), first[i].end(), results[i].begin()).first;
      std::printf("%s: output %zu differs between forward and %s at byte %td\n", what.c_str(), i,
                  variant.name, byte - first[i].begin());
      ++failures;
      return;
    }
  }
}

std::string text(const char* kernel, DType dtype, const Tensor& tensor, Size s) {
  std::string words = std::string(kernel) + " " + kNames[int(dtype)];
  if (tensor.voxel_stride != 1) words += " channels_last_3d";
  for (int64_t n : {s.batch, s.channels, s.depth, s.height, s.width}) {
    words += " " + std::to_string(n);
  }
  return words;
}

// --- The kernels ---

void sobel_edges(DType dtype, Size size) {
  for (const bool from_labels : {false, true}) {
    if (from_labels && is_float(dtype)) continue;
    for (const double threshold : {0.0, 0.5}) {
      if (!selected("sobel_edges")) continue;
      const Size labels_size{size.batch, from_labels ? 1 : size.channels, size.depth, size.height,
                             size.width};
      Volume labels(dtype, labels_size), edges(DType::u8, size);
      labels.fill_with_classes(labels_size, 5);
      std::vector<int64_t> values, counts;
      for (int64_t region = 0; region < size.channels; ++region) {  // nested, as for BraTS
        counts.push_back(1 + region % 3);
        for (int64_t i = 0; i < counts.back(); ++i) {
          values.push_back(region % 3 == 2 ? 4 - i : 1 + i);
        }
      }
      egcnn::SobelEdges p{};
      p.labels = labels.tensor;
      p.edges = edges.tensor;
      p.size = size;
      p.region_values = values.data();
      p.region_counts = from_labels ? counts.data() : nullptr;
      p.threshold = threshold;
      run(text(from_labels ? "sobel_edges of labels" : "sobel_edges", dtype, p.labels, size),
          egcnn::cuda::kernels().sobel_edges, p, {&edges.buffer});
    }
  }
}

void sobel_magnitude(DType dtype, Size size) {
  if (!selected("sobel_magnitude")) return;
  Volume x(dtype, size), grad(dtype, size), out(dtype, size);
  x.fill_with_numbers(size);
  grad.fill_with_numbers(size);
  egcnn::SobelMagnitude p{};
  p.x = x.tensor;
  p.out = out.tensor;
  p.size = size;
  run(text("sobel_magnitude", dtype, p.x, size), egcnn::cuda::kernels().sobel_magnitude, p,
      {&out.buffer});
  egcnn::SobelMagnitudeBackward q{};
  q.grad = grad.tensor;
  q.x = x.tensor;
  q.grad_x = out.tensor;
  q.size = size;
  run(text("sobel_magnitude_backward", dtype, q.x, size),
      egcnn::cuda::kernels().sobel_magnitude_backward, q, {&out.buffer});
}

// The gate; if e has another size, the one that interpolates.
void edge_gate(DType dtype, Size size, int64_t main_channels, const Size* coarse = nullptr) {
  const char* name = coarse ? "edge_gate_upsampled" : "edge_gate";
  const char* backward = coarse ? "edge_gate_upsampled_backward" : "edge_gate_backward";
  const Size e_size = coarse ? *coarse : size;
  const int64_t channels = size.channels;
  const auto& kernels = egcnn::cuda::kernels();
  for (const int64_t gates : {int64_t(1), channels}) {
    if (!selected(name)) continue;
    Size main_size = size;
    main_size.channels = main_channels;
    const DType sums = accumulated(dtype);
    Volume e(dtype, e_size), m(dtype, main_size), out(dtype, size);
    Volume grad(dtype, size), grad_e(dtype, e_size), grad_m(dtype, main_size);
    e.fill_with_numbers(e_size);
    m.fill_with_numbers(main_size);
    grad.fill_with_numbers(size);
    const Buffer weight_e = numbers(sums, gates * channels), bias = numbers(sums, gates);
    const Buffer weight_m = numbers(sums, gates * main_channels);
    egcnn::EdgeGateUpsampled p{};
    p.e = e.tensor;
    p.m = m.tensor;
    p.weight_e = weight_e.data();
    p.weight_m = weight_m.data();
    p.bias = bias.data();
    p.out = out.tensor;
    p.size = size;
    p.coarse = e_size;
    p.main_channels = main_channels;
    p.gates = gates;
    p.relu = draw() % 2;
    p.tf32 = draw() % 2;
    const std::string options = "; e " + std::to_string(e_size.depth) + "x" +
                                std::to_string(e_size.height) + "x" + std::to_string(e_size.width) +
                                ", m " + std::to_string(main_channels) + ", gates " +
                                std::to_string(gates);
    const std::string forward_case = text(name, dtype, p.e, size) + options;
    if (coarse) {
      run(forward_case, kernels.edge_gate_upsampled, p, {&out.buffer});
    } else {
      run<egcnn::EdgeGate>(forward_case, kernels.edge_gate, p, {&out.buffer});
    }
    const Buffer grad_weight_e = numbers(sums, gates * channels), grad_bias = numbers(sums, gates);
    const Buffer grad_weight_m = numbers(sums, gates * main_channels);
    egcnn::EdgeGateUpsampledBackward q{};
    static_cast<egcnn::EdgeGate&>(q) = p;
    q.coarse = e_size;
    q.grad = grad.tensor;
    q.grad_e = grad_e.tensor;
    q.grad_m = grad_m.tensor;
    q.grad_weight_e = grad_weight_e.data();
    q.grad_weight_m = grad_weight_m.data();
    q.grad_bias = grad_bias.data();
    const std::string backward_case = text(backward, dtype, q.e, size) + options;
    const std::vector<const Buffer*> gradients = {&grad_e.buffer, &grad_m.buffer, &grad_weight_e,
                                                  &grad_weight_m, &grad_bias};
    if (coarse) {
      run(backward_case, kernels.edge_gate_upsampled_backward, q, gradients);
    } else {
      run<egcnn::EdgeGateBackward>(backward_case, kernels.edge_gate_backward, q, gradients);
    }
  }
}

void consistency(DType dtype, DType target_dtype, Size size) {
  for (const bool softmax : {true, false}) {
    for (const bool hard : {true, false}) {
      if (!selected("consistency")) continue;
      Size target_size = size;
      if (softmax) target_size.channels = 1;
      const DType sums = accumulated(dtype);
      Volume logits(dtype, size), target(target_dtype, target_size), grad_logits(dtype, size);
      logits.fill_with_numbers(size);
      target.fill_with_classes(target_size, softmax ? std::max<int64_t>(size.channels, 1) : 2);
      const Buffer loss = numbers(sums, 1), grad = numbers(sums, 1);
      const Buffer edges(size.batch * size.channels, sizeof(int64_t), false);
      const int64_t volumes = size.batch * (softmax ? 1 : size.channels);
      // The CPU keeps none.
      const bool kept = egcnn::cuda::kernels().name == std::string("cuda");
      const int64_t words =
          kept ? volumes * size.depth * size.height * ((size.width + 31) / 32) : 0;
      const Buffer candidates(words, sizeof(uint32_t), false);
      const Buffer seed(1, sizeof(int64_t), false);
      seed.write([](void* data) { set(data, DType::i64, 0, 1234567890123.0); });
      egcnn::Consistency p{};
      p.logits = logits.tensor;
      p.target = target.tensor;
      p.size = size;
      p.seed = static_cast<const int64_t*>(seed.data());
      p.tau = 0.5;
      p.hard = hard;
      p.softmax = softmax;
      p.support_both = draw() % 2;
      p.edges = static_cast<int64_t*>(edges.data());
      p.candidates = static_cast<uint32_t*>(candidates.data());
      p.loss = loss.data();
      const std::string options = std::string("; target ") + kNames[int(target_dtype)] +
                                  (softmax ? ", softmax" : ", sigmoid") + (hard ? ", hard" : "") +
                                  (p.support_both ? ", both" : "");
      run(text("consistency", dtype, p.logits, size) + options, egcnn::cuda::kernels().consistency,
          p, {&edges, &candidates, &loss});
      const egcnn::ConsistencyBackward q{p, grad.data(), grad_logits.tensor};
      run(text("consistency_backward", dtype, p.logits, size) + options,
          egcnn::cuda::kernels().consistency_backward, q, {&grad_logits.buffer});
    }
  }
}

void region_sums(DType dtype, Size size) {
  for (const bool softmax : {true, false}) {
    if (!selected("region_sums")) continue;
    Volume logits(dtype, size), target(DType::u8, size), grad_logits(dtype, size);
    logits.fill_with_numbers(size);
    target.fill_with_classes(size, 3);
    egcnn::RegionSums p{};
    p.logits = logits.tensor;
    p.target = target.tensor;
    p.size = size;
    p.softmax = softmax;
    p.entropy = !softmax && draw() % 2;
    const int64_t count = size.batch * size.channels * p.sum_count();
    const Buffer sums = numbers(accumulated(dtype), count);
    const Buffer grad = numbers(accumulated(dtype), count);
    p.sums = sums.data();
    const std::string options = softmax     ? "; softmax"
                                : p.entropy ? "; sigmoid, entropy"
                                            : "; sigmoid";
    run(text("region_sums", dtype, p.logits, size) + options, egcnn::cuda::kernels().region_sums, p,
        {&sums});
    const egcnn::RegionSumsBackward q{p, grad.data(), grad_logits.tensor};
    run(text("region_sums_backward", dtype, p.logits, size) + options,
        egcnn::cuda::kernels().region_sums_backward, q, {&grad_logits.buffer});
  }
}

void group_norm_relu(DType dtype, Size size) {
  for (const int64_t groups : {int64_t(1), size.channels}) {
    if (!selected("group_norm_relu")) continue;
    const DType sums = accumulated(dtype);
    Volume x(dtype, size);
    const auto like_x = [&] {
      Volume volume(dtype, size);
      volume.tensor.channel_stride = x.tensor.channel_stride;
      volume.tensor.voxel_stride = x.tensor.voxel_stride;
      return volume;
    };
    Volume out = like_x(), grad = like_x(), grad_x = like_x();
    x.fill_with_numbers(size);
    grad.fill_with_numbers(size);
    const Buffer weight = numbers(sums, size.channels), bias = numbers(sums, size.channels);
    const Buffer mean = numbers(sums, size.batch * groups),
                 rstd = numbers(sums, size.batch * groups);
    egcnn::GroupNormReLU p{};
    p.x = x.tensor;
    p.weight = weight.data();
    p.bias = bias.data();
    p.mean = mean.data();
    p.rstd = rstd.data();
    p.out = out.tensor;
    p.size = size;
    p.groups = groups;
    p.eps = 1e-5;
    const std::string options = "; groups " + std::to_string(groups);
    run(text("group_norm_relu", dtype, p.x, size) + options, egcnn::cuda::kernels().group_norm_relu,
        p, {&out.buffer, &mean, &rstd});
    const Buffer grad_weight = numbers(sums, size.channels),
                 grad_bias = numbers(sums, size.channels);
    const egcnn::GroupNormReLUBackward q{p, grad.tensor, grad_x.tensor, grad_weight.data(),
                                         grad_bias.data()};
    run(text("group_norm_relu_backward", dtype, p.x, size) + options,
        egcnn::cuda::kernels().group_norm_relu_backward, q,
        {&grad_x.buffer, &grad_weight, &grad_bias});
  }
}

void loss_sums(DType dtype, DType labels_dtype, Size size) {
  const auto& kernels = egcnn::cuda::kernels();
  if (kernels.loss_sums.launch == nullptr) return;
  std::vector<int64_t> values, counts(size.channels, 1);
  for (int64_t c = 0; c < size.channels; ++c) values.push_back(c);
  for (const bool softmax : {true, false}) {
    for (const bool from_labels : {true, false}) {
      if (softmax && !from_labels) continue;
      if (!selected("loss_sums")) continue;
      Size labels_size = size, edge_size = size;
      if (from_labels) labels_size.channels = 1;
      if (draw() % 2) edge_size.channels = std::min<int64_t>(size.channels, 1);
      Volume logits(dtype, size), edge_logits(dtype, edge_size), labels(labels_dtype, labels_size);
      Volume grad_logits(dtype, size), grad_edge_logits(dtype, edge_size);
      logits.fill_with_numbers(size);
      edge_logits.fill_with_numbers(edge_size);
      labels.fill_with_classes(labels_size, from_labels ? size.channels + 1 : 2);
      const DType sums_dtype = accumulated(dtype);
      const int64_t sum_count = 3 * size.batch * size.channels;
      const int64_t edge_sum_count = 5 * size.batch * edge_size.channels;
      const Buffer loss = numbers(sums_dtype, 1), grad = numbers(sums_dtype, 1);
      const Buffer sums = numbers(sums_dtype, sum_count);
      const Buffer grad_sums = numbers(sums_dtype, sum_count);
      const Buffer edge_sums = numbers(sums_dtype, edge_sum_count);
      const Buffer grad_edge_sums = numbers(sums_dtype, edge_sum_count);
      const Buffer edges(size.batch * size.channels, sizeof(int64_t), false);
      const bool per_sample = draw() % 2;
      const Buffer seeds(per_sample ? size.batch : 1, sizeof(int64_t), false);
      seeds.write([&](void* data) {
        for (int64_t i = 0; i < (per_sample ? size.batch : 1); ++i) {
          set(data, DType::i64, i, 1234567890123.0 + double(i));
        }
      });
      egcnn::LossSums p{};
      egcnn::Consistency& c = p.consistency;
      c.logits = p.regions.logits = logits.tensor;
      c.target = labels.tensor;
      c.region_values = from_labels ? values.data() : nullptr;
      c.region_counts = from_labels ? counts.data() : nullptr;
      c.size = p.regions.size = size;
      c.seed = static_cast<const int64_t*>(seeds.data());
      c.seed_per_sample = per_sample;
      c.tau = 0.5;
      c.hard = draw() % 2;
      c.softmax = p.regions.softmax = softmax;
      c.edges = static_cast<int64_t*>(edges.data());
      c.loss = loss.data();
      p.regions.sums = sums.data();
      p.edges.logits = edge_logits.tensor;
      p.edges.size = edge_size;
      p.edges.entropy = true;
      p.edges.sums = edge_sums.data();
      p.threshold = draw() % 2 ? 0.5 : 0.0;
      const std::string options = std::string("; labels ") + kNames[int(labels_dtype)] +
                                  (softmax ? ", softmax" : ", sigmoid") + (c.hard ? ", hard" : "") +
                                  (from_labels ? "" : ", regions");
      run(text("loss_sums", dtype, c.logits, size) + options, kernels.loss_sums, p,
          {&edges, &loss, &sums, &edge_sums});
      const egcnn::LossSumsBackward q{p,
                                      grad.data(),
                                      grad_sums.data(),
                                      grad_edge_sums.data(),
                                      grad_logits.tensor,
                                      grad_edge_logits.tensor};
      run(text("loss_sums_backward", dtype, c.logits, size) + options, kernels.loss_sums_backward,
          q, {&grad_logits.buffer, &grad_edge_logits.buffer});
    }
  }
}

template <class Params>
void check_launched(const char* name, const Kernel<Params>& kernel) {
  if (kernel.launch == nullptr || launched.count(&kernel)) return;
  std::printf("%s: no case launches it\n", name);
  ++failures;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) every = std::atoi(arguments[1]);
  // One voxel, no sample, rows shorter and longer than a warp, primes, many channels.
  const Size sizes[] = {{1, 1, 1, 1, 1}, {0, 2, 3, 4, 5},  {2, 3, 2, 3, 5},  {1, 2, 1, 1, 67},
                        {2, 1, 7, 5, 3}, {1, 4, 3, 9, 33}, {1, 9, 2, 2, 16}, {1, 32, 2, 3, 40}};
  for (const Size& size : sizes) {
    for (const DType dtype : kFloats) {
      sobel_edges(dtype, size);
      sobel_magnitude(dtype, size);
      edge_gate(dtype, size, size.channels);
      edge_gate(dtype, size, size.channels + 1);
      // Half of each axis, to the double of an even one; and some other ratios, both ways.
      const int64_t batch = size.batch, channels = size.channels;
      const Size half = {batch, channels, (size.depth + 1) / 2, (size.height + 1) / 2,
                         (size.width + 1) / 2};
      const Size other = {batch, channels, 2, size.height + 3, 7};
      edge_gate(dtype, size, channels, &half);
      edge_gate(dtype, size, channels + 1, &other);
      consistency(dtype, kIntegers[draw() % 5], size);
      group_norm_relu(dtype, size);
      region_sums(dtype, size);
      loss_sums(dtype, kIntegers[draw() % 5], size);
    }
    for (const DType dtype : kIntegers) sobel_edges(dtype, size);
  }
#define EGCNN_OPERATOR(name, Params) check_launched(#name, egcnn::cuda::kernels().name);
#include "operators.inc"
#undef EGCNN_OPERATOR
  std::printf("%d cases of %d ran, %d failed\n", ran, cases, failures);
  return failures != 0;
}
