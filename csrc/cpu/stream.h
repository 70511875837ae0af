// Writes an output from its first byte to its last without fetching it into the caches before.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "rows.h"

namespace egcnn::EGCNN_ISA {

// One cache line to an aligned address, past the caches where the machine can.
static inline void stream_line(uint8_t* out, const uint8_t* in) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
#elif defined(__SSE2__)
  for (int i = 0; i < 64; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
  }
#else
  std::memcpy(out, in, 64);
#endif
}

// To be called by a thread before others read what it streamed.
static inline void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Outputs of more bytes are streamed; a smaller one is still in the caches when it is read.
constexpr int64_t kStreamed = 8 << 20;

// Bytes put one piece after the other. Past the caches they leave a whole line at a time, since a
// line that is written in parts costs its fetching after all.
class Stream {
 public:
  Stream(void* out, bool past_caches)
      : past_(past_caches),
        first_(past_ ? reinterpret_cast<uintptr_t>(out) % kLine : 0),
        held_(first_),
        out_(static_cast<uint8_t*>(out) - first_) {}

  ~Stream() { std::memcpy(out_ + first_, line_ + first_, held_ - first_); }

  void put(const void* bytes, int64_t n) {
    const uint8_t* in = static_cast<const uint8_t*>(bytes);
    if (!past_) {
      std::memcpy(out_, in, n);
      out_ += n;
      return;
    }
    if (held_ > 0) {
      const int64_t missing = kLine - held_, count = n < missing ? n : missing;
      std::memcpy(line_ + held_, in, count);
      held_ += count, in += count, n -= count;
      if (held_ < kLine) return;
      if (first_ > 0) {
        std::memcpy(out_ + first_, line_ + first_, kLine - first_);
      } else {
        stream_line(out_, line_);
      }
      out_ += kLine;
      first_ = 0;
    }
    for (; n >= kLine; n -= kLine, in += kLine, out_ += kLine) stream_line(out_, in);
    std::memcpy(line_, in, n);
    held_ = n;
  }

  void put_zeros(int64_t n) {
    static const uint8_t zeros[4096] = {};
    for (int64_t x = 0; x < n; x += sizeof zeros) {
      put(zeros, std::min<int64_t>(n - x, sizeof zeros));
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  bool past_;
  int64_t first_, held_;  // the bytes [first_, held_) of a line are known and wait
  uint8_t* out_;          // where that line goes
  uint8_t line_[kLine];
};

// Sets arrays to 0 a part at a time, between other work: memory does the one while the core does
// the other. `count` arrays of `bytes` lie `pitch` bytes apart.
class ZeroFill {
 public:
  ZeroFill() = default;
  ZeroFill(uint8_t* first, int64_t bytes, int64_t count, int64_t pitch, int64_t parts,
           bool past_caches)
      : first_(first), bytes_(bytes), count_(count), pitch_(pitch),
        step_((bytes / parts + kLine - 1) / kLine * kLine), past_(past_caches) {}

  void some() {
    if (done_ == bytes_) return;
    const int64_t next = std::min(done_ + step_, bytes_);
    for (int64_t i = 0; i < count_; ++i) fill(cut(i, done_), cut(i, next));
    done_ = next;
  }

  void rest() {
    while (done_ < bytes_) some();
  }

 private:
  static constexpr int64_t kLine = 64;

  // Where a part of an array ends and the next begins: at the start of a line, since to write half
  // of a line costs its fetching.
  uint8_t* cut(int64_t i, int64_t done) const {
    uint8_t* const at = first_ + i * pitch_ + done;
    return done == 0 || done == bytes_ ? at : line_start(at);
  }

  static uint8_t* line_start(uint8_t* address) {
    return address - reinterpret_cast<uintptr_t>(address) % kLine;
  }

  void fill(uint8_t* from, uint8_t* to) const {
    static constexpr uint8_t kZeros[kLine] = {};
    if (past_) {
      uint8_t* const line = std::min(line_start(from + kLine - 1), to);
      if (from < line) std::memset(from, 0, line - from);
      for (from = line; from + kLine <= to; from += kLine) stream_line(from, kZeros);
    }
    if (from < to) std::memset(from, 0, to - from);
  }

  uint8_t* first_ = nullptr;
  int64_t bytes_ = 0, count_ = 0, pitch_ = 0, step_ = 0, done_ = 0;
  bool past_ = false;
};

// Numbers, as those of another type.
template <class T>
static inline void put_as(DType dtype, Stream& out, const T* in, int64_t n) {
  with_float(dtype, [&](auto* type) {
    using Out = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<Out, T>) {
      out.put(in, n * sizeof(T));
    } else {
      constexpr int64_t kBlock = 256;
      Out block[kBlock];
      for (int64_t x = 0; x < n; x += kBlock) {
        const int64_t count = n - x < kBlock ? n - x : kBlock;
        for (int64_t i = 0; i < count; ++i) block[i] = narrow(in[x + i], type);
        out.put(block, count * sizeof(Out));
      }
    }
  });
}

}  // namespace egcnn::EGCNN_ISA
