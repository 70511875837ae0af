// How the consistency loss cuts a call into strips of rows, and its arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn::EGCNN_ISA {

constexpr int64_t kRing = 4;       // planes of samples in flight
constexpr int64_t kEarlyRing = 8;  // planes of what comes before, which more stages look at
constexpr int64_t kReach = 4;      // rows around a strip that its stages look at
constexpr int64_t kSlack = 128;    // elements beyond a plane that vectors may touch
constexpr int64_t kGroup = 16;
constexpr int64_t kVoxels = 256;  // sampled at a time
constexpr int64_t kEdges = 512;   // listed before they are compared

// Those of kGroup voxels in a row whose bits are set. Values of a list of groups' voxels lie one
// after the other, this group's from `index` on; a list ends with a group of none.
struct Group {
  int32_t first, index;
  uint32_t bits;
};

// How a call is cut up: by sizes alone, since sums are made strip by strip.
struct ConsistencyPlan {
  int64_t classes;  // of a volume, which is a sample or, in the sigmoid form, a region of it
  int64_t volumes;
  int64_t together;  // volumes that are worked on at a time
  int64_t strip, strips;  // rows of a strip, strips of a plane
  int64_t planes;         // of all strips of all volumes
  int64_t words, sets;    // of 64 voxels to a row, of 64 classes
  bool wide;              // classes need more than a byte

  explicit ConsistencyPlan(const Consistency& p) {
    const Size& size = p.size;
    classes = p.softmax ? size.channels : 1;
    volumes = size.batch * (p.softmax ? 1 : size.channels);
    // Where a sample is drawn everywhere there is room for one volume's.
    together = p.support_both ? 1 : volumes;
    // The samples and gradients in flight are to have about 2^20 elements.
    int64_t fit = (int64_t(1) << 20) / (2 * kRing * classes * size.width);
    fit = fit < 16 ? 16 : fit;
    strips = (size.height + fit - 1) / fit;
    strip = (size.height + strips - 1) / strips;
    planes = volumes * strips * size.depth;
    words = (size.width + 63) / 64;
    sets = (classes + 63) / 64;
    wide = classes > 255;
  }
};

// Arrays one after the other, each at a cache line.
class Arrays {
 public:
  explicit Arrays(void* first) : first_(static_cast<char*>(first)), next_(first_) {}

  template <class T>
  void take(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(next_);
    next_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
  }

  size_t bytes() const { return size_t(next_ - first_); }

 private:
  char* first_;
  char* next_;
};

// One thread's arrays. A plane is one of a strip with the rows around, by position from its first
// row; a row has room for whole vectors.
template <class Acc, class Code>
struct ConsistencyScratch {
  int64_t rows, plane, row, groups;
  Code *truth, *hard;                    // (kEarlyRing, plane), (kRing, plane)
  uint64_t *across, *along, *candidate;  // (kEarlyRing, rows, words)
  uint8_t *has_candidates, *any_of_three;  // (kEarlyRing, rows), (rows)
  uint64_t* around;                      // (words)
  uint64_t* present;                     // (kEarlyRing, rows, sets)
  int32_t *class_rows, *class_count;     // (classes, rows), (classes)
  Group* band;                           // (kRing, groups)
  int32_t* band_row;                     // (kRing, rows + 1)
  Acc *soft, *dense, *grad;              // (kRing, classes, plane) where they are needed
  int8_t *truth_smooth, *truth_differ, *hard_smooth, *hard_differ;  // (rows, row)
  Acc *soft_smooth, *soft_differ;                                   // (rows, row)
  Group* edge_group;                                      // (kEdges), `first` from the row's start
  int32_t* edge_row;                                      // (kEdges)
  Acc *edge_sample, *edge_truth;                          // (3, kEdges)
  uint32_t* noise;                                        // (4, kVoxels)
  Acc *noisy, *best, *sum;                                // (classes, kVoxels), (kVoxels)
  int32_t *voxel, *code;                                  // (kVoxels)

