// egcnn._C: the bridge as Python sees it. `cpu` and `cuda` hold the kernels of a kind of device;
// each kernel has a method that launches it and one, `..._workspace`, that returns the bytes of
// scratch memory it needs. A tensor arrives as (pointer, dtype code, batch stride, channel stride,
// voxel stride), any other array as its address.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <forward_list>
#include <string>
#include <tuple>
#include <vector>

#include "build_info.h"  // written by setup.py
#include "ops.h"

#ifndef EGCNN_MODULE
#define EGCNN_MODULE _C
#endif

namespace py = pybind11;
using egcnn::Kernel;
using egcnn::Kernels;

namespace {

using Address = uintptr_t;

// A keyword, made once: calls are short enough for the making of strings to count.
struct Name {
  PyObject* object;
  explicit Name(const char* text) : object(PyUnicode_InternFromString(text)) {}
};

// The keyword arguments of one call. Lists stay alive as long as this does.
class Arguments {
 public:
  explicit Arguments(const py::kwargs& values) : values_(values) {}

  template <class T>
  void read(const Name& name, T& value) {
    value = next(name).cast<T>();
  }

  template <class T>
  void read(const Name& name, T*& address) {
    address = reinterpret_cast<T*>(next(name).cast<Address>());
  }

  void read(const Name& name, egcnn::Tensor& t) {
    using Fields = std::tuple<Address, int, int64_t, int64_t, int64_t>;
    const auto [data, dtype, batch, channel, voxel] = next(name).cast<Fields>();
    t = {reinterpret_cast<void*>(data), egcnn::DType(dtype), batch, channel, voxel};
  }

  void read(const Name& name, egcnn::Size& size) {
    const auto s = next(name).cast<std::array<int64_t, 5>>();
    size = {s[0], s[1], s[2], s[3], s[4]};
  }

  // An address, or a list, which becomes null where it is empty.
  void read(const Name& name, const int64_t*& first) {
    const py::handle value = next(name);
    if (py::isinstance<py::int_>(value)) {
      first = reinterpret_cast<const int64_t*>(value.cast<Address>());
      return;
    }
    lists_.push_front(value.cast<std::vector<int64_t>>());
    first = lists_.front().empty() ? nullptr : lists_.front().data();
  }

  void check_all_read() const {
    if (read_ != values_.size()) throw py::type_error("egcnn: a kernel got an unknown argument");
  }

 private:
  const py::kwargs& values_;
  std::forward_list<std::vector<int64_t>> lists_;
  size_t read_ = 0;

