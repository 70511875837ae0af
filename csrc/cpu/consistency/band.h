// Stage 2: the band, the candidates and their 3x3x3 neighbourhoods, as a list of groups.
#pragma once

#include <cstdint>

#include "../../math/common.h"
#include "../simd/bits.h"
#include "candidates.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

constexpr int64_t kBatch = 256;  // voxels that are sampled at a time

// Calls body(group, next, n) for batches of consecutive groups [group, next) with n voxels in
// total, where n plus what the last vector may overshoot is at most `most`.
template <class Body>
static inline void for_batches(const Group* group, const Group* end, int64_t most, Body&& body) {
  while (group < end) {
    const Group* next = group + 1;
    while (next < end && next->index - group->index + kGroup <= most) ++next;
    body(group, next, next->index - group->index);
    group = next;
  }
}

class Band {
 public:
  Band(const ConsistencyPlan& plan, const Strip& strip, Arena& arena)
      : plan_(plan), strip_(strip), room_(plan.rows * divide_up(strip.width, kGroup) + 1) {
    arena.take(groups_, kRing * room_);
    arena.take(starts_, kRing * (plan.rows + 1));
    arena.take(around_, plan.words);
    arena.take(any_of_three_, plan.rows);
  }

  // The groups of plane z: the first, the first of row y, and the end.
  const Group* begin(int64_t z) const { return groups_ + z % kRing * room_; }
  const Group* begin(int64_t z, int64_t y) const { return begin(z) + starts(z)[y - strip_.base]; }
  const Group* end(int64_t z) const { return begin(z, strip_.high(2)); }

  // Lists plane z. The candidates of the adjacent planes must be known.
  void list(int64_t z, const Candidates& candidates) {
    const int64_t planes[3] = {below(z), z, strip_.above_by(z, 1)};
    const int64_t height = strip_.height;
    Group *const list = first(z), *group = list;
    int32_t *start = starts(z), n = 0;
    uint8_t* any = any_of_three_ - strip_.base;
    for (int64_t y = strip_.low(3); y < strip_.high(3); ++y) {
      any[y] = 0;
      for (const int64_t plane : planes) any[y] |= uint8_t(candidates.any(plane, y));
    }
    for (int64_t y = strip_.low(2); y < strip_.high(2); ++y) {
      start[y - strip_.base] = int32_t(group - list);
      if ((any[below(y)] | any[y] | any[above(y, height)]) == 0) continue;
      gather_around(planes, y, candidates);
      for (int64_t w = 0; w < plan_.words; ++w) {
        const uint64_t set = dilate(around_, w, plan_.words, strip_.width);
        for_groups(set, w * kWord, [&](int64_t x, uint32_t bits) {
          *group++ = {int32_t(strip_.position(y) + x), n, bits};
          n += __builtin_popcount(bits);
        });
      }
    }
    start[strip_.high(2) - strip_.base] = int32_t(group - list);
    *group = {0, n, 0};
  }

  // Lists n consecutive voxels instead of a plane's band.
  const Group* list_all(int64_t n) {
    Group* group = groups_;
    for (int64_t i = 0; i < n; i += kGroup) {
      *group++ = {int32_t(i), int32_t(i), uint32_t(first_bits(n - i)) & kWholeGroup};
    }
    *group = {int32_t(n), int32_t(n), 0};
    return group;
  }

 private:
  const ConsistencyPlan& plan_;
  const Strip& strip_;
  int64_t room_;           // maximum number of groups of a plane
  Group* groups_;          // (kRing, room)
  int32_t* starts_;        // (kRing, rows + 1) where the groups of each row start
  uint64_t* around_;       // (words)
  uint8_t* any_of_three_;  // (rows)

  Group* first(int64_t z) { return groups_ + z % kRing * room_; }
  int32_t* starts(int64_t z) const { return starts_ + z % kRing * (plan_.rows + 1); }

  // The union over x of the candidates of the nine rows around row y.
  void gather_around(const int64_t (&planes)[3], int64_t y, const Candidates& candidates) {
    const uint64_t* sets[9];
    int count = 0;
    for (const int64_t plane : planes) {
      for (const int64_t row : {below(y), y, above(y, strip_.height)}) {
        if (candidates.any(plane, row)) sets[count++] = candidates.set(plane, row);
      }
    }
    for (int64_t w = 0; w < plan_.words; ++w) {
      around_[w] = 0;
      for (int i = 0; i < count; ++i) around_[w] |= sets[i][w];
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
