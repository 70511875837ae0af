// egcnn._C: the bridge as Python sees it. `cpu` and `cuda` hold the kernels of a kind of device; each
// kernel has a method that launches it and one, `..._workspace`, that tells how many bytes of
// scratch memory it needs. A tensor arrives as (pointer, dtype code, batch stride, channel stride,
// voxel stride), any other array as its address.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
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
using py::arg;

namespace {

using Address = uintptr_t;
using TensorArgument = std::tuple<Address, int, int64_t, int64_t, int64_t>;
using Shape = std::array<int64_t, 5>;
using Integers = std::vector<int64_t>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

egcnn::Tensor tensor(const TensorArgument& t) {
  return {pointer(std::get<0>(t)), egcnn::DType(std::get<1>(t)), std::get<2>(t), std::get<3>(t),
          std::get<4>(t)};
}

egcnn::Size size(const Shape& s) { return {s[0], s[1], s[2], s[3], s[4]}; }

egcnn::SobelEdges sobel_edges(const TensorArgument& labels, const TensorArgument& edges,
                              const Shape& shape, const Integers& values, const Integers& counts,
                              double threshold) {
  return {tensor(labels), tensor(edges),  size(shape), values.data(),
          counts.empty() ? nullptr : counts.data(), threshold, {}};
}

egcnn::SobelMagnitude sobel_magnitude(const TensorArgument& x, const TensorArgument& out,
                                      const Shape& shape) {
  return {tensor(x), tensor(out), size(shape), {}};
}

egcnn::SobelMagnitudeBackward sobel_magnitude_backward(const TensorArgument& grad,
                                                       const TensorArgument& x,
                                                       const TensorArgument& grad_x,
                                                       const Shape& shape) {
  return {tensor(grad), tensor(x), tensor(grad_x), size(shape), {}};
}

egcnn::EdgeGate edge_gate(const TensorArgument& e, const TensorArgument& m, Address weight_e,
                          Address weight_m, Address bias, const TensorArgument& out,
                          const Shape& shape, int64_t main_channels, int64_t gates, bool relu,
                          bool tf32) {
  return {tensor(e), tensor(m), pointer(weight_e), pointer(weight_m), pointer(bias), tensor(out),
          size(shape), main_channels, gates, relu, tf32, {}};
}

egcnn::EdgeGateBackward edge_gate_backward(
    const TensorArgument& grad, const TensorArgument& e, const TensorArgument& m, Address weight_e,
    Address weight_m, Address bias, const TensorArgument& grad_e, const TensorArgument& grad_m,
    Address grad_weight_e, Address grad_weight_m, Address grad_bias, const Shape& shape,
    int64_t main_channels, int64_t gates, bool relu, bool tf32) {
  return {tensor(grad), tensor(e), tensor(m), pointer(weight_e), pointer(weight_m), pointer(bias),
          tensor(grad_e), tensor(grad_m), pointer(grad_weight_e), pointer(grad_weight_m),
          pointer(grad_bias), size(shape), main_channels, gates, relu, tf32, {}};
}

egcnn::Consistency consistency(const TensorArgument& logits, const TensorArgument& target,
                               const Shape& shape, Address seed, double tau, bool hard,
                               bool softmax, bool both, Address edges, Address loss) {
  return {tensor(logits), tensor(target), size(shape), static_cast<int64_t*>(pointer(seed)), tau,
          hard, softmax, both, static_cast<int64_t*>(pointer(edges)), pointer(loss), nullptr, {},
          {}};
}

egcnn::Consistency consistency_backward(const TensorArgument& logits, const TensorArgument& target,
                                        const Shape& shape, Address seed, double tau, bool hard,
                                        bool softmax, bool both, Address edges, Address grad,
                                        const TensorArgument& grad_logits) {
  return {tensor(logits), tensor(target), size(shape), static_cast<int64_t*>(pointer(seed)), tau,
          hard, softmax, both, static_cast<int64_t*>(pointer(edges)), nullptr, pointer(grad),
          tensor(grad_logits), {}};
}

// `pack` makes a kernel's parameters of the arguments that `names` name. They are keywords only.
template <class Params, class... Args, class... Names>
void define(py::class_<Kernels>& kernels, const char* name, Kernel<Params> Kernels::*kernel,
            Params (*pack)(Args...), Names... names) {
  kernels.def(
      (std::string(name) + "_workspace").c_str(),
      [=](const Kernels& self, Args... args, int threads, int device, Address stream) {
        Params params = pack(args...);
        params.resources = {nullptr, threads, device, pointer(stream)};
        return (self.*kernel).workspace(params);
      },
      py::kw_only(), names..., arg("threads"), arg("device"), arg("stream"));
  kernels.def(
      name,
      [=](const Kernels& self, Args... args, int threads, int device, Address stream,
          Address workspace) {
        const py::gil_scoped_release release;
        Params params = pack(args...);
        params.resources = {pointer(workspace), threads, device, pointer(stream)};
        (self.*kernel).launch(params);
      },
      py::kw_only(), names..., arg("threads"), arg("device"), arg("stream"), arg("workspace"));
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
  define(kernels, "sobel_edges", &Kernels::sobel_edges, &sobel_edges, arg("labels"), arg("edges"),
         arg("shape"), arg("values"), arg("counts"), arg("threshold"));
  define(kernels, "sobel_magnitude", &Kernels::sobel_magnitude, &sobel_magnitude, arg("x"),
         arg("out"), arg("shape"));
  define(kernels, "sobel_magnitude_backward", &Kernels::sobel_magnitude_backward,
         &sobel_magnitude_backward, arg("grad"), arg("x"), arg("grad_x"), arg("shape"));
  define(kernels, "edge_gate", &Kernels::edge_gate, &edge_gate, arg("e"), arg("m"),
         arg("weight_e"), arg("weight_m"), arg("bias"), arg("out"), arg("shape"),
         arg("main_channels"), arg("gates"), arg("relu"), arg("tf32"));
  define(kernels, "edge_gate_backward", &Kernels::edge_gate_backward, &edge_gate_backward,
         arg("grad"), arg("e"), arg("m"), arg("weight_e"), arg("weight_m"), arg("bias"),
         arg("grad_e"), arg("grad_m"), arg("grad_weight_e"), arg("grad_weight_m"),
         arg("grad_bias"), arg("shape"), arg("main_channels"), arg("gates"), arg("relu"), arg("tf32"));
  define(kernels, "consistency", &Kernels::consistency, &consistency, arg("logits"), arg("target"),
         arg("shape"), arg("seed"), arg("tau"), arg("hard"), arg("softmax"), arg("both"),
         arg("edges"), arg("loss"));
  define(kernels, "consistency_backward", &Kernels::consistency_backward, &consistency_backward,
         arg("logits"), arg("target"), arg("shape"), arg("seed"), arg("tau"), arg("hard"),
         arg("softmax"), arg("both"), arg("edges"), arg("grad"), arg("grad_logits"));

  const auto borrowed = py::return_value_policy::reference;
  m.attr("cpu") = py::cast(&egcnn::cpu::kernels().front(), borrowed);
  m.attr("cpu_by_instruction_set") = py::dict();
  for (const Kernels& each : egcnn::cpu::kernels()) {
    m.attr("cpu_by_instruction_set")[each.name] = py::cast(&each, borrowed);
  }
#if EGCNN_WITH_CUDA
  m.attr("cuda") = py::cast(&egcnn::cuda::kernels(), borrowed);
#endif
}