  py::handle next(const Name& name) {
    const py::handle value = PyDict_GetItemWithError(values_.ptr(), name.object);
    if (!value) {
      throw py::type_error("egcnn: a kernel lacks the argument " +
                           py::reinterpret_borrow<py::str>(name.object).cast<std::string>());
    }
    ++read_;
    return value;
  }
};

// READ(a, p.size, shape) reads the argument `shape` into p.size.
#define READ(arguments, field, name) \
  do {                               \
    static const Name key(#name);    \
    arguments.read(key, field);      \
  } while (false)

// --- unpack() fills in the parameters of each operator. unpack_inputs() is for what its forward
// and backward share. ---

void unpack(Arguments& a, egcnn::SobelEdges& p) {
  READ(a, p.labels, labels);
  READ(a, p.edges, edges);
  READ(a, p.size, shape);
  READ(a, p.region_values, values);
  READ(a, p.region_counts, counts);
  READ(a, p.threshold, threshold);
}

void unpack_inputs(Arguments& a, egcnn::SobelMagnitude& p) {
  READ(a, p.x, x);
  READ(a, p.size, shape);
}

void unpack(Arguments& a, egcnn::SobelMagnitude& p) {
  unpack_inputs(a, p);
  READ(a, p.out, out);
}

void unpack(Arguments& a, egcnn::SobelMagnitudeBackward& p) {
  unpack_inputs(a, p);
  READ(a, p.grad, grad);
  READ(a, p.grad_x, grad_x);
}

void unpack_inputs(Arguments& a, egcnn::EdgeGate& p) {
  READ(a, p.e, e);
  READ(a, p.m, m);
  READ(a, p.weight_e, weight_e);
  READ(a, p.weight_m, weight_m);
  READ(a, p.bias, bias);
  READ(a, p.size, shape);
  READ(a, p.main_channels, main_channels);
  READ(a, p.gates, gates);
  READ(a, p.relu, relu);
  READ(a, p.tf32, tf32);
}

void unpack(Arguments& a, egcnn::EdgeGate& p) {
  unpack_inputs(a, p);
  READ(a, p.out, out);
}

void unpack(Arguments& a, egcnn::EdgeGateBackward& p) {
  unpack_inputs(a, p);
  READ(a, p.grad, grad);
  READ(a, p.grad_e, grad_e);
  READ(a, p.grad_m, grad_m);
  READ(a, p.grad_weight_e, grad_weight_e);
  READ(a, p.grad_weight_m, grad_weight_m);
  READ(a, p.grad_bias, grad_bias);
}

void unpack_inputs(Arguments& a, egcnn::Consistency& p) {
  READ(a, p.logits, logits);
  READ(a, p.target, target);
  READ(a, p.size, shape);
  READ(a, p.seed, seed);
  READ(a, p.tau, tau);
  READ(a, p.hard, hard);
  READ(a, p.softmax, softmax);
  READ(a, p.support_both, both);
  READ(a, p.edges, edges);
  READ(a, p.candidates, candidates);
  if (p.softmax && p.size.channels > egcnn::kMaxClasses) {
    throw py::value_error("logits has " + std::to_string(p.size.channels) +
                          " channels; expected at most " + std::to_string(egcnn::kMaxClasses) +
                          " exclusive classes");
  }
}

void unpack(Arguments& a, egcnn::Consistency& p) {
  unpack_inputs(a, p);
  READ(a, p.loss, loss);
}

void unpack(Arguments& a, egcnn::ConsistencyBackward& p) {
  unpack_inputs(a, p);
  READ(a, p.grad, grad);
  READ(a, p.grad_logits, grad_logits);
}

template <class Params>
Params unpack(Arguments& a) {
  Params p{};
  unpack(a, p);
  READ(a, p.resources.threads, threads);
  READ(a, p.resources.device, device);
  READ(a, p.resources.stream, stream);
  return p;
}

// A kernel becomes two methods, which take keywords only.
template <class Params>
void define(py::class_<Kernels>& kernels, const std::string& name,
            Kernel<Params> Kernels::* kernel) {
  kernels.def((name + "_workspace").c_str(), [=](const Kernels& self, const py::kwargs& values) {
    Arguments arguments(values);
    const Params params = unpack<Params>(arguments);
    arguments.check_all_read();
    return (self.*kernel).workspace(params);
  });
  kernels.def(name.c_str(), [=](const Kernels& self, const py::kwargs& values) {
    Arguments arguments(values);
    Params params = unpack<Params>(arguments);
    READ(arguments, params.resources.workspace, workspace);
    arguments.check_all_read();
    const py::gil_scoped_release release;
    (self.*kernel).launch(params);
  });
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = EGCNN_COMPILER;
  info["cpu"] = egcnn::cpu::kernels().front().name;
  info["cuda_kernels"] = bool(EGCNN_WITH_CUDA);
#if EGCNN_WITH_CUDA
  info["cuda_device"] = egcnn::cuda::device_status();
#endif
  info["cuda_toolkit"] = EGCNN_CUDA_TOOLKIT;
  info["cuda_architectures"] = EGCNN_CUDA_ARCHITECTURES;
  info["cuda_note"] = EGCNN_CUDA_NOTE;
  return info;
}

}  // namespace

PYBIND11_MODULE(EGCNN_MODULE, m) {
  m.doc() = "Kernels of egcnn; called by egcnn.ops, which checks the arguments.";
  m.def("build_info", &build_info);

  // Local, so that tests/cuda_on_cpu can be imported beside egcnn._C.
  py::class_<Kernels> kernels(m, "Kernels", py::module_local());
  kernels.def_readonly("name", &Kernels::name);
#define EGCNN_OPERATOR(name, Params) define(kernels, #name, &Kernels::name);
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
