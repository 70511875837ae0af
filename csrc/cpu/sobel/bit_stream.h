// Writes bits as bytes 0 and 1.
#pragma once

#include <cstdint>

#include "../simd/bits.h"
#include "../simd/isa.h"
#include "../simd/stream.h"

namespace egcnn::EGCNN_ISA {

// For every line written it prefetches one from `next` on, unless that is null, so that reading and
// writing overlap.
class BitStream {
 public:
  BitStream(uint8_t* out, bool stream, const char* next)
      : lines_(out, stream), next_(next), held_(lines_.begin()) {}

  ~BitStream() {
    alignas(kLine) uint8_t bytes[kLine];
    bits_to_bytes(line_, bytes);
    lines_.write_until(bytes, held_);
  }

  // Appends the first n bits of a word; the others must be 0.
  void put(uint64_t bits, int64_t n) {
    line_ |= bits << held_;
    const int64_t held = held_ + n;
    if (held < kLine) {
      held_ = held;
      return;
    }
    flush();
    line_ = held_ > 0 ? bits >> (kLine - held_) : 0;
    held_ = held - kLine;
  }

  void put_zeros(int64_t n) {
    if (held_ + n < kLine) {
      held_ += n;
      return;
    }
    flush();
    line_ = 0;
    alignas(kLine) static const uint8_t zeros[kLine] = {};
    for (n -= kLine - held_; n >= kLine; n -= kLine) write(zeros);
    held_ = n;
  }

 private:
  LineWriter lines_;
  const char* next_;
  int64_t held_;  // bits collected in the current line
  uint64_t line_ = 0;

  void flush() {
    alignas(kLine) uint8_t bytes[kLine];
    bits_to_bytes(line_, bytes);
    write(bytes);
  }

  void write(const uint8_t* bytes) {
    if (next_ != nullptr) {
      __builtin_prefetch(next_, 0, 2);
      next_ += kLine;
    }
    lines_.write(bytes);
  }
};

}  // namespace egcnn::EGCNN_ISA
