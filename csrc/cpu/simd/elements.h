// Element types: their conversion from and to the accumulation type, and dispatch on DType.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../math/common.h"
#include "isa.h"

namespace egcnn::EGCNN_ISA {

// 16-bit floats by their bits: the same code with every compiler, and vectorizable.
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
  // Scaling by 2^112 rebiases the exponent and normalizes denormals; infinity and NaN are set
  // separately.
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

// Calls body with a null pointer to the element type of `dtype`.
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

// The same for the float types.
template <class Body>
static inline void with_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64: return body(static_cast<double*>(nullptr));
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f16: return body(static_cast<Half*>(nullptr));
    default: return body(static_cast<BFloat16*>(nullptr));
  }
}

// The same with 0 of the accumulation type: double for f64, else float.
template <class Body>
static inline auto with_accumulator(DType dtype, Body&& body) {
  return dtype == DType::f64 ? body(0.0) : body(0.0f);
}

// with_float() for the types with accumulation type Acc.
template <class Acc, class Body>
static inline void with_float_of(DType dtype, Body&& body) {
  if constexpr (sizeof(Acc) == 8) {
    body(static_cast<double*>(nullptr));
  } else {
    switch (dtype) {
      case DType::f16: return body(static_cast<Half*>(nullptr));
      case DType::bf16: return body(static_cast<BFloat16*>(nullptr));
      default: return body(static_cast<float*>(nullptr));
    }
  }
}

// Converts n elements from `start` on, `stride` elements apart.
template <class Acc>
EGCNN_OUT_OF_LINE void load(DType dtype, const void* data, int64_t start, int64_t stride, int64_t n,
                            Acc* __restrict out) {
  with_float(dtype, [&](auto* type) {
    const auto* in = static_cast<const std::remove_pointer_t<decltype(type)>*>(data) + start;
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = widen<Acc>(in[i * stride]);
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
