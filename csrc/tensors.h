// Tensors as Python sees them, asked for their memory by their Python methods, since nothing here
// is compiled against torch; and the error for one that does not fit.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <unordered_map>

#include "ops.h"

namespace egcnn {

namespace py = pybind11;

// An attribute's name, interned once: creating strings would dominate a short call.
struct Name {
  PyObject* object;
  explicit Name(const char* text) : object(PyUnicode_InternFromString(text)) {}
};

inline py::object owned(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

inline py::object attribute(py::handle tensor, const Name& name) {
  return owned(PyObject_GetAttr(tensor.ptr(), name.object));
}

inline py::object call(py::handle tensor, const Name& method) {
  return owned(PyObject_CallMethodNoArgs(tensor.ptr(), method.object));
}

inline void* address_of(py::handle tensor) {
  static const Name data_ptr("data_ptr");
  return reinterpret_cast<void*>(call(tensor, data_ptr).cast<uintptr_t>());
}

// torch's name of each type.
inline const std::unordered_map<std::string, DType> kNames = {
    {"torch.float64", DType::f64},   {"torch.float32", DType::f32}, {"torch.float16", DType::f16},
    {"torch.bfloat16", DType::bf16}, {"torch.uint8", DType::u8},    {"torch.int8", DType::i8},
    {"torch.int16", DType::i16},     {"torch.int32", DType::i32},   {"torch.int64", DType::i64},
    {"torch.bool", DType::u8},  // a byte that holds 0 or 1
};

inline std::string name_of(DType dtype) {
  for (const auto& [name, known] : kNames) {
    if (known == dtype) return name.substr(sizeof "torch." - 1);
  }
  return "";
}

inline DType dtype_of(py::handle tensor) {
  static std::unordered_map<PyObject*, DType> known;  // torch's types live as long as the process
  static const Name dtype("dtype");
  const py::object type = attribute(tensor, dtype);
  if (const auto found = known.find(type.ptr()); found != known.end()) return found->second;
  const auto named = kNames.find(py::str(type));
  if (named == kNames.end()) {
    throw py::type_error("egcnn: no kernel takes " + py::str(type).cast<std::string>());
  }
  return known[type.ptr()] = named->second;
}

inline std::string describe(py::handle value) {
  if (!py::hasattr(value, "dtype")) return py::repr(value);
  const std::string dtype = py::str(value.attr("dtype")), device = py::str(value.attr("device"));
  const std::string shape = py::repr(owned(PySequence_Tuple(value.attr("shape").ptr())));
  return dtype.substr(sizeof "torch." - 1) + " of shape " + shape + " on " + device;
}

[[noreturn]] inline void refuse(const std::string& name, py::handle value,
                                const std::string& expected) {
  const py::object error = py::module_::import("egcnn.errors").attr("InputError");
  const std::string message = name + " is " + describe(value) + "; expected " + expected;
  PyErr_SetString(error.ptr(), message.c_str());
  throw py::error_already_set();
}

using Five = std::array<int64_t, 5>;

// Five numbers of a tuple; the caller knows that the tensor has five dimensions.
inline Five five(const py::object& numbers) {
  Five result;
  for (size_t i = 0; i < 5; ++i) {
    result[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(numbers.ptr(), py::ssize_t(i)));
  }
  return result;
}

// Whether the dimensions lie in memory in this order without a gap, the last one innermost. torch
// lets the strides of dimensions of size 1 hold anything.
inline bool lies_in_order(const Five& shape, const Five& strides, const std::array<int, 5>& order) {
  int64_t stride = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    if (shape[*dim] != 1 && strides[*dim] != stride) return false;
    stride *= shape[*dim];
  }
  return true;
}

// Reads a dense volume and returns its size.
inline Size read_volume(py::handle value, const char* name, Tensor& tensor) {
  static const Name shape_name("shape"), stride_name("stride"), dim("dim");
  if (call(value, dim).cast<int>() != 5) {
    refuse(name, value, "five dimensions (B, C, D, H, W)");
  }
  const Five shape = five(attribute(value, shape_name)), strides = five(call(value, stride_name));
  const Size size = {shape[0], shape[1], shape[2], shape[3], shape[4]};
  const int64_t channels = size.channels, voxels = size.voxels();
  tensor = {address_of(value), dtype_of(value), channels * voxels, voxels, 1};
  if (size.empty() || lies_in_order(shape, strides, {0, 1, 2, 3, 4})) return size;
  if (!lies_in_order(shape, strides, {0, 2, 3, 4, 1})) {
    refuse(name, value, "no gaps: contiguous or channels_last_3d");
  }
  tensor.channel_stride = 1;
  tensor.voxel_stride = channels;
  return size;
}

}  // namespace egcnn
