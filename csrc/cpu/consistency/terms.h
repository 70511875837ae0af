// Stage 4: the terms of the loss, | ‖∇p‖ - ‖∇y‖ | at each edge: summed forward, and backward their
// gradient scattered to the sample's.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../ops.h"
#include "../simd/bits.h"
#include "candidates.h"
#include "edges.h"
#include "plan.h"
#include "samples.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
class Terms {
 public:
  // `scales` (volumes, classes), d loss / d mismatch, is null in forward.
  Terms(const Consistency& p, const ConsistencyPlan& plan, const Strip& strip,
        const Candidates& candidates, const Samples<Acc>& samples, const Acc* scales, bool backward,
        Arena& arena)
      : p_(p), plan_(plan), strip_(strip), candidates_(candidates), samples_(samples),
        scales_(scales), backward_(backward), hard_(p.hard || p.support_both),
        pitch_(plan.words * kWord + kSlack), edges_(arena) {
    arena.take(class_rows_, plan.classes * plan.rows);
    arena.take(class_count_, plan.classes);
    const int64_t n = plan.rows * pitch_;
    arena.take(truth_.smooth, n);
    arena.take(truth_.differ, n);
    arena.take(hard_rows_.smooth, n);
    arena.take(hard_rows_.differ, n);
    arena.take(soft_rows_.smooth, p.hard ? 0 : n);
    arena.take(soft_rows_.differ, p.hard ? 0 : n);
    arena.take(marked_, plan.mark_edges ? kRing * plan.classes * plan.plane : 0);
  }

  // Compares plane z in the strip and `reach` rows around it. In forward, sums[c] and counts[c] get
  // the sum of the mismatches and the number of edges of class c.
  void compare(int64_t z, int64_t reach, double* sums, int64_t* counts) {
    list_rows(z, reach);
    for (int64_t c = 0; c < plan_.classes; ++c) {
      sum_ = 0, count_ = 0;
      if (plan_.mark_edges) std::memset(marked(z, c), 0, strip_.kept() * strip_.width);
      const int32_t *begin = class_rows_ + c * plan_.rows, *end = begin + class_count_[c];
      combine_rows(c, z, begin, end);
      for (const int32_t* y = begin; y < end; ++y) {
        const uint64_t* candidates = candidates_.set(z, *y);
        for (int64_t w = 0; w < plan_.words; ++w) {
          if (candidates[w] != 0) compare_word(c, z, *y, w, candidates[w]);
        }
      }
      flush(c, z);
      if (backward_) continue;
      sums[c] = sum_;
      counts[c] = count_;
    }
  }

  // Where class c has edges in the strip's plane z, as bytes, by position; see
  // ConsistencyPlan::mark_edges.
  uint8_t* marked(int64_t z, int64_t c) const {
    return marked_ + (z % kRing * plan_.classes + c) * plan_.plane;
  }

 private:
  static constexpr uint8_t kNone[kWord] = {};  // the bytes of a word without edges

  // Three planes smoothed and differenced along z, row by row.
  template <class V>
  struct Rows {
    V *smooth, *differ;  // (rows, pitch)
  };

  const Consistency& p_;
  const ConsistencyPlan& plan_;
  const Strip& strip_;
  const Candidates& candidates_;
  const Samples<Acc>& samples_;
  const Acc* scales_;
  const bool backward_;
  const bool hard_;      // whether the hard sample's gradients count
  const int64_t pitch_;  // of rows
  EdgeList<Acc> edges_;
  int32_t *class_rows_, *class_count_;  // (classes, rows), (classes)
  Rows<int8_t> truth_, hard_rows_;
  Rows<Acc> soft_rows_;
  uint8_t* marked_;  // (kRing, classes, plane)
  double sum_;       // of the current class
  int64_t count_;

  int64_t row(int64_t y) const { return (y - strip_.base) * pitch_ + kWord; }

  // Lists for each class the rows that may have edges of it: those with the class at a candidate
  // nearby.
  void list_rows(int64_t z, int64_t reach) {
    for (int64_t c = 0; c < plan_.classes; ++c) class_count_[c] = 0;
    for (int64_t y = strip_.low(reach); y < strip_.high(reach); ++y) {
      if (!candidates_.any(z, y)) continue;
      for (int64_t i = 0; i < plan_.sets; ++i) {
        uint64_t bits = 0;
        for (int64_t zz = below(z); zz <= strip_.above_by(z, 1); ++zz) {
          for (int64_t yy = below(y); yy <= above(y, strip_.height); ++yy) {
            if (candidates_.any(zz, yy)) bits |= candidates_.present(zz, yy)[i];
          }
        }
        for (; bits != 0; bits &= bits - 1) {
          const int64_t c = i * kWord + lowest_bit(bits);
          class_rows_[c * plan_.rows + class_count_[c]++] = int32_t(y);
        }
      }
    }
  }

