// Element types and scalar functions that host and device share. Functions are static so that each
// unit keeps the copy compiled for its own instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define EGCNN_MATH static __host__ __device__ __forceinline__
#else
#define EGCNN_MATH static inline
#endif

namespace egcnn {

// A bool tensor is passed as u8; torch stores 0 or 1.
enum class DType : int { f64, f32, f16, bf16, u8, i8, i16, i32, i64 };

}  // namespace egcnn

namespace egcnn::math {

EGCNN_MATH float exp(float x) { return ::expf(x); }
EGCNN_MATH double exp(double x) { return ::exp(x); }
EGCNN_MATH float log(float x) { return ::logf(x); }
EGCNN_MATH double log(double x) { return ::log(x); }
EGCNN_MATH float log1p(float x) { return ::log1pf(x); }
EGCNN_MATH double log1p(double x) { return ::log1p(x); }
EGCNN_MATH float sqrt(float x) { return ::sqrtf(x); }
EGCNN_MATH double sqrt(double x) { return ::sqrt(x); }

template <class T>
EGCNN_MATH T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace egcnn::math
