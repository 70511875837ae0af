// The loops over the elements of a row. What belongs to an element's channel is looked up in
// patterns of `period` values, which repeat along the row. A loop goes through a row in columns of
// a few vectors, so that a column's patterns and sums stay in registers.
#pragma once

#include <cstdint>

#include "../simd/convert.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/vectors.h"

namespace egcnn::EGCNN_ISA {

constexpr int kColumnVectors = 4;

template <class Acc>
constexpr int64_t kColumn = kColumnVectors * kLanes<Acc>;

// The column of a pattern.
template <class Acc>
struct Column {
  Vector<Acc> vectors[kColumnVectors];

  Column() : vectors{} {}
  explicit Column(const Acc* pattern) {
    for (int v = 0; v < kColumnVectors; ++v) vectors[v] = load_vector(pattern + v * kLanes<Acc>);
  }
  void store(Acc* pattern) const {
    for (int v = 0; v < kColumnVectors; ++v) store_vector(pattern + v * kLanes<Acc>, vectors[v]);
  }
};

// Calls whole(i, v) for each vector v of a column, at element i of the row, then done(), then
// rest(i, slot) for each element of the column that the row ends in.
template <class Acc, class Whole, class Done, class Rest>
static inline void for_column(int64_t column, int64_t n, int64_t period, Whole&& whole, Done&& done,
                              Rest&& rest) {
  int64_t i = column;
  for (; i + kColumn<Acc> <= n; i += period) {
#pragma GCC unroll 4
    for (int v = 0; v < kColumnVectors; ++v) whole(i + v * kLanes<Acc>, v);
  }
  done();
  for (int64_t slot = column; i < n; ++i, ++slot) rest(i, slot);
}

// Sets each slot of the patterns to the sums of x - pivot and of its square.
template <class T, class Acc>
EGCNN_OUT_OF_LINE void sum_moments(const T* __restrict x, int64_t n, int64_t period,
                                   const Acc* __restrict pivots, Acc* __restrict sums,
                                   Acc* __restrict squares) {
  for (int64_t column = 0; column < period; column += kColumn<Acc>) {
    const Column<Acc> pivot(pivots + column);
    Column<Acc> sum, square;
    for_column<Acc>(
        column, n, period,
        [&](int64_t i, int v) {
          const Vector<Acc> d = load_as<Acc>(x + i) - pivot.vectors[v];
          sum.vectors[v] += d;
          square.vectors[v] += d * d;
        },
        [&] {
          sum.store(sums + column);
          square.store(squares + column);
        },
        [&](int64_t i, int64_t slot) {
          const Acc d = widen<Acc>(x[i]) - pivots[slot];
          sums[slot] += d;
          squares[slot] += d * d;
        });
  }
}

// What an element's channel gives: y = (x - mean) * scale + bias, and for the gradient of x
// g * scale + (x - mean) * slope + offset, g being the gradient before the ReLU.
template <class Acc>
struct NormPatterns {
  const Acc *mean, *scale, *bias;
  const Acc *slope, *offset;
};

// y < 0 instead of y > 0, and below y <= 0: NaN stays NaN.
template <class T, class Acc>
EGCNN_OUT_OF_LINE void normalize(const T* __restrict x, int64_t n, int64_t period,
                                 const NormPatterns<Acc>& p, T* __restrict out) {
  for (int64_t column = 0; column < period; column += kColumn<Acc>) {
    const Column<Acc> mean(p.mean + column), scale(p.scale + column), bias(p.bias + column);
    for_column<Acc>(
        column, n, period,
        [&](int64_t i, int v) {
          const Vector<Acc> d = load_as<Acc>(x + i) - mean.vectors[v];
          const Vector<Acc> y = d * scale.vectors[v] + bias.vectors[v];
          store_as<T, Acc>(out + i, y < 0 ? Vector<Acc>{} : y);
        },
        [] {},
        [&](int64_t i, int64_t slot) {
          const Acc y = (widen<Acc>(x[i]) - p.mean[slot]) * p.scale[slot] + p.bias[slot];
          out[i] = narrow(y < 0 ? 0 : y, out);
        });
  }
}

// Sets each slot to the sums of g and of g * (x - mean).
template <class T, class Acc>
EGCNN_OUT_OF_LINE void sum_gradients(const T* __restrict x, const T* __restrict grad, int64_t n,
                                     int64_t period, const NormPatterns<Acc>& p,
                                     Acc* __restrict sums, Acc* __restrict products) {
  for (int64_t column = 0; column < period; column += kColumn<Acc>) {
    const Column<Acc> mean(p.mean + column), scale(p.scale + column), bias(p.bias + column);
    Column<Acc> sum, product;
    for_column<Acc>(
        column, n, period,
        [&](int64_t i, int v) {
          const Vector<Acc> d = load_as<Acc>(x + i) - mean.vectors[v];
          const Vector<Acc> y = d * scale.vectors[v] + bias.vectors[v];
          const Vector<Acc> g = y <= 0 ? Vector<Acc>{} : load_as<Acc>(grad + i);
          sum.vectors[v] += g;
          product.vectors[v] += g * d;
        },
        [&] {
          sum.store(sums + column);
          product.store(products + column);
        },
        [&](int64_t i, int64_t slot) {
          const Acc d = widen<Acc>(x[i]) - p.mean[slot];
          const Acc g = d * p.scale[slot] + p.bias[slot] <= 0 ? 0 : widen<Acc>(grad[i]);
          sums[slot] += g;
          products[slot] += g * d;
        });
  }
}

template <class T, class Acc>
EGCNN_OUT_OF_LINE void normalize_backward(const T* __restrict x, const T* __restrict grad,
                                          int64_t n, int64_t period, const NormPatterns<Acc>& p,
                                          T* __restrict out) {
  for (int64_t column = 0; column < period; column += kColumn<Acc>) {
    const Column<Acc> mean(p.mean + column), scale(p.scale + column), bias(p.bias + column);
    const Column<Acc> slope(p.slope + column), offset(p.offset + column);
    for_column<Acc>(
        column, n, period,
        [&](int64_t i, int v) {
          const Vector<Acc> d = load_as<Acc>(x + i) - mean.vectors[v];
          const Vector<Acc> y = d * scale.vectors[v] + bias.vectors[v];
          const Vector<Acc> g = y <= 0 ? Vector<Acc>{} : load_as<Acc>(grad + i);
          const Vector<Acc> rest = d * slope.vectors[v] + offset.vectors[v];
          store_as<T, Acc>(out + i, g * scale.vectors[v] + rest);
        },
        [] {},
        [&](int64_t i, int64_t slot) {
          const Acc d = widen<Acc>(x[i]) - p.mean[slot];
          const Acc g = d * p.scale[slot] + p.bias[slot] <= 0 ? 0 : widen<Acc>(grad[i]);
          out[i] = narrow(g * p.scale[slot] + (d * p.slope[slot] + p.offset[slot]), out);
        });
  }
}

}  // namespace egcnn::EGCNN_ISA
