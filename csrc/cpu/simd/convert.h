// Vectors of the accumulation type, loaded from elements of any float type and stored as such.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "vectors.h"

namespace egcnn::EGCNN_ISA {

// The bits of a vector of floats.
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// As many 16-bit numbers as a vector has words, each in a word. Compilers shuffle where one
// instruction does it.
static inline Words load_halves(const void* from) {
#if defined(__AVX512F__)
  return Words(_mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_loadu_si256((const __m256i*)from)));
#elif defined(__AVX2__)
  return Words(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return __builtin_convertvector(halves, Words);
#endif
}

// The inverse, of words below 2^16.
static inline void store_halves(void* to, Words words) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi32_epi16(0xFFFF, __m512i(words)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32(__m256i(words), __m256i(words));
  _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x88)));
#else
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  const Halves halves = __builtin_convertvector(words, Halves);
  std::memcpy(to, &halves, sizeof halves);
#endif
}

template <class Acc, class T>
static inline Vector<Acc> load_as(const T* from) {
  if constexpr (std::is_same_v<T, Acc>) {
    return load_vector(from);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return Vector<float>(load_halves(from) << 16);
  } else {  // as widen()
    const Words bits = load_halves(from), rest = (bits & 0x7FFF) << 13;
    const Words finite = Words(Vector<float>(rest) * 0x1p112f);
    const Words value = rest >= 0x0F800000u ? rest | 0x7F800000u : finite;
    return Vector<float>((bits & 0x8000) << 16 | value);
  }
}

template <class T, class Acc>
static inline void store_as(T* to, Vector<Acc> value) {
  if constexpr (std::is_same_v<T, Acc>) {
    store_vector(to, value);
  } else {  // as narrow()
    const Words bits = Words(value), rest = bits & 0x7FFFFFFF;
    if constexpr (std::is_same_v<T, BFloat16>) {
      const Words rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
      store_halves(to, rest > 0x7F800000u ? Words{} + 0x7FC0 : rounded);
    } else {
      const Words denormal = Words(Vector<float>(rest) + 0.5f) - 0x3F000000;
      const Words normal = (rest - 0x38000000 + 0x0FFF + (rest >> 13 & 1)) >> 13;
      const Words large = rest > 0x7F800000u ? Words{} + 0x7E00 : Words{} + 0x7C00;
      const Words finite = rest < 0x38800000u ? denormal : normal;
      store_halves(to, (bits >> 16 & 0x8000) | (rest >= 0x477FF000u ? large : finite));
    }
  }
}

}  // namespace egcnn::EGCNN_ISA
