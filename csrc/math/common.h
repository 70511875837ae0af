// Element types and scalar functions of host and device. Functions are static so that each unit
// keeps the copy compiled for its own instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

// EGCNN_DEVICE is for members that the GPU may call too.
#ifdef __CUDACC__
#define EGCNN_DEVICE __host__ __device__
#define EGCNN_MATH static EGCNN_DEVICE __forceinline__
#else
#define EGCNN_DEVICE
#define EGCNN_MATH static inline
#endif

namespace egcnn {

// a / b rounded up, and a rounded up to a multiple of b, of numbers that are not negative. Whatever
// their types, they are taken as Int.
template <class Int = int64_t>
EGCNN_MATH constexpr Int divide_up(std::common_type_t<Int> a, std::common_type_t<Int> b) {
  return (a + b - 1) / b;
}
EGCNN_MATH constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The float types come first. A bool tensor is passed as u8; torch stores 0 or 1.
enum class DType : int { f64, f32, f16, bf16, u8, i8, i16, i32, i64 };

EGCNN_MATH constexpr bool is_float(DType dtype) { return dtype <= DType::bf16; }

EGCNN_MATH constexpr int64_t float_bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// The type of weights, gradients of weights and sums.
EGCNN_MATH constexpr DType accumulated(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

EGCNN_MATH constexpr int64_t accumulator_bytes(DType dtype) {
  return float_bytes(accumulated(dtype));
}

}  // namespace egcnn

namespace egcnn::math {

EGCNN_MATH float exp(float x) { return ::expf(x); }
EGCNN_MATH double exp(double x) { return ::exp(x); }
EGCNN_MATH float log(float x) { return ::logf(x); }
EGCNN_MATH double log(double x) { return ::log(x); }
EGCNN_MATH double log1p(double x) { return ::log1p(x); }
EGCNN_MATH float sqrt(float x) { return ::sqrtf(x); }
EGCNN_MATH double sqrt(double x) { return ::sqrt(x); }

template <class T>
EGCNN_MATH T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace egcnn::math
