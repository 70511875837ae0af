// Prefetching line by line between other work, so that neither waits for the other.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../math/common.h"
#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

// Prefetch queue: the rows of a few arrays, to be prefetched line by line. An array that has a
// destination is copied there instead, which is how the next block is staged: rows of many
// channels, a power of two apart, would evict one another from the caches.
class PrefetchQueue {
 public:
  // Where the rows of an array are copied to, if anywhere.
  struct Destination {
    char* row = nullptr;
    int64_t step = 0;
  };

  // Consecutive lines of one row.
  struct Lines {
    const char* from;
    int64_t count;
    char* to = nullptr;               // the destination, for an array that has one
    const char* following = nullptr;  // the same lines of the next row

    void prefetch(int64_t i) const {
      if (to == nullptr) {
        __builtin_prefetch(from + kLine * i, 0, 2);
      } else {
        __builtin_prefetch(following + kLine * i);
        std::memcpy(to + kLine * i, from + kLine * i, kLine);
      }
    }
  };

  // Adds `rows` rows of `bytes` bytes, `step` bytes apart. Rows with a destination are whole lines.
  void add(const void* first, int64_t rows, int64_t step, int64_t bytes, Destination to) {
    if (rows == 0 || bytes == 0) return;
    arrays_[size_++] = {static_cast<const char*>(first), rows, step, bytes, to};
  }

  // Removes at most `most` lines, of one row.
  Lines take(int64_t most) {
    if (current_ == size_) return {nullptr, 0};
    Array& array = arrays_[current_];
    const int64_t left = divide_up(array.bytes - done_, kLine);
    Lines lines{array.row + done_, left < most ? left : most};
    if (array.to.row != nullptr) {
      lines.to = array.to.row + done_;
      lines.following = row_after() + done_;
    }
    done_ += kLine * lines.count;
    if (done_ >= array.bytes) {
      done_ = 0;
      array.row += array.step;
      if (array.to.row != nullptr) array.to.row += array.to.step;
      if (--array.rows == 0) ++current_;
    }
    return lines;
  }

  void prefetch_rest() {
    constexpr int64_t kAll = int64_t(1) << 60;
    for (Lines lines = take(kAll); lines.count > 0; lines = take(kAll)) {
      for (int64_t i = 0; i < lines.count; ++i) lines.prefetch(i);
    }
  }

 private:
  struct Array {
    const char* row;
    int64_t rows, step, bytes;
    Destination to;
  };
  Array arrays_[3];
  int size_ = 0, current_ = 0;
  int64_t done_ = 0;  // bytes of the current row

  const char* row_after() const {
    const Array& array = arrays_[current_];
    if (array.rows > 1) return array.row + array.step;
    return current_ + 1 < size_ ? arrays_[current_ + 1].row : array.row;
  }
};

}  // namespace egcnn::EGCNN_ISA
