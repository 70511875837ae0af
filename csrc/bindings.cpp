// egcnn._C: the bridge as Python sees it. A tensor arrives as (pointer, dtype code, batch stride,
// channel stride, voxel stride), any other array as its address.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "build_info.h"  // written by setup.py
#include "ops.h"

namespace py = pybind11;
using py::arg;

namespace {

using Address = uintptr_t;
using TensorArgument = std::tuple<Address, int, int64_t, int64_t, int64_t>;
using Shape = std::array<int64_t, 5>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

egcnn::Tensor tensor(const TensorArgument& t) {
  return {pointer(std::get<0>(t)), egcnn::DType(std::get<1>(t)), std::get<2>(t), std::get<3>(t),
          std::get<4>(t)};
}

egcnn::Size size(const Shape& s) { return {s[0], s[1], s[2], s[3], s[4]}; }

void sobel_edges(TensorArgument labels, TensorArgument edges, Shape shape,
                 std::vector<int64_t> values, std::vector<int64_t> counts, double threshold,
                 Address workspace, int threads) {
  egcnn::cpu::sobel_edges_launch({tensor(labels), tensor(edges), size(shape), values.data(),
                                  counts.empty() ? nullptr : counts.data(), threshold,
                                  pointer(workspace), threads});
}

void sobel_magnitude(TensorArgument x, TensorArgument out, Shape shape, Address workspace,
                     int threads) {
  egcnn::cpu::sobel_magnitude_launch(
      {tensor(x), tensor(out), size(shape), pointer(workspace), threads});
}

void sobel_magnitude_backward(TensorArgument grad, TensorArgument x, TensorArgument grad_x,
                              Shape shape, Address workspace, int threads) {
  egcnn::cpu::sobel_magnitude_backward_launch(
      {tensor(grad), tensor(x), tensor(grad_x), size(shape), pointer(workspace), threads});
}

void edge_gate(TensorArgument e, TensorArgument m, Address weight_e, Address weight_m, Address bias,
               TensorArgument out, Shape shape, int64_t main_channels, int64_t gates, bool relu,
               Address workspace, int threads) {
  egcnn::cpu::edge_gate_launch({tensor(e), tensor(m), pointer(weight_e), pointer(weight_m),
                                pointer(bias), tensor(out), size(shape), main_channels, gates,
                                relu, pointer(workspace), threads});
}

void edge_gate_backward(TensorArgument grad, TensorArgument e, TensorArgument m, Address weight_e,
                        Address weight_m, Address bias, TensorArgument grad_e,
                        TensorArgument grad_m, Address grad_weight_e, Address grad_weight_m,
                        Address grad_bias, Shape shape, int64_t main_channels, int64_t gates,
                        bool relu, Address workspace, int threads) {
  egcnn::cpu::edge_gate_backward_launch(
      {tensor(grad), tensor(e), tensor(m), pointer(weight_e), pointer(weight_m), pointer(bias),
       tensor(grad_e), tensor(grad_m), pointer(grad_weight_e), pointer(grad_weight_m),
       pointer(grad_bias), size(shape), main_channels, gates, relu, pointer(workspace), threads});
}

void consistency(TensorArgument logits, TensorArgument target, Shape shape, Address seed,
                 double tau, bool hard, bool softmax, bool both, Address loss, Address workspace,
                 int threads) {
  egcnn::cpu::consistency_launch({tensor(logits), tensor(target), size(shape),
                                  static_cast<int64_t*>(pointer(seed)), tau, hard, softmax, both,
                                  pointer(loss), nullptr, {}, pointer(workspace), threads});
}

void consistency_backward(TensorArgument logits, TensorArgument target, Shape shape, Address seed,
                          double tau, bool hard, bool softmax, bool both, Address grad,
                          TensorArgument grad_logits, Address workspace, int threads) {
  egcnn::cpu::consistency_backward_launch(
      {tensor(logits), tensor(target), size(shape), static_cast<int64_t*>(pointer(seed)), tau,
       hard, softmax, both, nullptr, pointer(grad), tensor(grad_logits), pointer(workspace),
       threads});
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = EGCNN_COMPILER;
  info["cpu"] = egcnn::cpu::instruction_set();
  info["cuda_kernels"] = false;
#if EGCNN_WITH_CUDA
  info["cuda_device"] = egcnn::cuda::device_status();
#endif
  info["cuda_toolkit"] = EGCNN_CUDA_TOOLKIT;
  info["cuda_architectures"] = EGCNN_CUDA_ARCHITECTURES;
  info["cuda_note"] = EGCNN_CUDA_NOTE;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of egcnn; called by egcnn.ops, which checks the arguments.";
  const py::call_guard<py::gil_scoped_release> release;

  m.def("build_info", &build_info);
  m.def("sobel_edges_workspace", &egcnn::cpu::sobel_edges_workspace);
  m.def("sobel_magnitude_backward_workspace", &egcnn::cpu::sobel_magnitude_backward_workspace);
  m.def("edge_gate_workspace", &egcnn::cpu::edge_gate_workspace);
  m.def("edge_gate_backward_workspace", &egcnn::cpu::edge_gate_backward_workspace);
  m.def("consistency_workspace", &egcnn::cpu::consistency_workspace);

  m.def("sobel_edges", &sobel_edges, release, py::kw_only(), arg("labels"), arg("edges"),
        arg("shape"), arg("values"), arg("counts"), arg("threshold"), arg("workspace"),
        arg("threads"));
  m.def("sobel_magnitude", &sobel_magnitude, release, py::kw_only(), arg("x"), arg("out"),
        arg("shape"), arg("workspace"), arg("threads"));
  m.def("sobel_magnitude_backward", &sobel_magnitude_backward, release, py::kw_only(), arg("grad"),
        arg("x"), arg("grad_x"), arg("shape"), arg("workspace"), arg("threads"));
  m.def("edge_gate", &edge_gate, release, py::kw_only(), arg("e"), arg("m"), arg("weight_e"),
        arg("weight_m"), arg("bias"), arg("out"), arg("shape"), arg("main_channels"), arg("gates"),
        arg("relu"), arg("workspace"), arg("threads"));
  m.def("edge_gate_backward", &edge_gate_backward, release, py::kw_only(), arg("grad"), arg("e"),
        arg("m"), arg("weight_e"), arg("weight_m"), arg("bias"), arg("grad_e"), arg("grad_m"),
        arg("grad_weight_e"), arg("grad_weight_m"), arg("grad_bias"), arg("shape"),
        arg("main_channels"), arg("gates"), arg("relu"), arg("workspace"), arg("threads"));
  m.def("consistency", &consistency, release, py::kw_only(), arg("logits"), arg("target"),
        arg("shape"), arg("seed"), arg("tau"), arg("hard"), arg("softmax"), arg("both"),
        arg("loss"), arg("workspace"), arg("threads"));
  m.def("consistency_backward", &consistency_backward, release, py::kw_only(), arg("logits"),
        arg("target"), arg("shape"), arg("seed"), arg("tau"), arg("hard"), arg("softmax"),
        arg("both"), arg("grad"), arg("grad_logits"), arg("workspace"), arg("threads"));
}
