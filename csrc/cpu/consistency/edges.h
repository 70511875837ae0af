// The edges of a class in a plane, packed: gradients of the sample and the truth, mismatches of
// their magnitudes, and the mismatches' gradients.
#pragma once

#include <cstdint>

#include "../../math/sobel.h"
#include "../simd/bits.h"
#include "../simd/compress.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

constexpr int64_t kEdges = 512;  // edges packed before they are compared

// Smooths and differences a row of three planes along z. Borders are replicated.
template <class T, class V, class From>
static inline void combine_planes(const T* before, const T* at, const T* after, int64_t width,
                                  From&& from, V* __restrict smooth, V* __restrict differ) {
  for (int64_t block = 0; block < width; block += kWord) {
#pragma omp simd
    for (int64_t x = block; x < block + kWord; ++x) {
      const V a = from(before[x]), b = from(at[x]), c = from(after[x]);
      smooth[x] = V(math::smooth(a, b, c));
      differ[x] = V(math::difference(a, c));
    }
  }
  for (V* row : {smooth, differ}) row[-1] = row[0], row[width] = row[width - 1];
}

// The gradient (z, y, x) at a word's voxels, with room for overshooting vectors.
template <class V>
using WordGradient = V[3][kWord + kGroup];

// The unscaled gradient at a word's voxels, from three combined rows.
template <class V>
__attribute__((always_inline)) static inline void sobel_word(const V* smooth, const V* differ,
                                                             int64_t before, int64_t at,
                                                             int64_t after,
                                                             WordGradient<V>& gradient) {
  const V *s0 = smooth + before, *s1 = smooth + at, *s2 = smooth + after;
  const V *d0 = differ + before, *d1 = differ + at, *d2 = differ + after;
#pragma omp simd
  for (int64_t x = 0; x < kWord; ++x) {
    const auto of_z = [&](int64_t i) { return V(math::smooth(d0[i], d1[i], d2[i])); };
    const auto of_y = [&](int64_t i) { return V(math::difference(s0[i], s2[i])); };
    const auto of_x = [&](int64_t i) { return V(math::smooth(s0[i], s1[i], s2[i])); };
    gradient[0][x] = V(math::smooth(of_z(x - 1), of_z(x), of_z(x + 1)));
    gradient[1][x] = V(math::smooth(of_y(x - 1), of_y(x), of_y(x + 1)));
    gradient[2][x] = V(math::difference(of_x(x - 1), of_x(x + 1)));
  }
}

template <class Acc>
class EdgeList {
 public:
  explicit EdgeList(Arena& arena) {
    arena.take(group_, kEdges);
    arena.take(row_, kEdges);
    arena.take(sample_, 3 * kEdges);
    arena.take(truth_, 3 * kEdges);
  }

  bool room_for_word() const { return edges_ + kWord + kGroup <= kEdges; }
  void clear() { edges_ = groups_ = 0; }

  // Adds the edges among the word's voxels from x on, in groups of 14, so that their footprint
  // fills one 16-lane vector.
  template <class V>
  void add(int64_t y, int64_t x, uint64_t set, const WordGradient<int8_t>& truth,
           const WordGradient<V>& sample) {
    while (set != 0) {
      const int64_t at = lowest_bit(set);
      const uint32_t bits = uint32_t(set >> at) & (kWholeGroup >> 2);
      set &= ~(uint64_t(bits) << at);
      for (int k = 0; k < 3; ++k) {
        compress(truth[k] + at, bits, truth_ + k * kEdges + edges_);
        compress(sample[k] + at, bits, sample_ + k * kEdges + edges_);
      }
      group_[groups_] = {int32_t(x + at), int32_t(edges_), bits};
      row_[groups_++] = int32_t(y);
      edges_ += __builtin_popcount(bits);
    }
  }

