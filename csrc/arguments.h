// The arguments of a kernel's call from Python, read one after the other and checked on the way.
#pragma once

#include <pybind11/pybind11.h>

#include <forward_list>
#include <string>
#include <vector>

#include "tensors.h"

namespace egcnn {

// The arguments of one call. Lists stay alive as long as this does. The first tensor is a volume;
// all others are on its device, and all volumes have its batch and size, or its batch alone if read
// by read_resampled().
class Arguments {
 public:
  const bool on_cuda;

  Arguments(const py::args& values, bool on_cuda) : on_cuda(on_cuda), values_(values) {}

  template <class T>
  void read(const char* name, T& value) {
    value = next(name).cast<T>();
  }

  template <class T>
  void read(const char* name, T*& data) {
    data = static_cast<T*>(address_of(next(name)));
  }

  // An array without gaps of so many elements.
  template <class T>
  void read(const char* name, T*& data, DType dtype, int64_t count) {
    static const Name numel("numel"), is_contiguous("is_contiguous");
    read(name, data);
    expect(dtype_of(last_) == dtype && call(last_, numel).cast<int64_t>() == count &&
               call(last_, is_contiguous).ptr() == Py_True,
           [&] { return std::to_string(count) + " contiguous elements of " + name_of(dtype); });
    check_device();
  }

  Size read(const char* name, Tensor& tensor) {
    const Size size = read_volume(next(name), name, tensor), &first = first_.size;
    if (!first_.tensor) first_ = {last_, size, device_of_last()};
    expect(size.batch == first.batch && size.depth == first.depth && size.height == first.height &&
               size.width == first.width,
           [&] { return "the batch and volume size of " + describe(first_.tensor); });
    check_device();
    return size;
  }

  // A volume of another size than the first, but of its batch.
  Size read_resampled(const char* name, Tensor& tensor) {
    const Size size = read_volume(next(name), name, tensor);
    expect(size.batch == first_.size.batch && size.voxels() > 0,
           [&] { return "voxels, and the batch of " + describe(first_.tensor); });
    check_device();
    return size;
  }

  // A volume like another in channels and type.
  void read(const char* name, Tensor& tensor, const Size& size, DType dtype) {
    const int64_t channels = read(name, tensor).channels;
    expect(channels == size.channels && tensor.dtype == dtype,
           [&] { return std::to_string(size.channels) + " channels of " + name_of(dtype); });
  }

  // Null where the list is empty.
  const std::vector<int64_t>& read_list(const char* name, const int64_t*& first) {
    lists_.push_front(next(name).cast<std::vector<int64_t>>());
    first = lists_.front().empty() ? nullptr : lists_.front().data();
    return lists_.front();
  }

  // Refuses what was read last unless `holds`.
  template <class Expected>
  void expect(bool holds, const Expected& expected) const {
    if (!holds) refuse(last_name_, last_, expected());
  }

  py::object next(const char* name) {
    if (read_ == values_.size()) {
      throw py::type_error(std::string("egcnn: missing kernel argument ") + name);
    }
    last_name_ = name;
    last_ = values_[read_];
    ++read_;
    return last_;
  }

  void check_all_read() const {
    if (read_ != values_.size()) throw py::type_error("egcnn: a kernel got too many arguments");
  }

 private:
  struct First {
    py::object tensor;
    Size size;
    int device;
  };

  int device_of_last() const {
    static const Name get_device("get_device");  // below 0 on the CPU
    return call(last_, get_device).cast<int>();
  }

  void check_device() const {
    expect(device_of_last() == first_.device,
           [&] { return std::string(py::str(first_.tensor.attr("device"))); });
  }

  const py::args& values_;
  std::forward_list<std::vector<int64_t>> lists_;
  size_t read_ = 0;
  const char* last_name_ = "";
  py::object last_;
  First first_{};
};

}  // namespace egcnn
