// How the consistency loss cuts a call into strips of rows, and where the stages keep their planes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/bits.h"
#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

constexpr int64_t kRing = 4;       // planes of samples in flight
constexpr int64_t kEarlyRing = 8;  // planes of targets and candidates, which more stages read
constexpr int64_t kReach = 4;      // rows around a strip that its stages read
constexpr int64_t kSlack = 128;    // elements beyond a plane that vectors may touch

// The neighbours of voxel i of n along an axis, with replicated borders.
static inline int64_t below(int64_t i) { return i > 0 ? i - 1 : 0; }
static inline int64_t above(int64_t i, int64_t n) { return i + 1 < n ? i + 1 : n - 1; }

// How a call is cut up. It depends only on sizes, since sums are computed strip by strip.
struct ConsistencyPlan {
  int64_t classes;  // of a volume, which is a sample or, in the sigmoid form, a region of it
  int64_t volumes;
  int64_t together;       // volumes that are processed at a time
  int64_t strip, strips;  // rows of a strip, strips of a plane
  int64_t rows;           // of a strip, including those around it
  int64_t plane;          // elements of these, and slack
  int64_t planes;         // of all strips of all volumes
  int64_t words, sets;    // words per row, words per set of classes
  // Whether the stage of the terms keeps where the edges are whose unscaled, squared gradient is
  // above `most`.
  bool mark_edges = false;
  int most = 0;

  // A thread marches through `at_once` volumes side by side.
  explicit ConsistencyPlan(const Consistency& p, int64_t at_once = 1) {
    const Size& size = p.size;
    classes = p.softmax ? size.channels : 1;
    volumes = size.batch * (p.softmax ? 1 : size.channels);
    // There is room for the fully drawn sample of only one volume.
    together = p.support_both ? 1 : volumes;
    // About 2^20 elements for the samples and gradients in flight.
    int64_t fit = (int64_t(1) << 20) / (2 * kRing * classes * at_once * size.width);
    fit = fit < 16 ? 16 : fit;
    strips = divide_up(size.height, fit);
    strip = divide_up(size.height, strips);
    rows = strip + 2 * kReach;
    plane = rows * size.width + kSlack;
    planes = volumes * strips * size.depth;
    words = divide_up(size.width, kWord);
    sets = divide_up(classes, kWord);
  }
};

// Bump allocator: hands out consecutive arrays, aligned to cache lines. Starting at null it only
// counts bytes.
class Arena {
 public:
  explicit Arena(void* first) : first_(static_cast<char*>(first)), next_(first_) {}

  template <class T>
  void take(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(next_);
    next_ += round_up(count * int64_t(sizeof(T)), kLine);
  }

  void skip(size_t bytes) { next_ += bytes; }

  size_t bytes() const { return size_t(next_ - first_); }

 private:
  char* first_;
  char* next_;
};

// The strip of a volume that a thread works on, with the rows around it. Stages index its planes by
// position from its first row, and never clip vectors at a row's end.
struct Strip {
  int64_t height, width, depth;  // of the volume
  int64_t volume = 0, batch = 0, channel = 0;
  int64_t begin = 0, end = 0;  // its rows
  int64_t base = 0;            // the first kept row, including those around it

  explicit Strip(const Size& size) : height(size.height), width(size.width), depth(size.depth) {}

  // `plane` is counted over all strips.
  void enter(const Consistency& p, const ConsistencyPlan& plan, int64_t plane) {
    const int64_t strip = plane / depth % plan.strips;
    volume = plane / depth / plan.strips;
    batch = p.softmax ? volume : volume / p.size.channels;
    channel = p.softmax ? 0 : volume % p.size.channels;
    begin = strip * plan.strip;
    end = begin + plan.strip < height ? begin + plan.strip : height;
    base = low(kReach);
  }

  int64_t z_of(int64_t plane) const { return plane % depth; }
  int64_t above_by(int64_t z, int64_t n) const { return z + n < depth ? z + n : depth - 1; }

  // The rows with `reach` more on each side are [low, high).
  int64_t low(int64_t reach) const { return begin > reach ? begin - reach : 0; }
  int64_t high(int64_t reach) const { return end + reach < height ? end + reach : height; }
  int64_t kept() const { return high(kReach) - base; }

  int64_t position(int64_t y) const { return (y - base) * width; }
  // The voxel of the volume at position 0 of plane z.
  int64_t voxel(int64_t z) const { return (z * height + base) * width; }
};

// Those of kGroup consecutive voxels whose bits are set. The values of a list of groups are packed,
// this group's from `index` on; a list ends with an empty group.
struct Group {
  int32_t first, index;
  uint32_t bits;
};

}  // namespace egcnn::EGCNN_ISA
