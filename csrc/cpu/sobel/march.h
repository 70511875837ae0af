// The 3D Sobel operator over a slab of a volume, marched along z: each input row is loaded once
// into a ring of three planes, and the gradient is computed a few rows at a time. Rows with a
// constant neighbourhood are detected by their marks and skipped.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../../math/common.h"
#include "../../math/sobel.h"
#include "../../ops.h"
#include "../simd/isa.h"
#include "../simd/vectors.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

template <int bytes>
using UInt = std::conditional_t<
    bytes == 8, uint64_t,
    std::conditional_t<bytes == 4, uint32_t, std::conditional_t<bytes == 2, uint16_t, uint8_t>>>;

// Rows [y0, y1) of planes [z0, z1) of one volume.
struct Slab {
  int64_t volume, z0, z1, y0, y1;
};

// Calls body(slab, scratch) for every slab, distributed over the threads.
template <class Body>
static inline void for_slabs(const SobelPlan& plan, const Resources& resources, Body&& body) {
  const int64_t y_tiles = divide_up(plan.height, plan.tile);
  const int64_t z_tiles = divide_up(plan.depth, plan.planes);
  const int64_t slabs = plan.volumes * z_tiles * y_tiles;
#pragma omp parallel num_threads(resources.threads) if (slabs > 1)
  {
    char* scratch = static_cast<char*>(resources.workspace) + omp_get_thread_num() * plan.bytes();
#pragma omp for schedule(dynamic, 1)
    for (int64_t job = 0; job < slabs; ++job) {
      const int64_t z = job / y_tiles % z_tiles * plan.planes, y = job % y_tiles * plan.tile;
      body(Slab{job / y_tiles / z_tiles, z, std::min(z + plan.planes, plan.depth), y,
                std::min(y + plan.tile, plan.height)},
           scratch);
    }
  }
}

// The mark of a row with several values, or with one value that a mark cannot hold.
constexpr uint8_t kMixed = 255;

// Rows to fill in, and their marks: kMixed, or the value of the whole row. A row of zeros need not
// be filled in.
template <class T>
struct Rows {
  T* data;
  uint8_t* marks;
  int64_t count, width, pitch;
};

// The marks of a slab's rows, from which the march detects constant neighbourhoods.
class MarkedRows {
 public:
  // Calls body(y, rows, constant) for runs of at most `most` rows of [y0, y1); the gradient of rows
  // with a constant neighbourhood is 0.
  template <class Body>
  void for_runs(int64_t y0, int64_t y1, Body&& body) const {
    for (int64_t y = y0; y < y1;) {
      const bool constant = constant_[y - low_];
      int64_t end = y + 1;
      while (end < y1 && end < y + most_ && bool(constant_[end - low_]) == constant) ++end;
      body(y, end - y, constant);
      y = end;
    }
  }

 protected:
  const SobelPlan& plan_;
  const Slab& slab_;
  int64_t low_, high_;  // rows that are kept of a plane
  int at_[3];           // ring slots of the planes before, at and after the current one

  MarkedRows(const SobelPlan& plan, const Slab& slab, int64_t most)
      : plan_(plan), slab_(slab), low_(std::max<int64_t>(slab.y0 - plan.halo, 0)),
        high_(std::min(slab.y1 + plan.halo, plan.height)), most_(most) {}

  void place_marks(uint8_t* marks) {
    for (int i = 0; i < 3; ++i) mark_[i] = marks + i * plan_.marks() + 1;
    constant_ = marks + 3 * plan_.marks() + 1;
  }

  const uint8_t* marks(int plane) const { return mark_[plane]; }

