// Bit-sliced small integers of 32 voxels: one word holds bit i of all 32, so that an addition takes
// a few logical operations per bit for all of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace egcnn::cuda {

template <int N>
struct BitSliced {
  uint32_t bit[N];

  __device__ __forceinline__ uint32_t operator[](int i) const { return i < N ? bit[i] : 0; }
};

template <int M, int N>
constexpr int kWider = M > N ? M : N;

template <int M, int N>
__device__ __forceinline__ BitSliced<kWider<M, N> + 1> operator+(const BitSliced<M>& a,
                                                                 const BitSliced<N>& b) {
  BitSliced<kWider<M, N> + 1> sum;
  uint32_t carry = 0;
#pragma unroll
  for (int i = 0; i < kWider<M, N>; ++i) {
    sum.bit[i] = a[i] ^ b[i] ^ carry;
    carry = (a[i] & b[i]) | (carry & (a[i] | b[i]));
  }
  sum.bit[kWider<M, N>] = carry;
  return sum;
}

// before + 2 at + after
template <int N>
__device__ __forceinline__ BitSliced<N + 2> smooth(const BitSliced<N>& before,
                                                   const BitSliced<N>& at,
                                                   const BitSliced<N>& after) {
  const BitSliced<N + 1> outer = before + after;
  BitSliced<N> half;
#pragma unroll
  for (int i = 0; i < N; ++i) half.bit[i] = outer.bit[i + 1];
  const BitSliced<N + 1> upper = half + at;
  BitSliced<N + 2> sum;
  sum.bit[0] = outer.bit[0];
#pragma unroll
  for (int i = 0; i <= N; ++i) sum.bit[i + 1] = upper.bit[i];
  return sum;
}

// after - before + 2^N - 1, which is never negative
template <int N>
__device__ __forceinline__ BitSliced<N + 1> difference(const BitSliced<N>& before,
                                                       const BitSliced<N>& after) {
  BitSliced<N> complement;
#pragma unroll
  for (int i = 0; i < N; ++i) complement.bit[i] = ~before.bit[i];
  return after + complement;
}

// The voxels whose integer is not `value`.
template <int N>
__device__ __forceinline__ uint32_t differs(const BitSliced<N>& a, int value) {
  uint32_t result = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) result |= value >> i & 1 ? ~a.bit[i] : a.bit[i];
  return result;
}

// The voxels whose integer is at least `value`.
template <int N>
__device__ __forceinline__ uint32_t at_least(const BitSliced<N>& a, int value) {
  uint32_t result = ~0u;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    result = value >> i & 1 ? result & a.bit[i] : result | a.bit[i];
  }
  return result;
}

// (a - zero)^2, where |a - zero| <= 16.
__device__ __forceinline__ BitSliced<9> squared_distance(const BitSliced<6>& a, int zero) {
  BitSliced<6> minus_zero;
#pragma unroll
  for (int i = 0; i < 6; ++i) minus_zero.bit[i] = -zero >> i & 1 ? ~0u : 0;
  const BitSliced<7> distance = a + minus_zero;  // two's complement in the low six bits
  const BitSliced<1> negative = {distance[5]};
  BitSliced<5> flipped;
#pragma unroll
  for (int i = 0; i < 5; ++i) flipped.bit[i] = distance[i] ^ negative[0];
  const BitSliced<6> x = flipped + negative;
  // x is either 16, whose square is 256, or has four bits; multiply those out.
  const BitSliced<7> squares = {x[0], 0, x[1], 0, x[2], 0, x[3]};
  const BitSliced<7> products = {0,           0,           x[0] & x[1], x[0] & x[2],
                                 x[0] & x[3], x[1] & x[3], x[2] & x[3]};
  const BitSliced<5> product = {0, 0, 0, 0, x[1] & x[2]};
  BitSliced<9> result = squares + products + product;
  result.bit[8] = x[4];
  return result;
}

}  // namespace egcnn::cuda
