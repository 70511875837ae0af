// Stage 1: the target as codes, and the candidates: voxels whose 3x3x3 neighbourhood is not
// constant. All edges are candidates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/bits.h"
#include "../simd/elements.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// Converts n voxels of the target to codes: classes, with the number of classes for invalid values;
// or regions as 0 and 1.
static inline void load_codes(const Tensor& target, int64_t start, int64_t n, bool softmax,
                              int64_t classes, uint8_t* __restrict codes) {
  with_type(target.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(target.data) + start;
    const uint64_t none = uint64_t(classes);
    const auto convert = [&](int64_t stride) {
      if (softmax) {
        for (int64_t i = 0; i < n; ++i) {
          const uint64_t value = uint64_t(widen<int64_t>(in[i * stride]));
          codes[i] = uint8_t(value < none ? value : none);
        }
      } else {
        for (int64_t i = 0; i < n; ++i) codes[i] = widen<int64_t>(in[i * stride]) != 0;
      }
    };
    target.voxel_stride == 1 ? convert(1) : convert(target.voxel_stride);
  });
}

// The codes of a word's voxels in a label map, of classes or of one region, each of which is a list
// of label values.
template <class In>
static inline void label_codes(const Consistency& p, const In* labels, int64_t channel,
                               uint8_t* codes) {
  using Bits = std::make_unsigned_t<In>;
  const Bits* const bits = reinterpret_cast<const Bits*>(labels);
  std::memset(codes, p.softmax ? int(p.size.channels) : 0, kWord);
  const int64_t* value = p.region_values;
  for (int64_t region = 0; region < p.size.channels; ++region) {
    const int64_t* const end = value + p.region_counts[region];
    const bool counts = p.softmax || region == channel;
    uint64_t inside = 0;
    for (; value < end; ++value) {
      if (counts && int64_t(In(*value)) == *value) inside |= ~differing(bits, Bits(*value));
    }
    if (inside == 0) continue;
    uint8_t bytes[kWord];
    bits_to_bytes(inside, bytes);
    const uint8_t code = p.softmax ? uint8_t(region) : uint8_t(1);
    for (int64_t k = 0; k < kWord; ++k) codes[k] = bytes[k] != 0 ? code : codes[k];
  }
}

// The same of n voxels of the target from `start` on. Up to kWord - 1 codes more are written.
static inline void load_label_codes(const Consistency& p, int64_t start, int64_t n, int64_t channel,
                                    uint8_t* codes) {
  with_type(p.target.dtype, [&](auto* type) {
    using In = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_integral_v<In>) {
      const In* const labels = static_cast<const In*>(p.target.data) + start;
      const int64_t whole = n / kWord * kWord;
      for (int64_t i = 0; i < whole; i += kWord) label_codes(p, labels + i, channel, codes + i);
      if (whole == n) return;
      In rest[kWord] = {};
      std::copy_n(labels + whole, n - whole, rest);
      label_codes(p, rest, channel, codes + whole);
    }
  });
}

// Marks the voxels of a row that differ from a neighbour in the plane, and their neighbours, in the
// sets of this row and the rows before and after, which may be null. Marks in `along` the voxels
// that differ from the next plane's.
static inline void mark_row_changes(const uint8_t* at, const uint8_t* below, const uint8_t* behind,
                                    int64_t width, uint64_t* before, uint64_t* across,
                                    uint64_t* after, uint64_t* along) {
  uint64_t carry = 0;
  for (int64_t x = 0, w = 0; x < width; x += kWord, ++w) {
    const uint64_t inside = first_bits(width - x);
    const uint64_t dx = differing(at + x, at + x + 1) & first_bits(width - 1 - x);
    const uint64_t dy = differing(at + x, below + x) & inside;
    const uint64_t dz = differing(at + x, behind + x) & inside;
    if ((dx | dy | dz | carry) == 0) continue;
    along[w] |= dz;
    const uint64_t wide = dx | dx << 1 | carry;
    carry = dx >> (kWord - 1);
    across[w] |= wide | dy;
    if (before != nullptr) before[w] |= wide;
    if (after != nullptr) after[w] |= wide | dy;
  }
}

class Candidates {
 public:
  // `drawn` is the hard sample of the volume if its edges count too, else null.
  Candidates(const Consistency& p, const ConsistencyPlan& plan, const Strip& strip,
             const uint8_t* drawn, Arena& arena)
      : p_(p), plan_(plan), strip_(strip), drawn_(p.support_both ? drawn : nullptr) {
    arena.take(codes_, kEarlyRing * plan.plane);
    arena.take(across_, kEarlyRing * plan.rows * plan.words);
    arena.take(along_, kEarlyRing * plan.rows * plan.words);
    arena.take(candidates_, kEarlyRing * plan.rows * plan.words);
    arena.take(any_, kEarlyRing * plan.rows);
    arena.take(present_, kEarlyRing * plan.rows * plan.sets);
  }

  void begin(int64_t z) {
    next_ = z;
    next_marked_ = next_loaded_ = below(z);
  }

  // Finds the candidates up to plane z. Calls between_rows() between some rows.
  template <class BetweenRows>
  void advance(int64_t z, BetweenRows&& between_rows) {
    for (; next_ <= z; ++next_) {
      for (; next_marked_ <= strip_.above_by(next_, 1); ++next_marked_) {
        const int64_t behind = strip_.above_by(next_marked_, 1);
        for (; next_loaded_ <= behind; ++next_loaded_) load(next_loaded_);
        mark_changes(next_marked_, behind, between_rows);
      }
      mark_candidates(next_);
    }
  }

