// CUDA's bit, byte and floating-point functions.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "scheduler.h"
#include "vectors.h"

// --- Bits ---

namespace cuda_on_cpu {
template <class To, class From>
To same_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
}  // namespace cuda_on_cpu

inline int __float_as_int(float x) { return cuda_on_cpu::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::same_bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0F0F0F0Fu) | (x & 0x0F0F0F0Fu) << 4;
  return __builtin_bswap32(x);
}
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)((unsigned __int128)x * y >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift < 32 ? shift : 32)) >> 32);
}

// --- Bytes: byte i is bits 8 i to 8 i + 7 ---

namespace cuda_on_cpu {
inline unsigned byte(uint64_t x, int i) { return unsigned(x >> (8 * i)) & 0xFFu; }

template <class Function>
unsigned for_bytes(unsigned a, unsigned b, Function&& function) {
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= (unsigned(function(byte(a, i), byte(b, i))) & 0xFFu) << 8 * i;
  }
  return result;
}
}  // namespace cuda_on_cpu

// Each selector names one of eight bytes, `low` first; its highest bit spreads that byte's sign.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> (4 * i);
    const unsigned value = cuda_on_cpu::byte(uint64_t(high) << 32 | low, selector & 7);
    const unsigned sign = value & 0x80u ? 0xFFu : 0u;
    result |= (selector & 8 ? sign : value) << 8 * i;
  }
  return result;
}

#define CUDA_ON_CPU_BYTES(name, expression)                                                 \
  inline unsigned name(unsigned a, unsigned b) {                                            \
    return cuda_on_cpu::for_bytes(a, b, [](unsigned x, unsigned y) { return expression; }); \
  }
CUDA_ON_CPU_BYTES(__vadd4, x + y)
CUDA_ON_CPU_BYTES(__vsub4, x - y)
CUDA_ON_CPU_BYTES(__vabsdiffu4, x > y ? x - y : y - x)
CUDA_ON_CPU_BYTES(__vavgu4, (x + y + 1) / 2)
CUDA_ON_CPU_BYTES(__vhaddu4, (x + y) / 2)
CUDA_ON_CPU_BYTES(__vmaxu4, x > y ? x : y)
CUDA_ON_CPU_BYTES(__vminu4, x < y ? x : y)
CUDA_ON_CPU_BYTES(__vcmpeq4, x == y ? 0xFFu : 0u)
CUDA_ON_CPU_BYTES(__vcmpne4, x != y ? 0xFFu : 0u)
CUDA_ON_CPU_BYTES(__vcmpgtu4, x > y ? 0xFFu : 0u)
CUDA_ON_CPU_BYTES(__vcmpgeu4, x >= y ? 0xFFu : 0u)
CUDA_ON_CPU_BYTES(__vseteq4, x == y ? 1u : 0u)
CUDA_ON_CPU_BYTES(__vsetne4, x != y ? 1u : 0u)
CUDA_ON_CPU_BYTES(__vsetgtu4, x > y ? 1u : 0u)
#undef CUDA_ON_CPU_BYTES

inline unsigned __vsadu4(unsigned a, unsigned b) {
  const unsigned d = __vabsdiffu4(a, b);
  return (d & 0xFF) + (d >> 8 & 0xFF) + (d >> 16 & 0xFF) + (d >> 24);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += cuda_on_cpu::byte(a, i) * cuda_on_cpu::byte(b, i);
  return c;
}
inline int __dp4a(int a, int b, int c) {
  unsigned sum = unsigned(c);
  for (int i = 0; i < 4; ++i) {
    sum += unsigned(int8_t(cuda_on_cpu::byte(unsigned(a), i)) *
                    int8_t(cuda_on_cpu::byte(unsigned(b), i)));
  }
  return int(sum);
}

// --- Floating point. The approximate functions are exact here. ---

inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN: 0
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }

#define CUDA_ON_CPU_MIN_MAX(type)                              \
  constexpr type min(type x, type y) { return y < x ? y : x; } \
  constexpr type max(type x, type y) { return x < y ? y : x; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
#undef CUDA_ON_CPU_MIN_MAX
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

// --- Loads and stores with a cache hint ---

namespace cuda_on_cpu {
// A misaligned access faults on a GPU, but not on x86.
template <class T>
T* aligned(T* address, const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) {
    fail("the address is not aligned to the size of the access", site);
  }
  return address;
}
}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_LOAD(name, type)                                                             \
  inline type name(const type* from, const cuda_on_cpu::Site& site = cuda_on_cpu::here(#name)) { \
    return *cuda_on_cpu::aligned(from, site);                                                    \
  }
#define CUDA_ON_CPU_STORE(name, type)                                          \
  inline void name(type* to, type value,                                       \
                   const cuda_on_cpu::Site& site = cuda_on_cpu::here(#name)) { \
    *cuda_on_cpu::aligned(to, site) = value;                                   \
  }
#define CUDA_ON_CPU_ACCESS(type)  \
  CUDA_ON_CPU_LOAD(__ldg, type)   \
  CUDA_ON_CPU_LOAD(__ldca, type)  \
  CUDA_ON_CPU_LOAD(__ldcg, type)  \
  CUDA_ON_CPU_LOAD(__ldcs, type)  \
  CUDA_ON_CPU_STORE(__stwb, type) \
  CUDA_ON_CPU_STORE(__stcg, type) \
  CUDA_ON_CPU_STORE(__stcs, type)
CUDA_ON_CPU_ACCESS(char)
CUDA_ON_CPU_ACCESS(signed char)
CUDA_ON_CPU_ACCESS(unsigned char)
CUDA_ON_CPU_ACCESS(short)
CUDA_ON_CPU_ACCESS(unsigned short)
CUDA_ON_CPU_ACCESS(int)
CUDA_ON_CPU_ACCESS(unsigned)
CUDA_ON_CPU_ACCESS(long)
CUDA_ON_CPU_ACCESS(unsigned long)
CUDA_ON_CPU_ACCESS(long long)
CUDA_ON_CPU_ACCESS(unsigned long long)
CUDA_ON_CPU_ACCESS(float)
CUDA_ON_CPU_ACCESS(double)
CUDA_ON_CPU_ACCESS(char2)
CUDA_ON_CPU_ACCESS(char4)
CUDA_ON_CPU_ACCESS(uchar2)
CUDA_ON_CPU_ACCESS(uchar4)
CUDA_ON_CPU_ACCESS(short2)
CUDA_ON_CPU_ACCESS(short4)
CUDA_ON_CPU_ACCESS(ushort2)
CUDA_ON_CPU_ACCESS(ushort4)
CUDA_ON_CPU_ACCESS(int2)
CUDA_ON_CPU_ACCESS(int4)
CUDA_ON_CPU_ACCESS(uint2)
CUDA_ON_CPU_ACCESS(uint4)
CUDA_ON_CPU_ACCESS(longlong2)
CUDA_ON_CPU_ACCESS(ulonglong2)
CUDA_ON_CPU_ACCESS(float2)
CUDA_ON_CPU_ACCESS(float4)
CUDA_ON_CPU_ACCESS(double2)
#undef CUDA_ON_CPU_ACCESS
#undef CUDA_ON_CPU_STORE
#undef CUDA_ON_CPU_LOAD
