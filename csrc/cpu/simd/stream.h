// Writes an output sequentially, with non-temporal stores if it is large: its lines are then not
// fetched before they are overwritten.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../math/common.h"
#include "elements.h"
#include "isa.h"

namespace egcnn::EGCNN_ISA {

// Larger outputs are streamed; a smaller one is still cached when it is read.
constexpr int64_t kStreamed = 8 << 20;

// Writes one cache line to an aligned address, with non-temporal stores if available.
static inline void stream_line(uint8_t* out, const uint8_t* in) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
#elif defined(__AVX__)
  for (int i = 0; i < kLine; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
  }
#elif defined(__SSE2__)
  for (int i = 0; i < kLine; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
  }
#else
  std::memcpy(out, in, kLine);
#endif
}

// A thread must call this before others read what it streamed.
static inline void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Writes an output line by line. The first and the last line, which it may share, are written
// partially and through the caches, since streaming them would need a fetch.
class LineWriter {
 public:
  LineWriter(void* out, bool stream)
      : stream_(stream), begin_(reinterpret_cast<uintptr_t>(out) % kLine),
        line_(static_cast<uint8_t*>(out) - begin_) {}

  // The offset of the output's first byte in the next line.
  int64_t begin() const { return begin_; }

  // Writes the next line, given from its start.
  void write(const uint8_t* line) {
    if (begin_ > 0) {
      write_until(line, kLine);
      begin_ = 0;
    } else if (stream_) {
      stream_line(line_, line);
    } else {
      std::memcpy(line_, line, kLine);
    }
    line_ += kLine;
  }

  // Writes the last line, whose bytes from `end` on do not belong to the output.
  void write_until(const uint8_t* line, int64_t end) const {
    std::memcpy(line_ + begin_, line + begin_, end - begin_);
  }

 private:
  bool stream_;
  int64_t begin_;
  uint8_t* line_;
};

// Writes bytes sequentially, piece by piece. If streamed, they are collected into whole lines.
class ByteStream {
 public:
  ByteStream(void* out, bool stream)
      : stream_(stream), out_(static_cast<uint8_t*>(out)), lines_(out, stream),
        held_(stream ? lines_.begin() : 0) {}

  ~ByteStream() {
    if (stream_) lines_.write_until(line_, held_);
  }

  void put(const void* bytes, int64_t n) {
    const uint8_t* in = static_cast<const uint8_t*>(bytes);
    if (!stream_) {
      std::memcpy(out_, in, n);
      out_ += n;
      return;
    }
    if (held_ > 0) {
      const int64_t count = std::min(kLine - held_, n);
      std::memcpy(line_ + held_, in, count);
      held_ += count, in += count, n -= count;
      if (held_ < kLine) return;
      lines_.write(line_);
    }
    for (; n >= kLine; n -= kLine, in += kLine) lines_.write(in);
    std::memcpy(line_, in, n);
    held_ = n;
  }

  void put_zeros(int64_t n) {
    static const uint8_t zeros[4096] = {};
    for (int64_t x = 0; x < n; x += sizeof zeros) {
      put(zeros, std::min<int64_t>(n - x, sizeof zeros));
    }
  }

  // Converts n numbers to another type and appends them.
  template <class T>
  void put_as(DType dtype, const T* in, int64_t n) {
    with_float(dtype, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      if constexpr (std::is_same_v<Out, T>) {
        put(in, n * sizeof(T));
      } else {
        constexpr int64_t kBlock = 256;
        Out block[kBlock];
        for (int64_t x = 0; x < n; x += kBlock) {
          const int64_t count = std::min(kBlock, n - x);
          for (int64_t i = 0; i < count; ++i) block[i] = narrow(in[x + i], type);
          put(block, count * sizeof(Out));
        }
      }
    });
  }

 private:
  bool stream_;
  uint8_t* out_;  // where the next bytes are written if not streamed
  LineWriter lines_;
  int64_t held_;  // bytes collected in the current line
  uint8_t line_[kLine];
};

}  // namespace egcnn::EGCNN_ISA
