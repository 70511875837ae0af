// The tensor core. The PTX ISA says which lane holds which element; it leaves the arithmetic open.
// What is known of that comes from experiments on the hardware:
//
//   Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ CS, 2021
//   Xie, Wang, Yang, Yang, "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix
//   Cores", arXiv:2511.10909, 2025
//
// Products are exact. A sum of some products and of c is made in fixed point: every term is shifted
// to the largest exponent among them (for a product that of its factors together, whether or not it
// reaches 2) and cut off after 24 fraction bits, 25 since Hopper. The sum, which is exact then,
// is cut off to float32. Turing, and Hopper and later, sum all eight products of m16n8k8 at once;
// Ampere and Ada sum four, then the other four. Subnormal numbers count in full.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

namespace cuda_on_cpu {
namespace {

constexpr int kArchitecture = CUDA_ON_CPU_ARCHITECTURE;
constexpr int kRows = 16, kColumns = 8, kSummed = 8;
constexpr int kSumBits = kArchitecture >= 90 ? 25 : 24;
constexpr int kAtOnce = kArchitecture >= 80 && kArchitecture < 90 ? 4 : 8;
constexpr int kLanes = 32;

// --- Arithmetic ---

constexpr int kFraction = 23;      // bits of a significand after the point
constexpr int kZero = -1000;       // stands for the exponent of 0
constexpr int kSpecial = 1 << 20;  // and of infinity and NaN

struct Number {
  int64_t significand;  // times 2^-kFraction; below 2 in magnitude
  int exponent;
  float value;
};

Number decode(uint32_t bits) {
  const int64_t fraction = bits & 0x7FFFFF;
  const int exponent = int(bits >> 23 & 0xFF);
  Number x;
  x.value = __uint_as_float(bits);
  x.significand = exponent == 0 ? fraction : fraction | 0x800000;
  x.exponent = std::max(exponent, 1) - 127;
  if (x.significand == 0) x.exponent = kZero;
  if (exponent == 255) x.exponent = kSpecial;
  if (bits >> 31) x.significand = -x.significand;
  return x;
}

// Ignores the last 13 bits.
Number decode_tf32(uint32_t bits) { return decode(bits & 0xFFFFE000u); }

// A subnormal number keeps the lowest exponent of its format.
Number decode_f16(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 0x1F;
  const uint32_t fraction = (bits & 0x3FF) << 13;
  if (exponent == 31) return decode(sign | 0x7F800000 | fraction);
  if (exponent > 0) return decode(sign | (exponent + 112) << 23 | fraction);
  Number x = decode(sign);
  x.value = std::ldexp(sign ? -float(fraction) : float(fraction), -14 - kFraction);
  x.significand = sign ? -int64_t(fraction) : int64_t(fraction);
  if (fraction != 0) x.exponent = -14;
  return x;
}

// The sum times 2^(largest exponent - kSumBits), cut off to float32.
float to_float(int64_t sum, int exponent) {
  if (sum == 0) return 0;
  uint64_t magnitude = uint64_t(sum < 0 ? -sum : sum);
  int unit = exponent - kSumBits;
  const int last = std::max(unit + 63 - __builtin_clzll(magnitude) - kFraction, -149);
  if (last > unit) {
    magnitude = last - unit > 63 ? 0 : magnitude >> (last - unit);
    unit = last;
  }
  return std::ldexp(sum < 0 ? -float(magnitude) : float(magnitude), unit);
}

// A significand whose exponent is `below` that of the sum, with so many bits after the point.
int64_t cut_off(int64_t significand, int fraction, int below) {
  const int shift = std::min(fraction + below - kSumBits, 63);
  const int64_t magnitude = significand < 0 ? -significand : significand;
  const int64_t kept = shift < 0 ? magnitude << -shift : magnitude >> shift;
  return significand < 0 ? -kept : kept;
}

// c + a[0] b[0] + ... + a[kAtOnce - 1] b[kAtOnce - 1]
float fused_sum(const Number* a, const Number* b, float c) {
  const Number start = decode(__float_as_uint(c));
  int largest = start.exponent;
  for (int k = 0; k < kAtOnce; ++k) largest = std::max(largest, a[k].exponent + b[k].exponent);
  if (largest > kSpecial / 2) {
    double sum = c;
    for (int k = 0; k < kAtOnce; ++k) sum += double(a[k].value) * b[k].value;
    return std::isnan(sum) ? __uint_as_float(0x7FFFFFFF) : float(sum);
  }
  int64_t sum = cut_off(start.significand, kFraction, largest - start.exponent);
  for (int k = 0; k < kAtOnce; ++k) {
    sum += cut_off(a[k].significand * b[k].significand, 2 * kFraction,
                   largest - a[k].exponent - b[k].exponent);
  }
  return to_float(sum, largest);
}

struct Matrices {
  Number a[kRows][kSummed], b[kColumns][kSummed];  // b transposed
  float d[kRows][kColumns];

