// The 3D Sobel operator over a slab of a volume, marched along z: each input row is fetched once,
// into a ring of three planes, and the gradient follows a few rows at a time. Rows around which
// nothing changes are recognised and need no arithmetic.
#pragma once

#include <omp.h>

#include <algorithm>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "../math/sobel.h"
#include "rows.h"
#include "sobel_tiles.h"

namespace egcnn::EGCNN_ISA {

template <int bytes>
using UInt = std::conditional_t<
    bytes == 8, uint64_t,
    std::conditional_t<bytes == 4, uint32_t, std::conditional_t<bytes == 2, uint16_t, uint8_t>>>;

template <class T>
struct Lanes {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t count = kVectorBytes / sizeof(T);

  static inline type load(const T* from) {
    type lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
  }

  static inline bool is_zero(type lanes) {
#if defined(__AVX512F__)
    return _mm512_test_epi64_mask(__m512i(lanes), __m512i(lanes)) == 0;
#elif defined(__AVX2__)
    return _mm256_testz_si256(__m256i(lanes), __m256i(lanes));
#else
    uint64_t words[2];
    std::memcpy(words, &lanes, sizeof lanes);
    return (words[0] | words[1]) == 0;
#endif
  }

  static inline void store(T* to, type lanes) { std::memcpy(to, &lanes, sizeof lanes); }
};

// Rows [y0, y1) of planes [z0, z1) of one volume.
struct Slab {
  int64_t volume, z0, z1, y0, y1;
};

// body(slab, scratch) for every slab, shared out among the threads.
template <class Body>
static inline void for_slabs(const SobelTiles& t, const Resources& resources, Body&& body) {
  const int64_t y_tiles = ceil_div(t.height, t.tile), z_tiles = ceil_div(t.depth, t.planes);
  const int64_t slabs = t.volumes * z_tiles * y_tiles;
#pragma omp parallel num_threads(resources.threads) if (slabs > 1)
  {
    char* scratch = static_cast<char*>(resources.workspace) + omp_get_thread_num() * t.bytes();
#pragma omp for schedule(dynamic, 1)
    for (int64_t job = 0; job < slabs; ++job) {
      const int64_t z = job / y_tiles % z_tiles * t.planes, y = job % y_tiles * t.tile;
      body(Slab{job / y_tiles / z_tiles, z, z + t.planes < t.depth ? z + t.planes : t.depth, y,
                y + t.tile < t.height ? y + t.tile : t.height},
           scratch);
    }
  }
}

// The mark of a row that is not of one value, or of one that a mark cannot tell.
constexpr uint8_t kMixed = 255;

// Rows to be filled in, each with its mark: kMixed, or the value that all of the row has. A row of
// zeros need not be filled.
template <class T>
struct Rows {
  T* data;
  uint8_t* marks;
  int64_t count, width, pitch;
};

template <class T>
class SobelMarch {
 public:
  SobelMarch(const SobelTiles& t, const Slab& slab, char* scratch) : t_(t), slab_(slab) {
    low_ = slab.y0 > t.halo ? slab.y0 - t.halo : 0;
    high_ = slab.y1 + t.halo < t.height ? slab.y1 + t.halo : t.height;
    T* rows = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    ring_ = rows;
    extra = ring_ + 3 * t.rows() * t.pitch;
    smooth_ = extra + t.extra * t.rows() * t.pitch;
    differ_ = smooth_ + (kSobelRun + 2) * t.pitch;
    zeros_ = differ_ + (kSobelRun + 2) * t.pitch;
    std::fill(zeros_, zeros_ + t.pitch + 64, T(0));
    output = zeros_ + t.pitch + 64;
    uint8_t* marks = reinterpret_cast<uint8_t*>(output + kSobelRun * t.pitch + 64);
    for (int i = 0; i < 3; ++i) mark_[i] = marks + i * (t.rows() + 2) + 1;
    still_ = marks + 3 * (t.rows() + 2) + 1;
  }

  T* output;  // kSobelRun rows, and a vector more, for whoever emits
  T* extra;   // the extra planes, of t.rows() rows

  // For each plane z in turn: fetch(z, y, rows) fills rows from y on of the planes around it, then
  // plane(z) may ask for gradients there. Borders replicate.
  template <class Fetch, class Plane>
  void run(Fetch&& fetch, Plane&& plane) {
    const int64_t first = slab_.z0 > 0 ? slab_.z0 - 1 : 0;
    int64_t fetched = first;
    for (int64_t z = slab_.z0; z < slab_.z1; ++z) {
      for (; fetched <= z + 1 && fetched < t_.depth; ++fetched) fetch_plane(fetched, fetch);
      at_[0] = (z > 0 ? z - 1 : 0) % 3;
      at_[1] = z % 3;
      at_[2] = (z + 1 < t_.depth ? z + 1 : z) % 3;
      find_still();
      plane(z);
    }
  }

