// Exact edges of binary regions on rows of bits. A word holds 62 voxels and one more on each side,
// so that shifts give the neighbours along x. A voxel is an edge if any component of its gradient
// is nonzero, which a few bit-sliced additions decide for all voxels of a vector.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/bits.h"
#include "../simd/isa.h"
#include "../simd/vectors.h"
#include "bit_stream.h"
#include "march.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// The number of set bits among four, in binary.
struct BitCount {
  Bits ones, twos, fours;

  BitCount(Bits a, Bits b, Bits c, Bits d) {
    const Bits sum = xor3(a, b, c), carry = majority(a, b, c);
    ones = sum ^ d;
    twos = carry ^ (sum & d), fours = carry & sum & d;
  }
};

// Whether the sums of two triples of voxels, smoothed along x, differ.
static inline Bits unbalanced(Bits a0, Bits a1, Bits a2, Bits b0, Bits b1, Bits b2) {
  // e = a0 + a1 + a2 + 3 - (b0 + b1 + b2), 0 to 6.
  const Bits sum_a = xor3(a0, a1, a2), carry_a = majority(a0, a1, a2);
  const Bits sum_b = ~xor3(b0, b1, b2), carry_b = ~majority(b0, b1, b2);
  const Bits e0 = sum_a ^ sum_b, carry = sum_a & sum_b;
  const Bits e1 = xor3(carry_a, carry_b, carry), e2 = majority(carry_a, carry_b, carry);
  // The sum n of the neighbours' e, then n + 2 e modulo 16, which is 12 if the sums are equal.
  const Bits left0 = e0 << 1, left1 = e1 << 1, left2 = e2 << 1;
  const Bits right0 = e0 >> 1, right1 = e1 >> 1, right2 = e2 >> 1;
  const Bits n0 = left0 ^ right0, carry0 = left0 & right0;
  const Bits n1 = xor3(left1, right1, carry0), carry1 = majority(left1, right1, carry0);
  const Bits n2 = xor3(left2, right2, carry1), n3 = majority(left2, right2, carry1);
  const Bits s1 = n1 ^ e0, c1 = n1 & e0;
  const Bits s2 = xor3(n2, e1, c1), s3 = xor3(n3, e2, majority(n2, e1, c1));
  return n0 | s1 | ~(s2 & s3);
}

// Whether the voxels in bits 1 to 62 are edges. a, b and c point to their words in the planes
// before, at and after theirs; rows are `row` words apart.
static inline Bits edges(const uint64_t* a, const uint64_t* b, const uint64_t* c, int64_t row) {
  const Bits a0 = load_vector(a - row), a1 = load_vector(a), a2 = load_vector(a + row);
  const Bits b0 = load_vector(b - row), b1 = load_vector(b), b2 = load_vector(b + row);
  const Bits c0 = load_vector(c - row), c1 = load_vector(c), c2 = load_vector(c + row);
  // Half of gz + gy and half of gz - gy: both are 0 only where gz and gy are.
  const Bits sum = unbalanced(c2, c1, b2, a0, a1, b0);
  const Bits difference = unbalanced(c0, c1, b0, a2, a1, b2);
  // The smoothed cross-section: corners once, sides twice, the centre four times.
  const BitCount corners(a0, a2, c0, c2), sides(a1, c1, b0, b2);
  const Bits s1 = corners.twos ^ sides.ones, carry1 = corners.twos & sides.ones;
  const Bits t2 = xor3(corners.fours, sides.twos, b1);
  const Bits carry2 = majority(corners.fours, sides.twos, b1), s2 = t2 ^ carry1;
  const Bits carry3 = t2 & carry1, s3 = xor3(sides.fours, carry2, carry3);
  const Bits s4 = majority(sides.fours, carry2, carry3);
  // A difference between two voxels with one in between makes that one an edge.
  const Bits across = (corners.ones ^ (corners.ones >> 2)) | (s1 ^ (s1 >> 2)) | (s2 ^ (s2 >> 2)) |
                      (s3 ^ (s3 >> 2)) | (s4 ^ (s4 >> 2));
  return sum | difference | (across << 1);
}

