// Sets memory to 0, past the caches where it is large.
#pragma once

#include <cstdint>
#include <cstring>

#include "../simd/stream.h"

namespace egcnn::EGCNN_ISA {

static inline void zero_fill(uint8_t* from, int64_t bytes, bool stream) {
  alignas(kLine) static constexpr uint8_t kZeros[kLine] = {};
  if (bytes == 0) return;
  if (!stream) {
    std::memset(from, 0, bytes);
    return;
  }
  LineWriter lines(from, true);
  int64_t left = lines.begin() + bytes;
  for (; left >= kLine; left -= kLine) lines.write(kZeros);
  if (left > lines.begin()) lines.write_until(kZeros, left);
}

}  // namespace egcnn::EGCNN_ISA
