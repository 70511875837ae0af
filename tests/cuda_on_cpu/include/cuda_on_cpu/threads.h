// Operations of the threads of a block or a warp: barriers, shuffles, votes, atomics. The arguments
// are CUDA's; the last, which callers omit, is the source location of the call.
#pragma once

#include <cstring>

#include "scheduler.h"

#define CUDA_ON_CPU_SITE(call) const cuda_on_cpu::Site& site = cuda_on_cpu::here(call)

// --- The block ---

inline void __syncthreads(CUDA_ON_CPU_SITE("__syncthreads")) {
  cuda_on_cpu::block_barrier(false, site);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_SITE("__syncthreads_count")) {
  return int(cuda_on_cpu::block_barrier(predicate != 0, site));
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_SITE("__syncthreads_or")) {
  return cuda_on_cpu::block_barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_SITE("__syncthreads_and")) {
  return cuda_on_cpu::block_barrier(predicate == 0, site) == 0;
}

// --- The warp ---

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, CUDA_ON_CPU_SITE("__syncwarp")) {
  cuda_on_cpu::warp_exchange(cuda_on_cpu::Exchange::ballot, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE("__ballot_sync")) {
  return unsigned(
      cuda_on_cpu::warp_exchange(cuda_on_cpu::Exchange::ballot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE("__any_sync")) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE("__all_sync")) {
  return __ballot_sync(mask, predicate, site) == mask;
}

// CUDA has these for unsigned values, and add, min and max for int as well, from sm_80 on.
#if CUDA_ON_CPU_ARCHITECTURE >= 80
#define CUDA_ON_CPU_REDUCE(name, kind, type)                                    \
  inline type name(unsigned mask, type value, CUDA_ON_CPU_SITE(#name)) {        \
    return type(cuda_on_cpu::warp_exchange(cuda_on_cpu::Exchange::kind, mask,   \
                                           uint64_t(int64_t(value)), 0, site)); \
  }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, add, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, min, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, max, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, bit_and, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_or_sync, bit_or, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_xor_sync, bit_xor, unsigned)
CUDA_ON_CPU_REDUCE(__reduce_add_sync, add, int)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, min, int)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, max, int)
#undef CUDA_ON_CPU_REDUCE
#endif

namespace cuda_on_cpu {

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const Site& site) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_exchange(Exchange::shuffle, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The lane read by each kind of shuffle in segments of `width` lanes. A lane whose source lies
// outside of its segment keeps its own value; __shfl_xor_sync may read from earlier segments.
inline unsigned indexed_lane(int source, int width) {
  return (lane() & ~unsigned(width - 1)) | (unsigned(source) & unsigned(width - 1));
}
inline unsigned upper_lane(unsigned delta, int width) {
  return delta <= (lane() & unsigned(width - 1)) ? lane() - delta : lane();
}
inline unsigned lower_lane(unsigned delta, int width) {
  return delta < unsigned(width) - (lane() & unsigned(width - 1)) ? lane() + delta : lane();
}
inline unsigned xor_lane(int bits, int width) {
  const unsigned source = lane() ^ unsigned(bits);
  return source <= (lane() | unsigned(width - 1)) ? source : lane();
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_SHUFFLE(name, type, operand, source_lane)                            \
  inline type name(unsigned mask, type value, operand by, int width = 32,                \
                   CUDA_ON_CPU_SITE(#name)) {                                            \
    return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::source_lane(by, width), site); \
  }
#define CUDA_ON_CPU_SHUFFLES(type)                                  \
  CUDA_ON_CPU_SHUFFLE(__shfl_sync, type, int, indexed_lane)         \
  CUDA_ON_CPU_SHUFFLE(__shfl_up_sync, type, unsigned, upper_lane)   \
  CUDA_ON_CPU_SHUFFLE(__shfl_down_sync, type, unsigned, lower_lane) \
  CUDA_ON_CPU_SHUFFLE(__shfl_xor_sync, type, int, xor_lane)
CUDA_ON_CPU_SHUFFLES(int)
CUDA_ON_CPU_SHUFFLES(unsigned)
CUDA_ON_CPU_SHUFFLES(long)
CUDA_ON_CPU_SHUFFLES(unsigned long)
CUDA_ON_CPU_SHUFFLES(long long)
CUDA_ON_CPU_SHUFFLES(unsigned long long)
CUDA_ON_CPU_SHUFFLES(float)
CUDA_ON_CPU_SHUFFLES(double)
#undef CUDA_ON_CPU_SHUFFLES
#undef CUDA_ON_CPU_SHUFFLE
#undef CUDA_ON_CPU_SITE

// --- Memory ---

inline void __threadfence_block() { __asm__ volatile("" ::: "memory"); }
inline void __threadfence() { __asm__ volatile("" ::: "memory"); }

// Relaxed, as in CUDA: an atomic orders no other access, and ThreadSanitizer is told so.
#define CUDA_ON_CPU_ATOMICS(type)                                                                 \
  inline type atomicAdd(type* at, type value) {                                                   \
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);                                       \
  }                                                                                               \
  inline type atomicAnd(type* at, type value) {                                                   \
    return __atomic_fetch_and(at, value, __ATOMIC_RELAXED);                                       \
  }                                                                                               \
  inline type atomicOr(type* at, type value) {                                                    \
    return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);                                        \
  }                                                                                               \
  inline type atomicXor(type* at, type value) {                                                   \
    return __atomic_fetch_xor(at, value, __ATOMIC_RELAXED);                                       \
  }                                                                                               \
  inline type atomicExch(type* at, type value) {                                                  \
    return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);                                      \
  }                                                                                               \
  inline type atomicCAS(type* at, type expected, type value) {                                    \
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    return expected;                                                                              \
  }                                                                                               \
  inline type atomicMax(type* at, type value) {                                                   \
    type before = __atomic_load_n(at, __ATOMIC_RELAXED);                                          \
    while (before < value && !__atomic_compare_exchange_n(at, &before, value, false,              \
                                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {  \
    }                                                                                             \
    return before;                                                                                \
  }                                                                                               \
  inline type atomicMin(type* at, type value) {                                                   \
    type before = __atomic_load_n(at, __ATOMIC_RELAXED);                                          \
    while (value < before && !__atomic_compare_exchange_n(at, &before, value, false,              \
                                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {  \
    }                                                                                             \
    return before;                                                                                \
  }
CUDA_ON_CPU_ATOMICS(int)
CUDA_ON_CPU_ATOMICS(unsigned)
CUDA_ON_CPU_ATOMICS(unsigned long long)
#undef CUDA_ON_CPU_ATOMICS
