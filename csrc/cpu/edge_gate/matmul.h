// Matmuls of small, cached matrices in the instruction set's widest vectors. A block is a matrix
// with a row of voxels per channel, `pitch` elements apart.
#pragma once

#include <cstdint>

#include "../simd/vectors.h"
#include "prefetch.h"

namespace egcnn::EGCNN_ISA {

// Whether the left factor of a matmul is a or its transpose, and whether the result is added.
enum class Left { kAsIs, kTransposed };
enum class Result { kStored, kAdded };

// out (I, J vectors) = a b, or a^T b, or out += that. Prefetches a line every second step.
template <Left kLeft, Result kResult, int I, int J, class Acc>
static inline void matmul_tile(int64_t depth, const Acc* a, int64_t a_pitch, const Acc* b,
                               int64_t b_pitch, Acc* out, int64_t pitch,
                               PrefetchQueue::Lines lines) {
  constexpr int lanes = kLanes<Acc>;
  Vector<Acc> sum[I][J];
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) {
      sum[i][j] =
          kResult == Result::kAdded ? load_vector(out + i * pitch + j * lanes) : Vector<Acc>{};
    }
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vector<Acc> x[J];
    for (int j = 0; j < J; ++j) x[j] = load_vector(b + k * b_pitch + j * lanes);
    for (int i = 0; i < I; ++i) {
      const Acc w = kLeft == Left::kTransposed ? a[k * a_pitch + i] : a[i * a_pitch + k];
      for (int j = 0; j < J; ++j) sum[i][j] += w * x[j];
    }
  };
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    if (k < 2 * lines.count) lines.prefetch(k / 2);
    step(k);
    step(k + 1);
  }
  if (k < depth) step(k);
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) store_vector(out + i * pitch + j * lanes, sum[i][j]);
  }
}

// Voxels processed at a time in the first-level cache; blocks are padded to multiples of it.
template <class Acc>
constexpr int kPanel = 4 * kLanes<Acc>;

// Rows of a tile: as many as fit in the registers together with the operands.
constexpr int kTile = kVectorBytes == 64 ? 8 : 4;

// out (rows, a panel) = a b, or a^T b, or out += that. Always inlined: called, it makes the channel
// gate's backward pass 5 % slower.
template <Left kLeft, Result kResult, class Acc>
__attribute__((always_inline)) static inline void matmul(int64_t rows, int64_t depth, const Acc* a,
                                                         int64_t a_pitch, const Acc* b,
                                                         int64_t b_pitch, Acc* out, int64_t pitch,
                                                         PrefetchQueue& queue) {
  const int64_t tiled = rows / kTile * kTile, a_row = kLeft == Left::kTransposed ? 1 : a_pitch;
  for (int64_t v = 0; v < kPanel<Acc>; v += kPanel<Acc> / 2) {
    for (int64_t r = 0; r < tiled; r += kTile) {
      matmul_tile<kLeft, kResult, kTile, 2>(depth, a + r * a_row, a_pitch, b + v, b_pitch,
                                            out + r * pitch + v, pitch, queue.take(depth / 2));
    }
  }
  for (int64_t r = tiled; r < rows; ++r) {
    matmul_tile<kLeft, kResult, 1, 4>(depth, a + r * a_row, a_pitch, b, b_pitch, out + r * pitch,
                                      pitch, queue.take(depth / 2));
  }
}

// The sum of n voxels, a multiple of two vectors.
template <class Acc>
static inline double sum_row(int64_t n, const Acc* x) {
  Vector<Acc> sum[kLanes<Acc>] = {};
  for (int64_t v = 0; v < n; v += 2 * kLanes<Acc>) {
    sum[0] += load_vector(x + v);
    sum[1] += load_vector(x + v + kLanes<Acc>);
  }
  sum[0] = horizontal_sums<1, Acc>(sum);
  return double(sum[0][0]) + sum[0][1];
}

// sums (rows, columns) += a b^T, where a and b have a row of n voxels per channel.
template <int I, class Acc>
static inline void matmul_transposed_tile(int64_t columns, int64_t n, const Acc* a, const Acc* b,
                                          int64_t pitch, double* sums, int64_t sums_pitch) {
  constexpr int lanes = kLanes<Acc>, J = lanes / I;
  for (int64_t c = 0; c < columns; c += J) {
    // If the last tile is short of rows, it reads the last row again.
    const Acc* row[J];
    for (int j = 0; j < J; ++j) row[j] = b + (c + j < columns ? c + j : columns - 1) * pitch;
    Vector<Acc> sum[lanes] = {};
    for (int64_t v = 0; v < n; v += lanes) {
      Vector<Acc> x[I];
      for (int i = 0; i < I; ++i) x[i] = load_vector(a + i * pitch + v);
      for (int j = 0; j < J; ++j) {
        const Vector<Acc> y = load_vector(row[j] + v);
        for (int i = 0; i < I; ++i) sum[i * J + j] += x[i] * y;
      }
    }
    const Vector<Acc> total = horizontal_sums<1, Acc>(sum);
    for (int i = 0; i < I; ++i) {
      for (int j = 0; j < J && c + j < columns; ++j) {
        sums[i * sums_pitch + c + j] += total[i * J + j];
      }
    }
  }
}

template <class Acc>
static inline void matmul_transposed(int64_t rows, int64_t columns, int64_t n, const Acc* a,
                                     const Acc* b, int64_t pitch, double* sums) {
  constexpr int I = kLanes<Acc> >= 8 ? 4 : 2;
  int64_t r = 0;
  for (; r + I <= rows; r += I) {
    matmul_transposed_tile<I>(columns, n, a + r * pitch, b, pitch, sums + r * columns, columns);
  }
  for (; r < rows; ++r) {
    matmul_transposed_tile<1>(columns, n, a + r * pitch, b, pitch, sums + r * columns, columns);
  }
}

}  // namespace egcnn::EGCNN_ISA