  // For each plane z in turn: calls load(z, marks) for each adjacent plane not loaded yet, into
  // slot z % 3 of the ring, then plane(z). Returns false as soon as a load does.
  template <class Load, class Plane>
  bool run(Load&& load, Plane&& plane) {
    int64_t loaded = std::max<int64_t>(slab_.z0 - 1, 0);
    for (int64_t z = slab_.z0; z < slab_.z1; ++z) {
      for (; loaded <= z + 1 && loaded < plan_.depth; ++loaded) {
        uint8_t* mark = mark_[loaded % 3];
        if (!load(loaded, mark)) return false;
        mark[-1] = mark[0], mark[high_ - low_] = mark[high_ - low_ - 1];
      }
      at_[0] = (z > 0 ? z - 1 : 0) % 3;
      at_[1] = z % 3;
      at_[2] = (z + 1 < plan_.depth ? z + 1 : z) % 3;
      mark_constant_rows();
      plane(z);
    }
    return true;
  }

 private:
  int64_t most_;
  uint8_t* mark_[3];   // of each row, with one more on each side
  uint8_t* constant_;  // whether a row's neighbourhood is constant

  void mark_constant_rows() {
    const uint8_t *a = mark_[at_[0]], *b = mark_[at_[1]], *c = mark_[at_[2]];
    uint8_t* __restrict constant = constant_;
    for (int64_t first = 0; first < high_ - low_; first += kSobelMarks) {
      for (int64_t i = first; i < first + kSobelMarks; ++i) {
        const uint8_t mark = b[i];
        const uint8_t differences = (a[i - 1] ^ mark) | (a[i] ^ mark) | (a[i + 1] ^ mark) |
                                    (b[i - 1] ^ mark) | (b[i + 1] ^ mark) | (c[i - 1] ^ mark) |
                                    (c[i] ^ mark) | (c[i + 1] ^ mark);
        constant[i] = differences == 0 && mark != kMixed;
      }
    }
  }
};

// Fills in the voxels beyond a row's ends with its end voxels, times `sign`.
template <class T>
static inline void extend(T* row, int64_t width, int64_t step, T sign) {
  if (step == 1) {  // a loop over one voxel would dominate the time
    row[-1] = sign * row[0];
    row[width] = sign * row[width - 1];
    return;
  }
  for (int64_t x = 0; x < step; ++x) {
    row[x - step] = sign * row[x];
    row[width + x] = sign * row[width - step + x];
  }
}

template <class T>
class SobelMarch : public MarkedRows {
  using V = Vector<T>;
  static constexpr int64_t lanes = kLanes<T>;

 public:
  SobelMarch(const SobelPlan& plan, const Slab& slab, char* scratch)
      : MarkedRows(plan, slab, kSobelRun) {
    T* rows = align_up<T>(scratch);
    ring_ = rows;
    extra = ring_ + 3 * plan.rows() * plan.pitch;
    zeros_ = extra + plan.extra * plan.rows() * plan.pitch;
    std::fill(zeros_, zeros_ + plan.pitch + kSobelSpill, T(0));
    output = zeros_ + plan.pitch + kSobelSpill;
    place_marks(reinterpret_cast<uint8_t*>(output + kSobelRun * plan.pitch + kSobelSpill));
  }

  T* output;  // kSobelRun rows and a vector, for use by emit()
  T* extra;   // the extra planes, of plan.rows() rows

  // Calls load(z, y, rows) to fill rows from y on of each plane around z, then plane(z), which may
  // call gradient(). Borders are replicated.
  template <class Load, class Plane>
  void run(Load&& load, Plane&& plane) {
    MarkedRows::run(
        [&](int64_t z, uint8_t* marks) {
          load_plane(z, marks, load);
          return true;
        },
        plane);
  }

  // Calls emit(i, x, gz, gy, gx) for each vector from x on of row y + i. A later vector may
  // overwrite what an earlier one wrote past the end of its row. value(lanes) maps the ring's
  // elements to those that are differentiated.
  template <class Value, class Emit>
  void gradient(int64_t y, int64_t rows, Value value, Emit emit) const {
    if constexpr (kHasShift<T>) {
      if (plan_.step == 1) return gradient<2, true>(y, rows, value, emit);
    }
    gradient<1, false>(y, rows, value, emit);
  }

 private:
  T* ring_;
  T* zeros_;  // used for every row of zeros