  // Smooths and differences along z the listed rows and the adjacent ones.
  void combine_rows(int64_t c, int64_t z, const int32_t* begin, const int32_t* end) {
    int64_t next = 0;
    for (const int32_t* y = begin; y < end; ++y) {
      next = next > below(*y) ? next : below(*y);
      for (; next <= above(*y, strip_.height); ++next) combine_row(c, z, next);
    }
  }

  void combine_row(int64_t c, int64_t z, int64_t y) {
    const auto combine = [&](auto&& of, auto&& from, auto& rows) {
      combine_planes(of(below(z)), of(z), of(strip_.above_by(z, 1)), strip_.width, from,
                     rows.smooth + row(y), rows.differ + row(y));
    };
    const auto combine_codes = [&](auto&& of, uint8_t code, Rows<int8_t>& rows) {
      combine(of, [code](uint8_t at) { return int8_t(at == code); }, rows);
    };
    // Inside and outside have the same gradient magnitude; any nonzero byte is inside.
    combine_codes([&](int64_t zz) { return candidates_.codes(zz, y); }, uint8_t(p_.softmax ? c : 0),
                  truth_);
    if (hard_) {
      combine_codes([&](int64_t zz) { return samples_.hard(zz) + strip_.position(y); },
                    uint8_t(p_.softmax ? c : 1), hard_rows_);
    }
    if (!p_.hard) {
      combine([&](int64_t zz) { return samples_.soft(zz, c) + strip_.position(y); },
              [](Acc at) { return at; }, soft_rows_);
    }
  }

  // Lists the edges among the candidates of a word.
  void compare_word(int64_t c, int64_t z, int64_t y, int64_t word, uint64_t candidates) {
    const int64_t x = word * kWord, at = row(y) + x;
    const int64_t before = row(below(y)) + x, after = row(above(y, strip_.height)) + x;
    uint8_t any[kWord];
    WordGradient<int8_t> truth, hard;
    sobel_word(truth_.smooth, truth_.differ, before, at, after, truth);
    for (int64_t i = 0; i < kWord; ++i) {
      any[i] = uint8_t(truth[0][i] | truth[1][i] | truth[2][i]);
    }
    if (plan_.mark_edges) mark_word(c, z, y, x, candidates, any, truth);
    if (hard_) sobel_word(hard_rows_.smooth, hard_rows_.differ, before, at, after, hard);
    if (p_.support_both) {
      for (int64_t i = 0; i < kWord; ++i) any[i] |= uint8_t(hard[0][i] | hard[1][i] | hard[2][i]);
    }
    const uint64_t edges = candidates & differing(any, kNone);
    if (edges == 0) return;
    count_ += __builtin_popcountll(edges);
    if (!edges_.room_for_word()) flush(c, z);
    if (p_.hard) {
      edges_.add(y, x, edges, truth, hard);
    } else {
      WordGradient<Acc> soft;
      sobel_word(soft_rows_.smooth, soft_rows_.differ, before, at, after, soft);
      edges_.add(y, x, edges, truth, soft);
    }
  }

  // Marks a word's edges. Bytes beyond a row's end are those of the next row, which comes later.
  void mark_word(int64_t c, int64_t z, int64_t y, int64_t x, uint64_t candidates,
                 const uint8_t (&any)[kWord], const WordGradient<int8_t>& g) {
    uint8_t above[kWord];
    for (int64_t i = 0; i < kWord; ++i) {
      const int squared = g[0][i] * g[0][i] + g[1][i] * g[1][i] + g[2][i] * g[2][i];
      above[i] = squared > plan_.most;
    }
    const uint64_t edges = candidates & differing(plan_.most == 0 ? any : above, kNone);
    bits_to_bytes(edges, marked(z, c) + strip_.position(y) + x);
  }

  // Compares the listed edges and clears the list.
  void flush(int64_t c, int64_t z) {
    if (!backward_) {
      sum_ += edges_.sum();
    } else {
      edges_.differentiate(scales_[strip_.volume * plan_.classes + c]);
      const int64_t planes[3] = {below(z), z, strip_.above_by(z, 1)};
      edges_.scatter(strip_.width, [&](int i, int j, int64_t y) {
        const int64_t row = j == 0 ? below(y) : j == 1 ? y : above(y, strip_.height);
        return samples_.grad(planes[i], c) + strip_.position(row);
      });
    }
    edges_.clear();
  }
};

}  // namespace egcnn::EGCNN_ISA
