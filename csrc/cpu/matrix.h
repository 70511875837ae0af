// Small dense products on blocks that lie in the caches, in the widest vectors of the instruction
// set. A block is a matrix with a row a channel and the voxels along it, `pitch` elements apart.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "vectors.h"

namespace egcnn::EGCNN_ISA {

// One step of a transposition. Lane i is a's lane i where i lacks the bit `step`, else b's lane
// i - step; with `high`, a's lane i + step, else b's lane i.
template <int step, bool high, class Acc, int... i>
static inline Vector<Acc> interleave(Vector<Acc> a, Vector<Acc> b,
                                     std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<Acc>;
#ifdef __clang__
  return __builtin_shufflevector(a, b, (i & step ? i + lanes - (high ? 0 : step)
                                                 : i + (high ? step : 0))...);
#else
  using Lane = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
  typedef Lane Mask __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(
      a, b, Mask{(i & step ? i + lanes - (high ? 0 : step) : i + (high ? step : 0))...});
#endif
}

template <int step, bool high, class Acc>
static inline Vector<Acc> interleave(Vector<Acc> a, Vector<Acc> b) {
  return interleave<step, high, Acc>(a, b, std::make_integer_sequence<int, kLanes<Acc>>());
}

// Turns over a square of vectors.
template <int step, class Acc>
static inline void transpose_square(Vector<Acc>* v) {
  if constexpr (step < kLanes<Acc>) {
    for (int i = 0; i < kLanes<Acc>; ++i) {
      if (i & step) continue;
      const Vector<Acc> a = v[i], b = v[i + step];
      v[i] = interleave<step, false, Acc>(a, b);
      v[i + step] = interleave<step, true, Acc>(a, b);
    }
    transpose_square<2 * step, Acc>(v);
  }
}

// Lane i of the result is the sum of the lanes of v[i].
template <int step, class Acc>
static inline Vector<Acc> sum_each(Vector<Acc>* v) {
  if constexpr (step == kLanes<Acc>) {
    return v[0];
  } else {
    for (int i = 0; i < kLanes<Acc>; i += 2 * step) {
      const Vector<Acc> a = v[i], b = v[i + step];
      v[i] = interleave<step, false, Acc>(a, b) + interleave<step, true, Acc>(a, b);
    }
    return sum_each<2 * step, Acc>(v);
  }
}

// out[j][i] = in[i][j] for i < rows and j < columns, where more than a vector counts as one. Whole
// vectors are read and written, from the first row to the last; lanes beyond `rows` become 0.
template <class Acc>
static inline void transpose(const Acc* in, int64_t in_pitch, int64_t rows, Acc* out,
                             int64_t out_pitch, int64_t columns) {
  constexpr int lanes = kLanes<Acc>;
  Vector<Acc> v[lanes];
  for (int i = 0; i < lanes; ++i) v[i] = i < rows ? load_vector(in + i * in_pitch) : Vector<Acc>{};
  transpose_square<1, Acc>(v);
  for (int j = 0; j < lanes; ++j) {
    if (j < columns) store_vector(out + j * out_pitch, v[j]);
  }
}

// Memory that is wanted soon: the rows of some arrays, for the products to bring as they go, a line
// at a time, so that no product waits for another to come. They bring it into the caches, or where
// `to` is given there: rows of many channels, a power of two apart, would drive one another out.
class Ahead {
 public:
  struct Lines {
    const char* at;
    int64_t count;
    char* to = nullptr;
    const char* next = nullptr;  // the lines in the row behind, which are to be near by its turn

    void bring(int64_t i) const {
      if (to == nullptr) {
        __builtin_prefetch(at + 64 * i, 0, 2);
      } else {
        __builtin_prefetch(next + 64 * i);
        std::memcpy(to + 64 * i, at + 64 * i, 64);
      }
    }
  };

  // `bytes` of each row, whole lines if they have a place to go; steps are bytes, too.
  void add(const void* first, int64_t rows, int64_t step, int64_t bytes, void* to = nullptr,
           int64_t to_step = 0) {
    if (rows == 0 || bytes == 0) return;
    arrays_[size_++] = {static_cast<const char*>(first), rows, step, bytes,
                        static_cast<char*>(to), to_step};
  }

  // All that is left.
  void bring_rest() {
    for (Lines lines = take(kAll); lines.count > 0; lines = take(kAll)) {
      for (int64_t i = 0; i < lines.count; ++i) lines.bring(i);
    }
  }

  // The next lines of a row, at most so many.
  Lines take(int64_t most) {
    if (current_ == size_) return {nullptr, 0};
    Array& array = arrays_[current_];
    const int64_t left = (array.bytes - done_ + 63) / 64;
    Lines lines{array.row + done_, left < most ? left : most};
    if (array.to != nullptr) {
      lines.to = array.to + done_;
      lines.next = (array.rows > 1           ? array.row + array.step
                    : current_ + 1 < size_ ? arrays_[current_ + 1].row
                                             : array.row) +
                   done_;
    }
    done_ += 64 * lines.count;
    if (done_ >= array.bytes) {
      done_ = 0;
      array.row += array.step;
      if (array.to != nullptr) array.to += array.to_step;
      if (--array.rows == 0) ++current_;
    }
    return lines;
  }

