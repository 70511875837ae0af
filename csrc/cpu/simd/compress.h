// Packing and unpacking selected values of a group of kGroup voxels.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>

#include "bits.h"
#include "elements.h"

namespace egcnn::EGCNN_ISA {

// Packs the selected of kGroup values to the front of `out`, which has room for kGroup; unselected
// ones are never read.
template <class V, class T>
static inline void compress(const V* values, uint32_t bits, T* out) {
  for (; bits != 0; bits &= bits - 1) *out++ = widen<T>(values[lowest_bit(bits)]);
}

// The inverse of compress(), with zeros elsewhere. `listed` holds kGroup values.
template <class T>
static inline void expand(const T* listed, uint32_t bits, T* out) {
  for (int64_t i = 0; i < kGroup; ++i) out[i] = 0;
  for (; bits != 0; bits &= bits - 1) out[lowest_bit(bits)] = *listed++;
}

// expand() three times, each shifted by one element. The two highest bits must be 0.
template <class T>
static inline void expand_around(const T* listed, uint32_t bits, T (&out)[3][kGroup]) {
  for (int i = 0; i < 3; ++i) {
    for (int64_t k = 0; k < kGroup; ++k) out[i][k] = 0;
  }
  for (; bits != 0; bits &= bits - 1, ++listed) {
    for (int i = 0; i < 3; ++i) out[i][lowest_bit(bits) + 2 - i] = *listed;
  }
}

// expand() that leaves the other elements unchanged.
template <class V, class T>
static inline void expand_store(const V* listed, uint32_t bits, T* out) {
  for (; bits != 0; bits &= bits - 1) out[lowest_bit(bits)] = narrow(*listed++, out);
}

// compress() of first, first + 1 and so on.
static inline void compress_range(int32_t first, uint32_t bits, int32_t* out) {
#ifdef __AVX512F__
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i values = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(bits), values));
#else
  for (; bits != 0; bits &= bits - 1) *out++ = first + int32_t(lowest_bit(bits));
#endif
}

// Whether compressing is faster than looking up each value by its position.
#ifdef __AVX512F__
constexpr bool kHasCompress = true;

static inline void compress(__m512 values, uint32_t bits, float* out) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(__mmask16(bits), values));
}

static inline void compress(const float* values, uint32_t bits, float* out) {
  compress(_mm512_maskz_loadu_ps(__mmask16(bits), values), bits, out);
}

static inline void compress(const BFloat16* values, uint32_t bits, float* out) {
  const __m256i halves = _mm256_maskz_loadu_epi16(__mmask16(bits), values);
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xFFFF, halves);
  compress(_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, wide, 16)), bits, out);
}

static inline void compress(const Half* values, uint32_t bits, float* out) {
  const __m256i halves = _mm256_maskz_loadu_epi16(__mmask16(bits), values);
  compress(_mm512_maskz_cvtph_ps(0xFFFF, halves), bits, out);
}

static inline void expand(const float* listed, uint32_t bits, float* out) {
  _mm512_storeu_ps(out, _mm512_maskz_expand_ps(__mmask16(bits), _mm512_loadu_ps(listed)));
}

static inline void expand_around(const float* listed, uint32_t bits, float (&out)[3][kGroup]) {
  for (int i = 0; i < 3; ++i) expand(listed, bits << (2 - i), out[i]);
}

static inline void expand_store(const float* listed, uint32_t bits, float* out) {
  const __m512 values = _mm512_maskz_expand_ps(__mmask16(bits), _mm512_loadu_ps(listed));
  _mm512_mask_storeu_ps(out, __mmask16(bits), values);
}

template <class T>
static inline void expand_store_halves(const float* listed, uint32_t bits, T* out) {
  float values[kGroup];
  T halves[kGroup];
  expand(listed, bits, values);
  for (int64_t i = 0; i < kGroup; ++i) halves[i] = narrow(values[i], out);
  const __m256i vector = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
  _mm256_mask_storeu_epi16(out, __mmask16(bits), vector);
}

static inline void expand_store(const float* listed, uint32_t bits, BFloat16* out) {
  expand_store_halves(listed, bits, out);
}

static inline void expand_store(const float* listed, uint32_t bits, Half* out) {
  expand_store_halves(listed, bits, out);
}

static inline void expand_store(const int32_t* listed, uint32_t bits, uint8_t* out) {
  const __m512i values = _mm512_maskz_expand_epi32(__mmask16(bits), _mm512_loadu_si512(listed));
  _mm_mask_storeu_epi8(out, __mmask16(bits), _mm512_maskz_cvtepi32_epi8(0xFFFF, values));
}

static inline void compress(const int8_t* values, uint32_t bits, float* out) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  // The masked form avoids a warning of g++ 12 about its own header.
  const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xFFFF, bytes);
  compress(_mm512_maskz_cvtepi32_ps(0xFFFF, wide), bits, out);
}
#else
constexpr bool kHasCompress = false;
#endif

}  // namespace egcnn::EGCNN_ISA
