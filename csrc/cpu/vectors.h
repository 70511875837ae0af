// Vectors as wide as the instruction set has them.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "rows.h"

namespace egcnn::EGCNN_ISA {

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
static inline Vector<T> load_vector(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <class T>
static inline void store_vector(T* to, Vector<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

// Whether all bits are 0.
template <class V>
static inline bool is_zero(V vector) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(__m512i(vector), __m512i(vector)) == 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256(__m256i(vector), __m256i(vector));
#else
  uint64_t words[2];
  std::memcpy(words, &vector, sizeof vector);
  return (words[0] | words[1]) == 0;
#endif
}

// Whether neighbours are had from registers rather than by loads that each touch two lines.
#ifdef __AVX512F__
template <class T>
constexpr bool kShifts = sizeof(T) >= 4;

// Of two vectors in a row, the lanes from the first's lane i on.
template <int i, class V>
static inline V from_lane(V first, V second) {
  if constexpr (sizeof(first[0]) == 4) {
    return V(_mm512_maskz_alignr_epi32(0xFFFF, __m512i(second), __m512i(first), i));
  } else {
    return V(_mm512_maskz_alignr_epi64(0xFF, __m512i(second), __m512i(first), i));
  }
}

template <class V>
static inline V from_last(V first, V second) {
  return from_lane<sizeof(V) / sizeof(first[0]) - 1>(first, second);
}

template <class V>
static inline V from_second(V first, V second) {
  return from_lane<1>(first, second);
}
#else
template <class T>
constexpr bool kShifts = false;
#endif

}  // namespace egcnn::EGCNN_ISA