  // The sum of the mismatches.
  double sum() const {
    const Acc *gz = sample_, *gy = gz + kEdges, *gx = gy + kEdges;
    const Acc *tz = truth_, *ty = tz + kEdges, *tx = ty + kEdges;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < edges_; ++i) {
      const Acc mismatch =
          math::sobel_magnitude(gz[i], gy[i], gx[i]) - math::sobel_magnitude(tz[i], ty[i], tx[i]);
      sum += double(mismatch < 0 ? -mismatch : mismatch);
    }
    return sum;
  }

  // Replaces the sample's spatial gradients by the mismatches' gradients with respect to them,
  // times `scale`.
  void differentiate(Acc scale) {
    Acc *gz = sample_, *gy = gz + kEdges, *gx = gy + kEdges;
    const Acc *tz = truth_, *ty = tz + kEdges, *tx = ty + kEdges;
#pragma omp simd
    for (int64_t i = 0; i < edges_; ++i) {
      const Acc magnitude = math::sobel_magnitude(gz[i], gy[i], gx[i]);
      const Acc mismatch = magnitude - math::sobel_magnitude(tz[i], ty[i], tx[i]);
      const Acc sign = Acc(mismatch > 0) - Acc(mismatch < 0);
      const Acc slope = scale * sign * math::sobel_slope(magnitude);
      gz[i] *= slope;
      gy[i] *= slope;
      gx[i] *= slope;
    }
  }

  // Scatters these to the neighbouring voxels, whose rows are row_of(0 to 2 along z, 0 to 2 along
  // y, y).
  template <class RowOf>
  void scatter(int64_t width, RowOf&& row_of) const {
    for (int64_t i = 0; i < groups_; ++i) {
      const Group& group = group_[i];
      Acc of_z[kGroup], of_y[kGroup], of_x[kGroup];
      transpose_along_x(group, width, of_z, of_y, of_x);
      for (int j = 0; j < 3; ++j) {
        const Acc smooth = j == 1 ? 2 : 1, differ = Acc(j - 1);
        Acc* out[3];
        for (int k = 0; k < 3; ++k) out[k] = row_of(k, j, row_[i]) + group.first - 1;
        Acc in_plane[kGroup], through[kGroup];
#pragma omp simd
        for (int64_t k = 0; k < kGroup; ++k) {
          in_plane[k] = differ * of_y[k] + smooth * of_x[k];
          through[k] = smooth * of_z[k];
        }
#pragma omp simd
        for (int64_t k = 0; k < kGroup; ++k) out[0][k] += in_plane[k] - through[k];
#pragma omp simd
        for (int64_t k = 0; k < kGroup; ++k) out[1][k] += 2 * in_plane[k];
#pragma omp simd
        for (int64_t k = 0; k < kGroup; ++k) out[2][k] += in_plane[k] + through[k];
      }
    }
  }

 private:
  Group* group_;          // `first` counts from the row's start
  int32_t* row_;          // of each group
  Acc *sample_, *truth_;  // (3, kEdges)
  int64_t edges_ = 0, groups_ = 0;

  // The transposed filters along x, of a group's edges, for the voxels from x - 1 on.
  __attribute__((always_inline)) void transpose_along_x(const Group& group, int64_t width,
                                                        Acc (&of_z)[kGroup], Acc (&of_y)[kGroup],
                                                        Acc (&of_x)[kGroup]) const {
    const int64_t x = group.first, last = x + highest_bit(group.bits);
    Acc q[3][3][kGroup];  // at the voxels before, at and after
    for (int k = 0; k < 3; ++k) {
      expand_around(sample_ + k * kEdges + group.index, group.bits, q[k]);
    }
#pragma omp simd
    for (int64_t k = 0; k < kGroup; ++k) {
      of_z[k] = math::smooth(q[0][0][k], q[0][1][k], q[0][2][k]);
      of_y[k] = math::smooth(q[1][0][k], q[1][1][k], q[1][2][k]);
      of_x[k] = math::difference(q[2][2][k], q[2][0][k]);
    }
    for (Acc* of : {of_z, of_y, of_x}) {  // borders are replicated
      if (x == 0) of[1] += of[0], of[0] = 0;
      if (last == width - 1) of[last - x + 1] += of[last - x + 2], of[last - x + 2] = 0;
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