 private:
  struct Array {
    const char* row;
    int64_t rows, step, bytes;
    char* to;
    int64_t to_step;
  };
  static constexpr int64_t kAll = int64_t(1) << 60;
  Array arrays_[3];
  int size_ = 0, current_ = 0;
  int64_t done_ = 0;  // bytes of the current row
};

// out (I, J vectors) = a b, or out += a b. `a` has any strides. A line is brought each other step.
template <int I, int J, class Acc>
static inline void multiply_tile(int64_t depth, const Acc* a, int64_t a_row, int64_t a_column,
                                 const Acc* b, int64_t b_pitch, Acc* out, int64_t pitch, bool add,
                                 Ahead::Lines ahead) {
  constexpr int lanes = kLanes<Acc>;
  Vector<Acc> sum[I][J];
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) {
      sum[i][j] = add ? load_vector(out + i * pitch + j * lanes) : Vector<Acc>{};
    }
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vector<Acc> x[J];
    for (int j = 0; j < J; ++j) x[j] = load_vector(b + k * b_pitch + j * lanes);
    for (int i = 0; i < I; ++i) {
      const Acc w = a[i * a_row + k * a_column];
      for (int j = 0; j < J; ++j) sum[i][j] += w * x[j];
    }
  };
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    if (k < 2 * ahead.count) ahead.bring(k / 2);
    step(k);
    step(k + 1);
  }
  if (k < depth) step(k);
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) store_vector(out + i * pitch + j * lanes, sum[i][j]);
  }
}

// Voxels that are worked on at a time in the first-level cache; blocks are filled up to multiples.
template <class Acc>
constexpr int kPanel = 4 * kLanes<Acc>;

// Rows of a tile: as many as the registers hold beside the operands.
constexpr int kTile = kVectorBytes == 64 ? 8 : 4;

// out (rows, a panel) = a b, or out += a b.
template <class Acc>
static inline void multiply(int64_t rows, int64_t depth, const Acc* a, int64_t a_row,
                            int64_t a_column, const Acc* b, int64_t b_pitch, Acc* out,
                            int64_t pitch, bool add, Ahead& ahead) {
  const int64_t tiled = rows / kTile * kTile;
  for (int64_t v = 0; v < kPanel<Acc>; v += kPanel<Acc> / 2) {
    for (int64_t r = 0; r < tiled; r += kTile) {
      multiply_tile<kTile, 2>(depth, a + r * a_row, a_row, a_column, b + v, b_pitch,
                              out + r * pitch + v, pitch, add, ahead.take(depth / 2));
    }
  }
  for (int64_t r = tiled; r < rows; ++r) {
    multiply_tile<1, 4>(depth, a + r * a_row, a_row, a_column, b, b_pitch, out + r * pitch, pitch,
                        add, ahead.take(depth / 2));
  }
}

// Over n voxels, whole vectors.
template <class Acc>
static inline double sum_row(int64_t n, const Acc* x) {
  Vector<Acc> sum[kLanes<Acc>] = {};
  for (int64_t v = 0; v < n; v += 2 * kLanes<Acc>) {
    sum[0] += load_vector(x + v);
    sum[1] += load_vector(x + v + kLanes<Acc>);
  }
  sum[0] = sum_each<1, Acc>(sum);
  return double(sum[0][0]) + sum[0][1];
}

// sums[r][c] += the product of row r of `a` and row c of `b`, over n voxels.
template <int I, class Acc>
static inline void multiply_rows_tile(int64_t columns, int64_t n, const Acc* a, const Acc* b,
                                      int64_t pitch, double* sums, int64_t sums_pitch) {
  constexpr int lanes = kLanes<Acc>, J = lanes / I;
  for (int64_t c = 0; c < columns; c += J) {
    // The last tile may lack rows: it reads the last one again.
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
    const Vector<Acc> total = sum_each<1, Acc>(sum);
    for (int i = 0; i < I; ++i) {
      for (int j = 0; j < J && c + j < columns; ++j) {
        sums[i * sums_pitch + c + j] += total[i * J + j];
      }
    }
  }
}

template <class Acc>
static inline void multiply_rows(int64_t rows, int64_t columns, int64_t n, const Acc* a,
                                 const Acc* b, int64_t pitch, double* sums) {
  constexpr int I = kLanes<Acc> >= 8 ? 4 : 2;
  int64_t r = 0;
  for (; r + I <= rows; r += I) {
    multiply_rows_tile<I>(columns, n, a + r * pitch, b, pitch, sums + r * columns, columns);
  }
  for (; r < rows; ++r) {
    multiply_rows_tile<1>(columns, n, a + r * pitch, b, pitch, sums + r * columns, columns);
  }
}

}  // namespace egcnn::EGCNN_ISA