  // Processes columns of kBlock vectors. `adjacent` tells whether neighbours along x are adjacent
  // in memory.
  template <int kBlock, bool adjacent, class Value, class Emit>
  __attribute__((noinline)) void gradient(int64_t y, int64_t rows, Value value, Emit emit) const {
    const int64_t step = plan_.step, left = plan_.left;
    const T* around[kSobelRun + 2][3];
    for (int64_t i = 0; i < rows + 2; ++i) {
      const int64_t at = clamp(y + i - 1) - low_;
      for (int j = 0; j < 3; ++j) around[i][j] = known(at_[j], at) + left;
    }
    struct Along {
      V smooth, difference;
    };
    struct Across {
      V smooth, smooth_of_difference, difference;

      void set(const Along& before, const Along& at, const Along& after) {
        smooth = math::smooth(before.smooth, at.smooth, after.smooth);
        smooth_of_difference = math::smooth(before.difference, at.difference, after.difference);
        difference = after.smooth - before.smooth;
      }
    };
    const auto along = [=](const T* const* planes, int64_t x) {
      const V a = value(load_vector(planes[0] + x)), b = value(load_vector(planes[1] + x)),
              c = value(load_vector(planes[2] + x));
      return Along{V(math::smooth(a, b, c)), V(c - a)};
    };
    const auto across = [=](const T* const* planes, int64_t x, Across* result) {
      if constexpr (adjacent) {
        Along column[kBlock + 2];
        for (int k = 0; k < kBlock + 2; ++k) column[k] = along(planes, x + (k - 1) * lanes);
        for (int k = 0; k < kBlock; ++k) {
          const Along &before = column[k], &at = column[k + 1], &after = column[k + 2];
          result[k].set(
              {from_last(before.smooth, at.smooth), from_last(before.difference, at.difference)},
              at,
              {from_second(at.smooth, after.smooth), from_second(at.difference, after.difference)});
        }
      } else {
        result->set(along(planes, x - step), along(planes, x), along(planes, x + step));
      }
    };
    // From right to left, so that overwriting is in order.
    constexpr int64_t kColumn = kBlock * lanes;
    for (int64_t x = (plan_.width - 1) / kColumn * kColumn; x >= 0; x -= kColumn) {
      Across up[kBlock], mid[kBlock];
      across(around[0], x, up);
      across(around[1], x, mid);
      for (int64_t i = 0; i < rows; ++i) {
        Across down[kBlock];
        across(around[i + 2], x, down);
        for (int k = 0; k < kBlock; ++k) {
          emit(i, x + k * lanes,
               math::smooth(up[k].smooth_of_difference, mid[k].smooth_of_difference,
                            down[k].smooth_of_difference),
               V(down[k].smooth - up[k].smooth),
               math::smooth(up[k].difference, mid[k].difference, down[k].difference));
          up[k] = mid[k], mid[k] = down[k];
        }
      }
    }
  }

  int64_t clamp(int64_t y) const { return y < 0 ? 0 : y < plan_.height ? y : plan_.height - 1; }

  T* row(int64_t plane, int64_t i) const {
    return ring_ + (plane * plan_.rows() + i) * plan_.pitch;
  }

  const T* known(int64_t plane, int64_t i) const {
    return marks(plane)[i] == 0 ? zeros_ : row(plane, i);
  }

  template <class Load>
  void load_plane(int64_t z, uint8_t* mark, Load&& load) {
    const int64_t rows = high_ - low_, step = plan_.step, width = plan_.width;
    load(z, low_, Rows<T>{row(z % 3, 0) + plan_.left, mark, rows, width, plan_.pitch});
    for (int64_t i = 0; i < rows; ++i) {
      if (mark[i] == 0) continue;
      extend<T>(row(z % 3, i) + plan_.left, width, step, 1);
    }
  }
};

// Magnitudes of unscaled gradients, from the sums of their squares.
template <class T>
static inline Vector<T> magnitudes(Vector<T> squared) {
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    squared[i] = math::sobel_magnitude(T(squared[i]));
  }
  return squared;
}

}  // namespace egcnn::EGCNN_ISA