// A slab's rows as bits, for up to kSobelRegions regions.
class BitMarch : public MarkedRows {
 public:
  BitMarch(const SobelPlan& plan, const Slab& slab, int64_t regions, char* scratch)
      : MarkedRows(plan, slab, kRun), regions_(regions), words_(plan.row_words()),
        plane_(plan.plane_words()) {
    ring_ = align_up<uint64_t>(scratch);
    edges_ = ring_ + regions * region_stride();
    place_marks(reinterpret_cast<uint8_t*>(edges_ + kRun * words_ + kSobelWordSpill));
  }

  // pack(z, y, rows, marks, words) fills in the marks and, for region r, the words from
  // words + r * region_stride() on. Both it and run() return whether all values are binary.
  template <class Pack, class Plane>
  bool run(Pack&& pack, Plane&& plane_done) {
    const auto load = [&](int64_t z, uint8_t* marks) {
      const int64_t rows = high_ - low_;
      uint64_t* const first = ring_ + z % 3 * plane_ + (low_ - slab_.y0 + 1) * words_;
      if (!pack(z, low_, rows, marks, first)) return false;
      for (int64_t r = 0; r < regions_; ++r) {
        uint64_t *top = first + r * region_stride(), *bottom = top + (rows - 1) * words_;
        if (low_ == slab_.y0) std::copy(top, top + words_, top - words_);
        if (high_ == slab_.y1) std::copy(bottom, bottom + words_, bottom + words_);
      }
      return true;
    };
    return MarkedRows::run(load, plane_done);
  }

  int64_t regions() const { return regions_; }
  int64_t region_stride() const { return 3 * plane_; }
  int64_t words() const { return words_; }

  // Writes the edges of rows [y, y + rows) of region r.
  void put(int64_t r, int64_t y, int64_t rows, BitStream& out) const {
    const uint64_t* const first = ring_ + r * region_stride() + (y - slab_.y0 + 1) * words_;
    const uint64_t *a = first + at_[0] * plane_, *b = first + at_[1] * plane_,
                   *c = first + at_[2] * plane_;
    const int64_t n = rows * words_, width = plan_.width;
    for (int64_t i = 0; i < n; i += kLanes<uint64_t>) {
      store_vector(edges_ + i, edges(a + i, b + i, c + i, words_));
    }
    const int64_t last = width - (words_ - 1) * kSobelWord;
    const uint64_t within = ~uint64_t(0) >> (kWord - last);
    const uint64_t* word = edges_;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k + 1 < words_; ++k) {
        out.put(*word++ << 1 >> 2, kSobelWord);
      }
      out.put(*word++ >> 1 & within, last);
    }
  }

 private:
  static constexpr int64_t kRun = kSobelBitRun;
  int64_t regions_, words_, plane_;  // words_ of a row, plane_ of a plane
  uint64_t *ring_, *edges_;
};

// Packs the words of one row: bit i of word k is voxel 62 k + i - 1, with replicated borders.
// word_of(k, block, finish) packs the kWord elements of word k; nothing from `end` on is read.
template <class In, class WordOf>
static inline void pack_row(const In* row, const In* end, int64_t width, int64_t words,
                            WordOf&& word_of) {
  for (int64_t k = 0; k < words; ++k) {
    const int64_t first = k > 0 ? k * kSobelWord - 1 : 0;
    const int64_t missing = std::max<int64_t>(0, first + kWord - width);
    const In* block = row + first;
    In padded[kWord];
    if (end - block < kWord) {
      std::fill(std::copy(block, end, padded), padded + kWord, In(0));
      block = padded;
    }
    word_of(k, block, [=](uint64_t bits) {
      bits = uint64_t(int64_t(bits << missing) >> missing);
      return k > 0 ? bits : bits << 1 | (bits & 1);
    });
  }
}

}  // namespace egcnn::EGCNN_ISA