  // Row y of plane z: its codes, the set of its candidates, whether there are any, and the set of
  // classes at them.
  const uint8_t* codes(int64_t z, int64_t y) const {
    return planes_[z % kEarlyRing] + strip_.position(y);
  }
  const uint64_t* set(int64_t z, int64_t y) const { return word(candidates_, z, y); }
  bool any(int64_t z, int64_t y) const { return any_[row(z, y)]; }
  const uint64_t* present(int64_t z, int64_t y) const { return present_ + row(z, y) * plan_.sets; }

 private:
  const Consistency& p_;
  const ConsistencyPlan& plan_;
  const Strip& strip_;
  const uint8_t* drawn_;                      // (D, H, W)
  uint8_t* codes_;                            // (kEarlyRing, plane)
  uint64_t *across_, *along_, *candidates_;   // (kEarlyRing, rows, words)
  uint8_t* any_;                              // (kEarlyRing, rows)
  uint64_t* present_;                         // (kEarlyRing, rows, sets)
  const uint8_t* planes_[kEarlyRing];         // in codes_ or in the target itself
  int64_t next_, next_marked_, next_loaded_;  // the next plane for each step

  int64_t row(int64_t z, int64_t y) const { return z % kEarlyRing * plan_.rows + y - strip_.base; }
  uint64_t* word(uint64_t* sets, int64_t z, int64_t y) const {
    return sets + row(z, y) * plan_.words;
  }
  const uint8_t* drawn(int64_t z) const { return drawn_ + strip_.voxel(z); }

  void load(int64_t z) {
    const Tensor& target = p_.target;
    const int64_t n = strip_.kept() * strip_.width;
    const uint8_t*& plane = planes_[z % kEarlyRing];
    uint8_t* codes = codes_ + z % kEarlyRing * plan_.plane;
    if (p_.region_counts != nullptr) {
      load_label_codes(p_, target.offset(strip_.batch, 0, strip_.voxel(z)), n, strip_.channel,
                       codes);
      plane = codes;
      return;
    }
    const int64_t start = target.offset(strip_.batch, strip_.channel, strip_.voxel(z));
    // Byte targets are used in place, unless vectors would read beyond the tensor.
    const int64_t all = plan_.volumes * p_.size.voxels();
    if (target.dtype == DType::u8 && target.voxel_stride == 1 && start + n + kSlack <= all) {
      plane = static_cast<const uint8_t*>(target.data) + start;
      return;
    }
    load_codes(target, start, n, p_.softmax, plan_.classes, codes);
    plane = codes;
  }

  // Marks where the target and the drawn sample change within plane z and to the next plane.
  template <class BetweenRows>
  void mark_changes(int64_t z, int64_t behind, BetweenRows&& between_rows) {
    for (uint64_t* sets : {across_, along_}) {
      std::fill_n(word(sets, z, strip_.base), strip_.kept() * plan_.words, 0);
    }
    mark_changes_of(planes_[z % kEarlyRing], planes_[behind % kEarlyRing], z, between_rows);
    if (drawn_ != nullptr) mark_changes_of(drawn(z), drawn(behind), z, between_rows);
  }

  template <class BetweenRows>
  void mark_changes_of(const uint8_t* at, const uint8_t* behind, int64_t z,
                       BetweenRows&& between_rows) {
    const int64_t rows = strip_.kept(), width = strip_.width, words = plan_.words;
    uint64_t *across = word(across_, z, strip_.base), *along = word(along_, z, strip_.base);
    for (int64_t y = 0; y < rows; ++y, across += words, along += words) {
      between_rows();
      const bool first = y == 0, last = y + 1 == rows;
      const uint8_t* row = at + y * width;
      mark_row_changes(row, last ? row : row + width, behind + y * width, width,
                       first ? nullptr : across - words, across, last ? nullptr : across + words,
                       along);
    }
  }

  void mark_candidates(int64_t z) {
    const int64_t before = below(z), after = strip_.above_by(z, 1), base = strip_.base;
    const int64_t n = strip_.kept() * plan_.words;
    uint64_t* __restrict candidates = word(candidates_, z, base);
    const uint64_t *across0 = word(across_, before, base), *across1 = word(across_, z, base);
    const uint64_t *across2 = word(across_, after, base), *along0 = word(along_, before, base);
    const uint64_t* along1 = word(along_, z, base);
    for (int64_t i = 0; i < n; ++i) {
      candidates[i] = across0[i] | across1[i] | across2[i] | along1[i] | along0[i];
    }
    for (int64_t y = base; y < strip_.high(kReach); ++y, candidates += plan_.words) {
      uint64_t any = 0;
      for (int64_t w = 0; w < plan_.words; ++w) any |= candidates[w];
      any_[row(z, y)] = any != 0;
      if (any != 0) mark_present(z, y);
    }
  }

  // Marks the classes at a row's candidates. Every class in a candidate's neighbourhood is the
  // class of a candidate there.
  void mark_present(int64_t z, int64_t y) {
    uint64_t* classes = present_ + row(z, y) * plan_.sets;
    for (int64_t i = 0; i < plan_.sets; ++i) classes[i] = 0;
    if (plan_.classes == 1) {
      classes[0] = 1;
      return;
    }
    const auto add = [&](int64_t code) {
      if (code < plan_.classes) classes[code / kWord] |= uint64_t(1) << code % kWord;
    };
    const uint64_t* candidates = set(z, y);
    const uint8_t *at = codes(z, y), *hard = nullptr;
    if (drawn_ != nullptr) hard = drawn(z) + strip_.position(y);
    for (int64_t w = 0; w < plan_.words; ++w) {
      for (uint64_t bits = candidates[w]; bits != 0; bits &= bits - 1) {
        const int64_t x = w * kWord + lowest_bit(bits);
        add(at[x]);
        if (hard != nullptr) add(hard[x]);
      }
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
