// Sets of voxels as the bits of words.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>

#include "vectors.h"

namespace egcnn::EGCNN_ISA {

constexpr int64_t kWord = 64;
constexpr int64_t kGroup = 16;
constexpr uint32_t kWholeGroup = (1u << kGroup) - 1;

// Bit i is set if a[i] and b[i] differ.
static inline uint64_t differing(const uint8_t* a, const uint8_t* b) {
#if defined(__AVX512BW__)
  return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
#elif defined(__SSE2__)
  uint64_t same = 0;
  for (int64_t i = 0; i < kWord; i += 16) {
    const __m128i equal = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)),
                                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
    same |= uint64_t(uint32_t(_mm_movemask_epi8(equal))) << i;
  }
  return ~same;
#else
  uint64_t bits = 0;
  for (int64_t i = 0; i < kWord; ++i) bits |= uint64_t(a[i] != b[i]) << i;
  return bits;
#endif
}

// Bit i is set if block[i] is not `value`, for kWord elements.
template <class U>
static inline uint64_t differing(const U* block, U value) {
  uint64_t bits = 0;
#ifdef __AVX512BW__
  constexpr int kCount = kWord / sizeof(U);
  for (int i = 0; i < kWord; i += kCount) {
    const __m512i in = _mm512_loadu_si512(block + i);
    uint64_t part;
    if constexpr (sizeof(U) == 1) part = _mm512_cmpneq_epi8_mask(in, _mm512_set1_epi8(value));
    if constexpr (sizeof(U) == 2) part = _mm512_cmpneq_epi16_mask(in, _mm512_set1_epi16(value));
    if constexpr (sizeof(U) == 4) part = _mm512_cmpneq_epi32_mask(in, _mm512_set1_epi32(value));
    if constexpr (sizeof(U) == 8) part = _mm512_cmpneq_epi64_mask(in, _mm512_set1_epi64(value));
    bits |= part << i;
  }
#else
  uint8_t differs[kWord];
  for (int i = 0; i < kWord; ++i) differs[i] = block[i] != value;
#ifdef __SSE2__
  for (int i = 0; i < kWord; i += 16) {
    const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(differs + i));
    bits |= uint64_t(uint32_t(_mm_movemask_epi8(_mm_slli_epi16(in, 7)))) << i;
  }
#else
  for (int i = 0; i < kWord; ++i) bits |= uint64_t(differs[i]) << i;
#endif
#endif
  return bits;
}

// Spreads a word's bits into bytes 0 and 1.
static inline void bits_to_bytes(uint64_t bits, uint8_t* out) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(out, _mm512_maskz_set1_epi8(bits, 1));
#elif defined(__SSE2__)
  const __m128i one_each = _mm_set1_epi64x(0x8040201008040201);
  for (int i = 0; i < kWord; i += 16) {
    __m128i lanes = _mm_cvtsi32_si128(uint16_t(bits >> i));
    lanes = _mm_unpacklo_epi8(lanes, lanes);
    lanes = _mm_unpacklo_epi16(lanes, lanes);
    lanes = _mm_and_si128(_mm_unpacklo_epi32(lanes, lanes), one_each);
    lanes = _mm_and_si128(_mm_cmpeq_epi8(lanes, one_each), _mm_set1_epi8(1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), lanes);
  }
#else
  for (int i = 0; i < kWord; ++i) out[i] = bits >> i & 1;
#endif
}

// A vector of set words.
using Bits = Vector<uint64_t>;

static inline Bits xor3(Bits a, Bits b, Bits c) {
#ifdef __AVX512F__
  return Bits(_mm512_ternarylogic_epi64(__m512i(a), __m512i(b), __m512i(c), 0x96));
#else
  return a ^ b ^ c;
#endif
}

static inline Bits majority(Bits a, Bits b, Bits c) {
#ifdef __AVX512F__
  return Bits(_mm512_ternarylogic_epi64(__m512i(a), __m512i(b), __m512i(c), 0xE8));
#else
  return ((a ^ b) & c) | (a & b);
#endif
}

// A word with the first n bits set, n >= 0.
static inline uint64_t first_bits(int64_t n) {
  return n >= kWord ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
}

static inline int64_t lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }
static inline int64_t highest_bit(uint32_t bits) { return 31 - __builtin_clz(bits); }

// A word of a set, dilated along x; the row has n voxels.
static inline uint64_t dilate(const uint64_t* set, int64_t word, int64_t words, int64_t n) {
  uint64_t bits = set[word] | set[word] << 1 | set[word] >> 1;
  if (word > 0) bits |= set[word - 1] >> (kWord - 1);
  if (word + 1 < words) bits |= set[word + 1] << (kWord - 1);
  return bits & first_bits(n - word * kWord);
}

// Calls body(x, bits) for each group of kGroup voxels from x on that has any in the set.
template <class Body>
static inline void for_groups(uint64_t set, int64_t first, Body&& body) {
  while (set != 0) {
    const int64_t shift = lowest_bit(set) / kGroup * kGroup;
    const uint32_t bits = uint32_t(set >> shift) & kWholeGroup;
    body(first + shift, bits);
    set &= ~(uint64_t(bits) << shift);
  }
}

}  // namespace egcnn::EGCNN_ISA
