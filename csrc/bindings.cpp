// egcnn._C: the bridge as Python sees it. `cpu` and `cuda` hold the kernels of a kind of device,
// each kernel a method. Its arguments come by position, in the order in which unpack() reads them,
// after (threads, device, stream, allocate). Tensors come as they are and are asked for their
// memory by their Python methods: nothing here is compiled against torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <forward_list>
#include <string>
#include <unordered_map>
#include <vector>

#include "build_info.h"  // written by setup.py
#include "ops.h"

#ifndef EGCNN_MODULE
#define EGCNN_MODULE _C
#endif

namespace py = pybind11;
using egcnn::DType;
using egcnn::Kernel;
using egcnn::Kernels;
using egcnn::Size;
using egcnn::Tensor;

namespace {

// --- Tensors ---

// An attribute's name, made once: calls are short enough for the making of strings to count.
struct Name {
  PyObject* object;
  explicit Name(const char* text) : object(PyUnicode_InternFromString(text)) {}
};

py::object owned(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

py::object attribute(py::handle tensor, const Name& name) {
  return owned(PyObject_GetAttr(tensor.ptr(), name.object));
}

py::object call(py::handle tensor, const Name& method) {
  return owned(PyObject_CallMethodNoArgs(tensor.ptr(), method.object));
}

void* address_of(py::handle tensor) {
  static const Name data_ptr("data_ptr");
  return reinterpret_cast<void*>(call(tensor, data_ptr).cast<uintptr_t>());
}

DType dtype_of(py::handle tensor) {
  static const std::unordered_map<std::string, DType> names = {
      {"torch.float64", DType::f64},   {"torch.float32", DType::f32}, {"torch.float16", DType::f16},
      {"torch.bfloat16", DType::bf16}, {"torch.uint8", DType::u8},    {"torch.int8", DType::i8},
      {"torch.int16", DType::i16},     {"torch.int32", DType::i32},   {"torch.int64", DType::i64},
      {"torch.bool", DType::u8},  // a byte that holds 0 or 1
  };
  static std::unordered_map<PyObject*, DType> known;  // torch's types live as long as the process
  static const Name dtype("dtype");
  const py::object type = attribute(tensor, dtype);
  if (const auto found = known.find(type.ptr()); found != known.end()) return found->second;
  const auto named = names.find(py::str(type));
  if (named == names.end()) {
    throw py::type_error("egcnn: no kernel takes " + py::str(type).cast<std::string>());
  }
  return known[type.ptr()] = named->second;
}

using Five = std::array<int64_t, 5>;

Five five(const py::object& numbers) {
  Five result;
  if (!PyTuple_Check(numbers.ptr()) || PyTuple_GET_SIZE(numbers.ptr()) != 5) {
    throw py::value_error("egcnn: a volume has five dimensions");
  }
  for (size_t i = 0; i < 5; ++i) {
    result[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(numbers.ptr(), py::ssize_t(i)));
  }
  return result;
}

// Whether the dimensions lie in memory in this order without a gap, the last one innermost. torch
// lets the strides of dimensions of size 1 hold anything.
bool lies_in_order(const Five& shape, const Five& strides, const std::array<int, 5>& order) {
  int64_t stride = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    if (shape[*dim] != 1 && strides[*dim] != stride) return false;
    stride *= shape[*dim];
  }
  return true;
}

// Reads a dense volume and returns its size.
Size read_volume(py::handle value, const char* name, Tensor& tensor) {
  static const Name shape_name("shape"), stride_name("stride");
  const Five shape = five(attribute(value, shape_name)), strides = five(call(value, stride_name));
  const Size size = {shape[0], shape[1], shape[2], shape[3], shape[4]};
  const int64_t channels = size.channels, voxels = size.voxels();
  tensor = {address_of(value), dtype_of(value), channels * voxels, voxels, 1};
  if (size.empty() || lies_in_order(shape, strides, {0, 1, 2, 3, 4})) return size;
  if (!lies_in_order(shape, strides, {0, 2, 3, 4, 1})) {
    throw py::value_error(std::string("egcnn: a kernel got ") + name +
                          " with gaps; expected it contiguous or channels_last_3d");
  }
  tensor.channel_stride = 1;
  tensor.voxel_stride = channels;
  return size;
}

// --- Arguments ---

// The arguments of one call. Lists stay alive as long as this does.
class Arguments {
 public:
  explicit Arguments(const py::args& values) : values_(values) {}

  template <class T>
  void read(const char* name, T& value) {
    value = next(name).cast<T>();
  }

  template <class T>
  void read(const char* name, T*& data) {
    data = static_cast<T*>(address_of(next(name)));
  }

  Size read(const char* name, Tensor& tensor) { return read_volume(next(name), name, tensor); }

