// Sets the gradient to 0 in small parts between other work, so that stores overlap with
// computation. It takes 0.5 to 3 % off backward, and forward is 7 % slower without the calls in
// between, for an unknown reason (paired runs, AVX-512).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../../math/common.h"
#include "../simd/isa.h"
#include "../simd/stream.h"

namespace egcnn::EGCNN_ISA {

// `count` arrays of `bytes` lie `pitch` bytes apart.
class ZeroFill {
 public:
  ZeroFill() = default;
  ZeroFill(uint8_t* first, int64_t bytes, int64_t count, int64_t pitch, int64_t parts, bool stream)
      : first_(first), bytes_(bytes), count_(count), pitch_(pitch),
        part_(round_up(bytes / parts, kLine)), stream_(stream) {}

  void fill_part() {
    if (done_ == bytes_) return;
    const int64_t next = std::min(done_ + part_, bytes_);
    for (int64_t i = 0; i < count_; ++i) fill(cut(i, done_), cut(i, next));
    done_ = next;
  }

  void fill_rest() {
    while (done_ < bytes_) fill_part();
  }

 private:
  uint8_t* first_ = nullptr;
  int64_t bytes_ = 0, count_ = 0, pitch_ = 0, part_ = 0, done_ = 0;
  bool stream_ = false;

  // The boundary between two parts of array i: at a cache line, since writing half a line costs
  // fetching it.
  uint8_t* cut(int64_t i, int64_t done) const {
    uint8_t* const at = first_ + i * pitch_ + done;
    const bool end = done == 0 || done == bytes_;
    return end ? at : at - reinterpret_cast<uintptr_t>(at) % kLine;
  }

  void fill(uint8_t* from, uint8_t* to) const {
    alignas(kLine) static constexpr uint8_t kZeros[kLine] = {};
    if (from >= to) return;
    if (!stream_) {
      std::memset(from, 0, to - from);
      return;
    }
    LineWriter lines(from, true);
    int64_t left = lines.begin() + (to - from);
    for (; left >= kLine; left -= kLine) lines.write(kZeros);
    if (left > lines.begin()) lines.write_until(kZeros, left);
  }
};

}  // namespace egcnn::EGCNN_ISA