  void multiply() {
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kColumns; ++column) {
        for (int k = 0; k < kSummed; k += kAtOnce) {
          d[row][column] = fused_sum(a[row] + k, b[column] + k, d[row][column]);
        }
      }
    }
  }
};

// --- Fragments, in the words of the PTX ISA: groupID = lane / 4, threadID_in_group = lane % 4 ---

struct Operands {
  uint32_t a[4], b[2];
  float* d[4];
};

// d has the same layout for all types.
void with_sums(Matrices& m, void* const* operands, bool read) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const Operands& mine = *static_cast<const Operands*>(operands[lane]);
    for (int i = 0; i < 4; ++i) {
      float& element = m.d[lane / 4 + (i < 2 ? 0 : 8)][lane % 4 * 2 + i % 2];
      (read ? element : *mine.d[i]) = read ? *mine.d[i] : element;
    }
  }
}

template <class Gather>
void multiply(void* const* operands, Gather&& gather) {
  Matrices m;
  for (int lane = 0; lane < kLanes; ++lane) {
    gather(m, lane / 4, lane % 4, *static_cast<const Operands*>(operands[lane]));
  }
  with_sums(m, operands, true);
  m.multiply();
  with_sums(m, operands, false);
}

void multiply_tf32(void* const* operands) {
  multiply(operands, [](Matrices& m, int group, int thread, const Operands& mine) {
    for (int i = 0; i < 4; ++i) {
      m.a[group + i % 2 * 8][thread + i / 2 * 4] = decode_tf32(mine.a[i]);
    }
    for (int i = 0; i < 2; ++i) m.b[group][thread + i * 4] = decode_tf32(mine.b[i]);
  });
}

void multiply_f16(void* const* operands) {
  multiply(operands, [](Matrices& m, int group, int thread, const Operands& mine) {
    const auto half = [](const uint32_t* words, int i) {
      return decode_f16(words[i / 2] >> i % 2 * 16 & 0xFFFF);
    };
    for (int i = 0; i < 4; ++i) {
      m.a[group + (i < 2 ? 0 : 8)][thread * 2 + i % 2] = half(mine.a, i);
    }
    for (int i = 0; i < 2; ++i) m.b[group][thread * 2 + i] = half(mine.b, i);
  });
}

}  // namespace

namespace ptx {

void mma_m16n8k8_tf32(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],
                      const uint32_t (&b)[2], const Site& site) {
  if (kArchitecture < 80) fail("the instruction needs sm_80 or later", site);
  Operands operands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {&d0, &d1, &d2, &d3}};
  warp_work(multiply_tf32, &operands, site);
}

void mma_m16n8k8_f16(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[2], uint32_t b,
                     const Site& site) {
  if (kArchitecture < 75) fail("the instruction needs sm_75 or later", site);
  Operands operands{{a[0], a[1]}, {b}, {&d0, &d1, &d2, &d3}};
  warp_work(multiply_f16, &operands, site);
}

}  // namespace ptx
}  // namespace cuda_on_cpu
