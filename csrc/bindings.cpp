// egcnn._C: the bridge as Python sees it. `cpu` and `cuda` hold the kernels of a kind of device,
// each kernel a method. Its arguments come by position, in the order in which unpack() reads them,
// after (threads, device, stream, allocate). What would let a kernel read or write out of bounds is
// refused here, once, since shapes are read here anyway.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "arguments.h"
#include "build_info.h"  // written by setup.py
#include "ops.h"

#ifndef EGCNN_MODULE
#define EGCNN_MODULE _C
#endif

namespace py = pybind11;
using namespace egcnn;

namespace {

// --- Arguments ---

std::string adding_up_to(size_t entries) {
  return "positive counts that add up to the entries of values, " + std::to_string(entries);
}

// unpack() fills in the parameters of each operator, unpack_inputs() those that its forward and
// backward share.

// The label values of regions, one region after the other, and how many each has; their number.
size_t read_regions(Arguments& a, const int64_t*& first_value, const int64_t*& first_count) {
  const auto& values = a.read_list("values", first_value);
  const auto& counts = a.read_list("counts", first_count);
  size_t unused = values.size();
  for (const int64_t count : counts) {
    a.expect(count > 0 && size_t(count) <= unused, [&] { return adding_up_to(values.size()); });
    unused -= size_t(count);
  }
  a.expect(unused == 0, [&] { return adding_up_to(values.size()); });
  return counts.size();
}

void unpack(Arguments& a, SobelEdges& p) {
  read_regions(a, p.region_values, p.region_counts);
  a.read("threshold", p.threshold);
  const int64_t channels = a.read("labels", p.labels).channels;
  a.expect(p.region_counts == nullptr || (channels == 1 && !is_float(p.labels.dtype)),
           [] { return "one channel of integers or bool, as there are regions"; });
  p.size = a.read("edges", p.edges);
}

Size read_floats(Arguments& a, const char* name, Tensor& tensor) {
  const Size size = a.read(name, tensor);
  a.expect(is_float(tensor.dtype), [] { return "a float type"; });
  return size;
}

void unpack(Arguments& a, SobelMagnitude& p) {
  p.size = read_floats(a, "x", p.x);
  a.read("out", p.out);
}

void unpack(Arguments& a, SobelMagnitudeBackward& p) {
  p.size = read_floats(a, "x", p.x);
  a.read("grad", p.grad, p.size, p.x.dtype);
  a.read("grad_x", p.grad_x);
}

void unpack_weights(Arguments& a, EdgeGate& p) {
  a.read("gates", p.gates);
  a.expect(p.gates == 1 || p.gates == p.size.channels, [] { return "1 or the channels of e"; });
  const DType sums = accumulated(p.e.dtype);
  a.read("weight_e", p.weight_e, sums, p.gates * p.size.channels);
  a.read("weight_m", p.weight_m, sums, p.gates * p.main_channels);
  a.read("bias", p.bias, sums, p.gates);
  a.read("relu", p.relu);
  a.read("tf32", p.tf32);
}

void unpack_inputs(Arguments& a, EdgeGate& p) {
  p.size = read_floats(a, "e", p.e);
  p.main_channels = a.read("m", p.m).channels;
  a.expect(p.m.dtype == p.e.dtype, [&] { return "the type of e, " + name_of(p.e.dtype); });
  unpack_weights(a, p);
}

void unpack(Arguments& a, EdgeGate& p) {
  unpack_inputs(a, p);
  a.read("out", p.out);
}

void read_weight_gradients(Arguments& a, EdgeGateBackward& p) {
  a.read("grad_weight_e", p.grad_weight_e);
  a.read("grad_weight_m", p.grad_weight_m);
  a.read("grad_bias", p.grad_bias);
}

void unpack(Arguments& a, EdgeGateBackward& p) {
  unpack_inputs(a, p);
  a.read("grad", p.grad, p.size, p.e.dtype);
  a.read("grad_e", p.grad_e);
  a.read("grad_m", p.grad_m);
  read_weight_gradients(a, p);
}

// m comes first, since the other volumes but e have its size.
template <class Params>
void unpack_upsampled(Arguments& a, Params& p) {
  p.size = read_floats(a, "m", p.m);
  a.expect(p.size.voxels() > 0, [] { return "voxels"; });
  p.main_channels = p.size.channels;
  p.coarse = a.read_resampled("e", p.e);
  a.expect(p.e.dtype == p.m.dtype, [&] { return "the type of m, " + name_of(p.m.dtype); });
  p.size.channels = p.coarse.channels;
  unpack_weights(a, p);
}

void unpack(Arguments& a, EdgeGateUpsampled& p) {
  unpack_upsampled(a, p);
  a.read("out", p.out);
}

void unpack(Arguments& a, EdgeGateUpsampledBackward& p) {
  unpack_upsampled(a, p);
  a.read("grad", p.grad, p.size, p.e.dtype);
  a.read_resampled("grad_e", p.grad_e);
  a.read("grad_m", p.grad_m);
  read_weight_gradients(a, p);
}

void read_softmax(Arguments& a, Consistency& p, const Size& size) {
  a.read("softmax", p.softmax);
  a.expect(!p.softmax || size.channels <= kMaxClasses, [] {
    return "at most " + std::to_string(kMaxClasses) + " channels of logits with softmax";
  });
}

void unpack_inputs(Arguments& a, Consistency& p) {
  p.size = read_floats(a, "logits", p.logits);
  read_softmax(a, p, p.size);
  a.read("both", p.support_both);
  a.read("tau", p.tau);
  a.read("hard", p.hard);
  const Size& size = p.size;
  const int64_t volumes = p.softmax ? 1 : size.channels, words = divide_up(size.width, 32);
  const int64_t channels = a.read("target", p.target).channels;
  a.expect(channels == volumes && !is_float(p.target.dtype),
           [&] { return std::to_string(volumes) + " channels of integers or bool"; });
  a.read("seed", p.seed, DType::i64, 1);
  a.read("edges", p.edges, DType::i64, size.batch * size.channels);
  a.read("candidates", p.candidates, DType::i32,
         a.on_cuda ? size.batch * volumes * size.depth * size.height * words : 0);
}

void unpack(Arguments& a, Consistency& p) {
  unpack_inputs(a, p);
  a.read("loss", p.loss);
}

void unpack(Arguments& a, ConsistencyBackward& p) {
  unpack_inputs(a, p);
  a.read("grad", p.grad, accumulated(p.logits.dtype), 1);
  a.read("grad_logits", p.grad_logits);
}

void unpack_inputs(Arguments& a, RegionSums& p) {
  p.size = read_floats(a, "logits", p.logits);
  const int64_t channels = a.read("target", p.target).channels;
  a.expect(channels == p.size.channels && p.target.dtype == DType::u8,
           [&] { return std::to_string(p.size.channels) + " channels of bool or uint8"; });
  a.read("softmax", p.softmax);
  a.read("entropy", p.entropy);
  a.expect(!p.softmax || !p.entropy, [] { return "False with softmax"; });
}

int64_t sums_of(const RegionSums& p) { return p.size.batch * p.size.channels * p.sum_count(); }

void unpack(Arguments& a, RegionSums& p) {
  unpack_inputs(a, p);
  a.read("sums", p.sums, accumulated(p.logits.dtype), sums_of(p));
}

void unpack(Arguments& a, RegionSumsBackward& p) {
  unpack_inputs(a, p);
  a.read("grad", p.grad, accumulated(p.logits.dtype), sums_of(p));
  a.read("grad_logits", p.grad_logits);
}

void unpack_inputs(Arguments& a, LossSums& p) {
  Consistency& consistency = p.consistency;
  const Size size = read_floats(a, "logits", consistency.logits);
  const Size edge_size = read_floats(a, "edge_logits", p.edges.logits);
  const bool fits = edge_size.channels == 1 || edge_size.channels == size.channels;
  a.expect(fits && p.edges.logits.dtype == consistency.logits.dtype,
           [] { return "the type of the logits, and as many channels or one"; });
  read_softmax(a, consistency, size);
  const size_t regions = read_regions(a, consistency.region_values, consistency.region_counts);
  a.expect(regions == 0 || int64_t(regions) == size.channels,
           [&] { return "none, or as many as channels of the logits"; });
  const int64_t volumes = consistency.softmax || regions > 0 ? 1 : size.channels;
  const int64_t channels = a.read("labels", consistency.target).channels;
  a.expect(channels == volumes && !is_float(consistency.target.dtype),
           [&] { return std::to_string(volumes) + " channels of integers or bool"; });
  a.read("tau", consistency.tau);
  a.read("hard", consistency.hard);
  a.read("threshold", p.threshold);
  a.read("per_sample", consistency.seed_per_sample);
  a.read("seed", consistency.seed, DType::i64, consistency.seed_per_sample ? size.batch : 1);
  a.read("edges", consistency.edges, DType::i64, size.batch * size.channels);
  consistency.size = p.regions.size = p.edges.size = size;
  p.edges.size.channels = edge_size.channels;
  p.regions.logits = consistency.logits;
  p.regions.softmax = consistency.softmax;
  p.edges.entropy = true;
}

void unpack(Arguments& a, LossSums& p) {
  unpack_inputs(a, p);
  const DType sums = accumulated(p.consistency.logits.dtype);
  a.read("consistency", p.consistency.loss, sums, 1);
  a.read("sums", p.regions.sums, sums, sums_of(p.regions));
  a.read("edge_sums", p.edges.sums, sums, sums_of(p.edges));
}

void unpack(Arguments& a, LossSumsBackward& p) {
  unpack_inputs(a, p);
  const DType type = p.regions.logits.dtype, sums = accumulated(type);
  a.read("grad_consistency", p.grad_consistency, sums, 1);
  a.read("grad_sums", p.grad_regions, sums, sums_of(p.regions));
  a.read("grad_edge_sums", p.grad_edges, sums, sums_of(p.edges));
  a.read("grad_logits", p.grad_logits, p.regions.size, type);
  a.read("grad_edge_logits", p.grad_edge_logits, p.edges.size, type);
}

void unpack_inputs(Arguments& a, GroupNormReLU& p) {
  p.size = read_floats(a, "x", p.x);
  a.read("groups", p.groups);
  const int64_t channels = p.size.channels, groups = p.groups;
  a.expect(groups > 0 && channels % groups == 0,
           [&] { return "a divisor of the " + std::to_string(channels) + " channels of x"; });
  const DType sums = accumulated(p.x.dtype);
  a.read("weight", p.weight, sums, channels);
  a.read("bias", p.bias, sums, channels);
  a.read("mean", p.mean, sums, p.size.batch * groups);
  a.read("rstd", p.rstd, sums, p.size.batch * groups);
}

// A volume that is traversed with the strides of x.
void read_like_x(Arguments& a, const char* name, Tensor& tensor, const GroupNormReLU& p) {
  a.read(name, tensor, p.size, p.x.dtype);
  a.expect(tensor.voxel_stride == p.x.voxel_stride, [] { return "the memory format of x"; });
}

void unpack(Arguments& a, GroupNormReLU& p) {
  unpack_inputs(a, p);
  a.read("eps", p.eps);
  read_like_x(a, "out", p.out, p);
}

void unpack(Arguments& a, GroupNormReLUBackward& p) {
  unpack_inputs(a, p);
  read_like_x(a, "grad", p.grad, p);
  read_like_x(a, "grad_x", p.grad_x, p);
  a.read("grad_weight", p.grad_weight);
  a.read("grad_bias", p.grad_bias);
}

// --- Kernels ---

template <class Params>
void run(const Kernels& kernels, const Kernel<Params>& kernel, const py::args& values) {
  if (kernel.launch == nullptr) {
    throw py::type_error(std::string("egcnn: there is no such kernel on ") + kernels.name);
  }
  Arguments arguments(values, kernels.name == std::string_view("cuda"));
  Params params{};
  Resources& resources = params.resources;
  arguments.read("threads", resources.threads);
  arguments.read("device", resources.device);
  resources.stream = reinterpret_cast<void*>(arguments.next("stream").cast<uintptr_t>());
  const py::object allocate = arguments.next("allocate");
  unpack(arguments, params);
  arguments.check_all_read();
  py::object workspace;
  if (const size_t bytes = kernel.workspace(params)) {
    workspace = allocate(bytes);
    resources.workspace = address_of(workspace);
  }
  const py::gil_scoped_release release;  // taken back before `workspace` is let go of
  kernel.launch(params);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = EGCNN_COMPILER;
  info["cpu"] = cpu::kernels().front().name;
  info["cuda_kernels"] = bool(EGCNN_WITH_CUDA);
  info["cuda_toolkit"] = EGCNN_CUDA_TOOLKIT;
  info["cuda_architectures"] = EGCNN_CUDA_ARCHITECTURES;
  info["cuda_note"] = EGCNN_CUDA_NOTE;
  return info;
}

}  // namespace

PYBIND11_MODULE(EGCNN_MODULE, m) {
  m.doc() = "Kernels of egcnn; called by egcnn.ops, which checks the arguments.";
  m.def("build_info", &build_info);
#if EGCNN_WITH_CUDA
  m.def("cuda_device_status", &cuda::device_status);
#endif

  // Module-local, so that tests/cuda_on_cpu can be imported together with egcnn._C.
  py::class_<Kernels> kernels(m, "Kernels", py::module_local());
  kernels.def_readonly("name", &Kernels::name);
#define EGCNN_OPERATOR(name, Params) \
  kernels.def(#name,                 \
              [](const Kernels& self, const py::args& values) { run(self, self.name, values); });
#include "operators.inc"
#undef EGCNN_OPERATOR

  const auto borrowed = py::return_value_policy::reference;
  m.attr("cpu") = py::cast(&cpu::kernels().front(), borrowed);
  m.attr("cpu_by_instruction_set") = py::dict();
  for (const Kernels& isa : cpu::kernels()) {
    m.attr("cpu_by_instruction_set")[isa.name] = py::cast(&isa, borrowed);
  }
#if EGCNN_WITH_CUDA
  m.attr("cuda") = py::cast(&cuda::kernels(), borrowed);
#endif
}
