// Sets of a row's voxels as bits, 64 to a word, found by comparing rows of bytes.
#pragma once

#include "rows.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace egcnn::EGCNN_ISA {

constexpr int64_t kWord = 64;

// Bit i is whether a[i] and b[i] differ.
template <class T>
static inline uint64_t differing(const T* a, const T* b) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < kWord; ++i) bits |= uint64_t(a[i] != b[i]) << i;
  return bits;
}

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
  return differing<uint8_t>(a, b);
#endif
}

// The first n bits, for n of 0 and more.
static inline uint64_t first_bits(int64_t n) { return n >= kWord ? ~uint64_t(0) : (uint64_t(1) << n) - 1; }

static inline int64_t lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }

// Each voxel of a set and those beside it; n voxels in the row.
static inline uint64_t widened(const uint64_t* set, int64_t word, int64_t words, int64_t n) {
  uint64_t bits = set[word] | set[word] << 1 | set[word] >> 1;
  if (word > 0) bits |= set[word - 1] >> 63;
  if (word + 1 < words) bits |= set[word + 1] << 63;
  return bits & first_bits(n - word * kWord);
}

}  // namespace egcnn::EGCNN_ISA
