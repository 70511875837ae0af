// Rows of a tensor in and out of the accumulation type. Every kernel reads and writes through
// these, so that one body serves all dtypes and both memory formats.
#pragma once

#include <cstring>

#include "../math/common.h"
#include "../ops.h"

// Each CPU unit is compiled once per instruction set, its launches in a namespace of that name.
#ifndef EGCNN_ISA
#error "EGCNN_ISA names the instruction set that this unit is compiled for"
#endif

// One copy a unit is enough for what is called once a row, and keeps the build short.
#define EGCNN_OUT_OF_LINE __attribute__((noinline)) static

namespace egcnn::EGCNN_ISA {

// Of the widest vectors of the instruction set.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// 16-bit floats as their bits: the same code with every compiler, and vectorisable.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

static inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

template <class Acc, class T>
static inline Acc widen(T value) {
  return Acc(value);
}

template <class Acc>
static inline Acc widen(BFloat16 value) {
  return Acc(from_bits(uint32_t(value.bits) << 16));
}

template <class Acc>
static inline Acc widen(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t rest = uint32_t(value.bits & 0x7FFFu) << 13;
  // Scaling by 2^112 puts the exponent right and denormals with it; inf and NaN keep theirs.
  const uint32_t finite = to_bits(from_bits(rest) * 0x1p112f);
  const uint32_t special = rest | 0x7F800000u;
  return Acc(from_bits(sign | (rest >= 0x0F800000u ? special : finite)));
}

template <class T, class Acc>
static inline T narrow(Acc value, T*) {
  return T(value);
}

template <class Acc>
static inline BFloat16 narrow(Acc value, BFloat16*) {
  const uint32_t bits = to_bits(float(value));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {uint16_t(nan ? 0x7FC0u : rounded)};
}

template <class Acc>
static inline Half narrow(Acc value, Half*) {
  const uint32_t bits = to_bits(float(value));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7FFFFFFFu;
  // Adding a power of two lets the FPU round a denormal result at the right bit.
  const uint32_t denormal = to_bits(from_bits(rest) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (rest - 0x38000000u + 0x0FFFu + ((rest >> 13) & 1u)) >> 13;
  const uint32_t large = rest > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t finite = rest < 0x38800000u ? denormal : normal;
  return {uint16_t(sign | (rest >= 0x477FF000u ? large : finite))};
}

// Calls body with a null pointer to the element type that `dtype` stands for.
template <class Body>
static inline void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64: return body(static_cast<double*>(nullptr));
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f16: return body(static_cast<Half*>(nullptr));
    case DType::bf16: return body(static_cast<BFloat16*>(nullptr));
    case DType::u8: return body(static_cast<uint8_t*>(nullptr));
    case DType::i8: return body(static_cast<int8_t*>(nullptr));
    case DType::i16: return body(static_cast<int16_t*>(nullptr));
    case DType::i32: return body(static_cast<int32_t*>(nullptr));
    case DType::i64: return body(static_cast<int64_t*>(nullptr));
  }
}

// The same for the float types only.
template <class Body>
static inline void with_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64: return body(static_cast<double*>(nullptr));
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f16: return body(static_cast<Half*>(nullptr));
    default: return body(static_cast<BFloat16*>(nullptr));
  }
}

static inline bool is_float(DType dtype) { return dtype <= DType::bf16; }

static inline int64_t float_bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

static inline int64_t offset(const Tensor& tensor, int64_t batch, int64_t channel, int64_t voxel) {
  return batch * tensor.batch_stride + channel * tensor.channel_stride +
         voxel * tensor.voxel_stride;
}

// n voxels of one channel, from `start` (an element offset), as floats.
template <class Acc>
EGCNN_OUT_OF_LINE void load(const Tensor& tensor, int64_t start, int64_t n, Acc* __restrict out) {
  with_float(tensor.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(tensor.data) + start;
    const int64_t stride = tensor.voxel_stride;
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[i * stride]);
    }
  });
}

// The same for the n voxels at start + position[i] voxels.
template <class Acc>
EGCNN_OUT_OF_LINE void load_listed(const Tensor& tensor, int64_t start, const int32_t* position,
                                   int64_t n, Acc* __restrict out) {
  if (n > 0 && position[n - 1] - position[0] == n - 1) {
    return load(tensor, start + position[0] * tensor.voxel_stride, n, out);
  }
  with_float(tensor.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(tensor.data) + start;
    const int64_t stride = tensor.voxel_stride;
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[position[i]]);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[position[i] * stride]);
    }
  });
}

template <class Acc>
EGCNN_OUT_OF_LINE void store(const Tensor& tensor, int64_t start, int64_t n, const Acc* __restrict in) {
  with_float(tensor.dtype, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(tensor.data) + start;
    const int64_t stride = tensor.voxel_stride;
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = narrow(in[i], type);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i * stride] = narrow(in[i], type);
    }
  });
}

// n voxels of an integer map as 1 where the value is one of `values`, else 0; with no values, 1
// where it is not 0.
template <class Acc>
EGCNN_OUT_OF_LINE void load_inside(const Tensor& tensor, int64_t start, int64_t n,
                               const int64_t* values, int64_t count, Acc* __restrict out) {
  with_type(tensor.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(tensor.data) + start;
    const int64_t stride = tensor.voxel_stride;
    if (count == 0) {
      for (int64_t i = 0; i < n; ++i) out[i] = Acc(widen<double>(in[i * stride]) != 0);
      return;
    }
    for (int64_t i = 0; i < n; ++i) out[i] = Acc(0);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t value = values[k];
      for (int64_t i = 0; i < n; ++i) {
        if (widen<int64_t>(in[i * stride]) == value) out[i] = Acc(1);
      }
    }
  });
}

// The neighbours of voxel i of n along an axis; borders replicate.
static inline int64_t below(int64_t i) { return i > 0 ? i - 1 : 0; }
static inline int64_t above(int64_t i, int64_t n) { return i + 1 < n ? i + 1 : n - 1; }

// Splits `jobs` into `parts` equal runs; part i is [first, last).
static inline void share(int64_t jobs, int64_t parts, int64_t i, int64_t* first, int64_t* last) {
  *first = jobs * i / parts;
  *last = jobs * (i + 1) / parts;
}

}  // namespace egcnn::EGCNN_ISA