  // body(y, rows, still) for runs of at most kSobelRun rows of [y0, y1); the gradient of still ones
  // is zero.
  template <class Body>
  void for_runs(int64_t y0, int64_t y1, Body&& body) const {
    for (int64_t y = y0; y < y1;) {
      const bool still = still_[y - low_];
      int64_t end = y + 1;
      while (end < y1 && end < y + kSobelRun && bool(still_[end - low_]) == still) ++end;
      body(y, end - y, still);
      y = end;
    }
  }

  // emit(i, x, gz, gy, gx) for vectors from x on of row y + i. The later may overwrite what the
  // earlier have beyond the end of their row. value(lanes) is what counts of those in the ring.
  template <class Value, class Emit>
  __attribute__((noinline)) void gradient(int64_t y, int64_t rows, Value value, Emit emit) {
    // Copies, since bytes written might alias anything that is reached through a pointer.
    const int64_t pitch = t_.pitch, step = t_.step, left = t_.left, width = t_.width;
    using L = Lanes<T>;
    using V = typename L::type;
    for (int64_t i = 0; i < rows + 2; ++i) {
      const int64_t at = clamp(y + i - 1) - low_;
      const T *before = known(at_[0], at), *here = known(at_[1], at), *after = known(at_[2], at);
      T *s = smooth_ + i * pitch, *d = differ_ + i * pitch;
      for (int64_t x = 0; x < pitch; x += L::count) {
        const V a = value(L::load(before + x)), c = value(L::load(after + x));
        L::store(s + x, smooth(a, value(L::load(here + x)), c));
        L::store(d + x, c - a);
      }
    }
    struct Across {
      V smooth, smooth_of_difference, difference;
    };
    // From right to left, so that overwriting is in order.
    for (int64_t x = (width - 1) / L::count * L::count; x >= 0; x -= L::count) {
      const T *s0 = smooth_ + left + x, *d0 = differ_ + left + x;
      const auto across = [=](int64_t i) {
        const T *s = s0 + i * pitch, *d = d0 + i * pitch;
        const V before = L::load(s - step), after = L::load(s + step);
        return Across{smooth(before, L::load(s), after),
                      smooth(L::load(d - step), L::load(d), L::load(d + step)), after - before};
      };
      Across up = across(0), mid = across(1);
      for (int64_t i = 0; i < rows; ++i) {
        const Across down = across(i + 2);
        emit(i, x,
             smooth(up.smooth_of_difference, mid.smooth_of_difference, down.smooth_of_difference),
             V(down.smooth - up.smooth), smooth(up.difference, mid.difference, down.difference));
        up = mid, mid = down;
      }
    }
  }

 private:
  const SobelTiles& t_;
  const Slab& slab_;
  int64_t low_, high_;         // rows in the ring
  T *ring_, *smooth_, *differ_;
  T* zeros_;                   // stands for every row of zeros
  uint8_t* mark_[3];           // of each row in the ring, and of one more on each side
  uint8_t* still_;             // whether nothing changes around a row
  int at_[3];                  // where in the ring the planes around the current one are

  template <class V>
  static inline V smooth(V before, V at, V after) {
    return before + (at + at) + after;
  }

  int64_t clamp(int64_t y) const { return y < 0 ? 0 : y < t_.height ? y : t_.height - 1; }

  T* row(int64_t plane, int64_t i) const { return ring_ + (plane * t_.rows() + i) * t_.pitch; }

  const T* known(int64_t plane, int64_t i) const {
    return mark_[plane][i] == 0 ? zeros_ : row(plane, i);
  }

  template <class Fetch>
  void fetch_plane(int64_t z, Fetch&& fetch) {
    uint8_t* mark = mark_[z % 3];
    const int64_t rows = high_ - low_, step = t_.step, width = t_.width;
    fetch(z, low_, Rows<T>{row(z % 3, 0) + t_.left, mark, rows, width, t_.pitch});
    for (int64_t i = 0; i < rows; ++i) {
      if (mark[i] == 0) continue;
      T* const line = row(z % 3, i) + t_.left;
      for (int64_t x = 0; x < step; ++x) {
        line[x - step] = line[x];
        line[width + x] = line[width - step + x];
      }
    }
    mark[-1] = mark[0], mark[rows] = mark[rows - 1];
  }

  void find_still() {
    const uint8_t *a = mark_[at_[0]], *b = mark_[at_[1]], *c = mark_[at_[2]];
    uint8_t* __restrict still = still_;
    const int64_t rows = high_ - low_;
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t mark = b[i];
      const uint8_t differences = (a[i - 1] ^ mark) | (a[i] ^ mark) | (a[i + 1] ^ mark) |
                                  (b[i - 1] ^ mark) | (b[i + 1] ^ mark) |
                                  (c[i - 1] ^ mark) | (c[i] ^ mark) | (c[i + 1] ^ mark);
      still[i] = differences == 0 && mark != kMixed;
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
