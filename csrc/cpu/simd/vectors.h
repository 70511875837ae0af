// Vectors of the instruction set's width, and permutations of their lanes.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "isa.h"

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

// Whether neighbours are shifted in from registers rather than loaded across cache lines.
#ifdef __AVX512F__
template <class T>
constexpr bool kHasShift = sizeof(T) >= 4;

// The vector that starts at lane i of two consecutive vectors.
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
constexpr bool kHasShift = false;
#endif

// One step of a transposition. Where i lacks the bit `step`, lane i is a's lane i, or with `high`
// a's lane i + step; elsewhere it is b's lane i - step, or with `high` b's lane i.
template <int step, bool high, class Acc, int... i>
static inline Vector<Acc> interleave(Vector<Acc> a, Vector<Acc> b,
                                     std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<Acc>;
#ifdef __clang__
  return __builtin_shufflevector(
      a, b, (i & step ? i + lanes - (high ? 0 : step) : i + (high ? step : 0))...);
#else
  using Lane = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
  typedef Lane Mask __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(
      a, b, Mask{(i & step ? i + lanes - (high ? 0 : step) : i + (high ? step : 0))...});
#endif
}

template <int step, bool high, class Acc>
static inline Vector<Acc> interleave(Vector<Acc> a, Vector<Acc> b) {
  return interleave<step, high, Acc>(a, b, std::make_integer_sequence<int, kLanes<Acc>>());
}

// Lane i of the result is lane index[i] of v.
template <class V, class Index>
static inline V permute(V v, Index index) {
#if defined(__AVX512F__)
  if constexpr (sizeof(v[0]) == 4)
    return V(_mm512_maskz_permutexvar_ps(-1, __m512i(index), __m512(v)));
  if constexpr (sizeof(v[0]) == 8)
    return V(_mm512_maskz_permutexvar_pd(-1, __m512i(index), __m512d(v)));
#elif defined(__AVX2__)
  if constexpr (sizeof(v[0]) == 4) return V(_mm256_permutevar8x32_ps(__m256(v), __m256i(index)));
#endif
  V result;
  for (size_t i = 0; i < sizeof v / sizeof v[0]; ++i) result[i] = v[index[i]];
  return result;
}

// The same of two consecutive vectors.
template <class V, class Index>
static inline V permute(V first, V second, Index index) {
  constexpr int lanes = sizeof first / sizeof first[0];
#if defined(__AVX512F__)
  if constexpr (sizeof(first[0]) == 4) {
    return V(_mm512_permutex2var_ps(__m512(first), __m512i(index), __m512(second)));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(first[0]) == 4) {
    return index < lanes ? permute(first, index) : permute(second, index - lanes);
  }
#endif
  V result;
  for (int i = 0; i < lanes; ++i) {
    result[i] = index[i] < lanes ? first[index[i]] : second[index[i] - lanes];
  }
  return result;
}

// Transposes a square matrix of vectors.
template <int step, class Acc>
static inline void transpose_square(Vector<Acc>* v) {
  if constexpr (step < kLanes<Acc>) {
    for (int i = 0; i < kLanes<Acc>; ++i) {
      if (i & step) continue;
      const Vector<Acc> a = v[i], b = v[i + step];
      v[i] = interleave<step, false, Acc>(a, b);
      v[i + step] = interleave<step, true, Acc>(a, b);
    }
    transpose_square<2 * step, Acc>(v);
  }
}

// Lane i of the result is the sum of the lanes of v[i].
template <int step, class Acc>
static inline Vector<Acc> horizontal_sums(Vector<Acc>* v) {
  if constexpr (step == kLanes<Acc>) {
    return v[0];
  } else {
    for (int i = 0; i < kLanes<Acc>; i += 2 * step) {
      const Vector<Acc> a = v[i], b = v[i + step];
      v[i] = interleave<step, false, Acc>(a, b) + interleave<step, true, Acc>(a, b);
    }
    return horizontal_sums<2 * step, Acc>(v);
  }
}

// out[j][i] = in[i][j] for i < rows and j < columns, both clamped to the vector's width. Whole
// vectors are read and written, from the first row to the last; lanes beyond `rows` become 0.
template <class Acc>
static inline void transpose(const Acc* in, int64_t in_pitch, int64_t rows, Acc* out,
                             int64_t out_pitch, int64_t columns) {
  constexpr int lanes = kLanes<Acc>;
  Vector<Acc> v[lanes];
  for (int i = 0; i < lanes; ++i) v[i] = i < rows ? load_vector(in + i * in_pitch) : Vector<Acc>{};
  transpose_square<1, Acc>(v);
  for (int j = 0; j < lanes; ++j) {
    if (j < columns) store_vector(out + j * out_pitch, v[j]);
  }
}

}  // namespace egcnn::EGCNN_ISA