  // Null where the list is empty.
  void read_list(const char* name, const int64_t*& first) {
    lists_.push_front(next(name).cast<std::vector<int64_t>>());
    first = lists_.front().empty() ? nullptr : lists_.front().data();
  }

  py::object next(const char* name) {
    if (read_ == values_.size()) {
      throw py::type_error(std::string("egcnn: a kernel lacks the argument ") + name);
    }
    return values_[read_++];
  }

  void check_all_read() const {
    if (read_ != values_.size()) throw py::type_error("egcnn: a kernel got too many arguments");
  }

 private:
  const py::args& values_;
  std::forward_list<std::vector<int64_t>> lists_;
  size_t read_ = 0;
};

// unpack() fills in the parameters of each operator, unpack_inputs() those that its forward and
// backward share.

void unpack(Arguments& a, egcnn::SobelEdges& p) {
  a.read("labels", p.labels);
  p.size = a.read("edges", p.edges);
  a.read_list("values", p.region_values);
  a.read_list("counts", p.region_counts);
  a.read("threshold", p.threshold);
}

void unpack(Arguments& a, egcnn::SobelMagnitude& p) {
  p.size = a.read("x", p.x);
  a.read("out", p.out);
}

void unpack(Arguments& a, egcnn::SobelMagnitudeBackward& p) {
  p.size = a.read("x", p.x);
  a.read("grad", p.grad);
  a.read("grad_x", p.grad_x);
}

void unpack_inputs(Arguments& a, egcnn::EdgeGate& p) {
  p.size = a.read("e", p.e);
  p.main_channels = a.read("m", p.m).channels;
  a.read("weight_e", p.weight_e);
  a.read("weight_m", p.weight_m);
  a.read("bias", p.bias);
  a.read("gates", p.gates);
  a.read("relu", p.relu);
  a.read("tf32", p.tf32);
}

void unpack(Arguments& a, egcnn::EdgeGate& p) {
  unpack_inputs(a, p);
  a.read("out", p.out);
}

void unpack(Arguments& a, egcnn::EdgeGateBackward& p) {
  unpack_inputs(a, p);
  a.read("grad", p.grad);
  a.read("grad_e", p.grad_e);
  a.read("grad_m", p.grad_m);
  a.read("grad_weight_e", p.grad_weight_e);
  a.read("grad_weight_m", p.grad_weight_m);
  a.read("grad_bias", p.grad_bias);
}

void unpack_inputs(Arguments& a, egcnn::Consistency& p) {
  p.size = a.read("logits", p.logits);
  a.read("target", p.target);
  a.read("seed", p.seed);
  a.read("edges", p.edges);
  a.read("candidates", p.candidates);
  a.read("tau", p.tau);
  a.read("hard", p.hard);
  a.read("softmax", p.softmax);
  a.read("both", p.support_both);
  if (p.softmax && p.size.channels > egcnn::kMaxClasses) {
    throw py::value_error("logits has " + std::to_string(p.size.channels) +
                          " channels; expected at most " + std::to_string(egcnn::kMaxClasses) +
                          " exclusive classes");
  }
}

void unpack(Arguments& a, egcnn::Consistency& p) {
  unpack_inputs(a, p);
  a.read("loss", p.loss);
}

void unpack(Arguments& a, egcnn::ConsistencyBackward& p) {
  unpack_inputs(a, p);
  a.read("grad", p.grad);
  a.read("grad_logits", p.grad_logits);
}

// --- Kernels ---

template <class Params>
void run(const Kernel<Params>& kernel, const py::args& values) {
  Arguments arguments(values);
  Params params{};
  egcnn::Resources& resources = params.resources;
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
  info["cpu"] = egcnn::cpu::kernels().front().name;
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
  m.def("cuda_device_status", &egcnn::cuda::device_status);
#endif

  // Local, so that tests/cuda_on_cpu can be imported beside egcnn._C.
  py::class_<Kernels> kernels(m, "Kernels", py::module_local());
  kernels.def_readonly("name", &Kernels::name);
#define EGCNN_OPERATOR(name, Params) \
  kernels.def(#name, [](const Kernels& self, const py::args& values) { run(self.name, values); });
#include "operators.inc"
#undef EGCNN_OPERATOR

  const auto borrowed = py::return_value_policy::reference;
  m.attr("cpu") = py::cast(&egcnn::cpu::kernels().front(), borrowed);
  m.attr("cpu_by_instruction_set") = py::dict();
  for (const Kernels& isa : egcnn::cpu::kernels()) {
    m.attr("cpu_by_instruction_set")[isa.name] = py::cast(&isa, borrowed);
  }
#if EGCNN_WITH_CUDA
  m.attr("cuda") = py::cast(&egcnn::cuda::kernels(), borrowed);
#endif
}