  ConsistencyScratch(const Consistency& p, const ConsistencyPlan& plan, bool backward,
                     Arrays& arrays) {
    rows = plan.strip + 2 * kReach;
    plane = rows * p.size.width + kSlack;
    row = plan.words * 64 + kSlack;
    groups = rows * ((p.size.width + kGroup - 1) / kGroup) + 1;
    const int64_t samples = kRing * plan.classes * plane;
    arrays.take(truth, kEarlyRing * plane);
    arrays.take(hard, kRing * plane);
    arrays.take(across, kEarlyRing * rows * plan.words);
    arrays.take(along, kEarlyRing * rows * plan.words);
    arrays.take(candidate, kEarlyRing * rows * plan.words);
    arrays.take(has_candidates, kEarlyRing * rows);
    arrays.take(any_of_three, rows);
    arrays.take(around, plan.words);
    arrays.take(present, kEarlyRing * rows * plan.sets);
    arrays.take(class_rows, plan.classes * rows);
    arrays.take(class_count, plan.classes);
    arrays.take(band, kRing * groups);
    arrays.take(band_row, kRing * (rows + 1));
    arrays.take(soft, backward || !p.hard ? samples : 0);
    arrays.take(dense, p.hard ? 0 : samples);
    arrays.take(grad, backward ? samples : 0);
    arrays.take(truth_smooth, rows * row);
    arrays.take(truth_differ, rows * row);
    arrays.take(hard_smooth, rows * row);
    arrays.take(hard_differ, rows * row);
    arrays.take(soft_smooth, p.hard ? 0 : rows * row);
    arrays.take(soft_differ, p.hard ? 0 : rows * row);
    arrays.take(edge_group, kEdges);
    arrays.take(edge_row, kEdges);
    arrays.take(edge_sample, 3 * kEdges);
    arrays.take(edge_truth, 3 * kEdges);
    arrays.take(noise, 4 * kVoxels);
    arrays.take(noisy, plan.classes * kVoxels);
    arrays.take(best, kVoxels);
    arrays.take(sum, kVoxels);
    arrays.take(voxel, kVoxels);
    arrays.take(code, kVoxels);
  }
};

template <class Acc, class Code>
struct ConsistencyWorkspace {
  double* sums;         // (planes, classes) mismatch
  int64_t* counts;      // (planes, classes) edges
  Acc* scales;          // (volumes, classes) from the gradient of a mismatch to that of the loss
  int64_t *next, *end;  // (threads) the planes left to each
  Code* drawn;          // (D, H, W) the hard sample of a volume where it is drawn everywhere
  Arrays arrays;

  ConsistencyWorkspace(const Consistency& p, const ConsistencyPlan& plan, bool backward)
      : arrays(p.resources.workspace) {
    arrays.take(sums, backward ? 0 : plan.planes * plan.classes);
    arrays.take(counts, backward ? 0 : plan.planes * plan.classes);
    arrays.take(scales, backward ? plan.volumes * plan.classes : 0);
    arrays.take(next, p.resources.threads);
    arrays.take(end, p.resources.threads);
    arrays.take(drawn, p.support_both ? p.size.voxels() + kSlack : 0);
  }

  ConsistencyScratch<Acc, Code> scratch(const Consistency& p, const ConsistencyPlan& plan,
                                        bool backward, int thread) const {
    Arrays rest = arrays;
    for (int i = 0; i < thread; ++i) ConsistencyScratch<Acc, Code>(p, plan, backward, rest);
    return ConsistencyScratch<Acc, Code>(p, plan, backward, rest);
  }
};

template <class Acc>
static inline size_t consistency_bytes(const Consistency& p, bool backward) {
  if (p.size.empty()) return 0;
  const ConsistencyPlan plan(p);
  const auto bytes = [&](auto code) {
    using Code = decltype(code);
    Arrays arrays = ConsistencyWorkspace<Acc, Code>(p, plan, backward).arrays;
    for (int i = 0; i < p.resources.threads; ++i) {
      ConsistencyScratch<Acc, Code>(p, plan, backward, arrays);
    }
    return arrays.bytes();
  };
  return plan.wide ? bytes(uint32_t()) : bytes(uint8_t());
}

}  // namespace egcnn::EGCNN_ISA
