// How each CPU kernel divides its workspace: the kernels and the size queries read it here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn {

// --- Sobel: how a volume is cut into slabs that are marched along z, and a thread's scratch ---
// Rows whose gradient is computed at a time.
constexpr int64_t kSobelRun = 16;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct SobelTiles {
  int64_t volumes, depth, height;
  int64_t step, width;   // elements from one voxel to the next along x, and of a whole row
  int64_t left, pitch;   // elements before a row's first in scratch, and from row to row
  int64_t tile, planes;  // rows and planes of a slab
  int64_t halo;          // rows that a slab reads beyond its own on each side
  int64_t extra;         // planes that a caller keeps beside the ring of three
  int64_t element;       // bytes

  SobelTiles(const Size& size, const Tensor& x, int64_t halo, int64_t extra, int64_t element,
             int threads)
      : depth(size.depth), height(size.height), step(x.voxel_stride),
        width(size.width * step), halo(halo), extra(extra), element(element) {
    // channels_last_3d is one volume, whose neighbours along x are `step` elements apart.
    volumes = step > 1 ? size.batch : size.batch * size.channels;
    const int64_t line = 64 / element;
    left = ceil_div(step, line) * line;
    pitch = ceil_div(left + width + step, line) * line;
    // As many rows as stay in the second cache; enough slabs to share out evenly, but none so thin
    // that it mostly reads its neighbours' rows.
    constexpr int64_t kCache = 384 << 10, kThin = 8;
    const int64_t fit = kCache / ((3 + extra) * pitch * element) - 2 * halo;
    const int64_t wanted = ceil_div(8 * threads, volumes);
    int64_t y_tiles = ceil_div(height, std::max(fit, kThin));
    const int64_t z_tiles = std::min(ceil_div(wanted, y_tiles), ceil_div(depth, kThin));
    y_tiles = std::max(y_tiles, std::min(wanted / z_tiles, ceil_div(height, kThin)));
    planes = ceil_div(depth, z_tiles);
    tile = ceil_div(height, y_tiles);
  }

  int64_t rows() const { return tile + 2 * halo; }

  // A thread's scratch: elements of the ring and the extra planes, of both rows along z of a run,
  // of its output and of a row of zeros; then marks, four bytes a row.
  size_t bytes() const {
    const int64_t elements =
        ((3 + extra) * rows() + 2 * (kSobelRun + 2) + kSobelRun + 1) * pitch + 3 * 64;
    return ceil_div(elements * element + 4 * (rows() + 2) + 64, 64) * 64;
  }
};

static inline SobelTiles sobel_edges_tiles(const SobelEdges& p) {
  const int64_t element = p.labels.dtype == DType::f64    ? 8
                          : p.labels.dtype <= DType::bf16 ? 4
                          : p.threshold > 0               ? 2
                                                          : 1;
  // A label map has one channel for all regions.
  Size size = p.size;
  if (p.region_counts != nullptr) size.channels = 1;
  return SobelTiles(size, p.labels, 1, 0, element, p.resources.threads);
}

static inline SobelTiles sobel_magnitude_tiles(const SobelMagnitude& p) {
  return SobelTiles(p.size, p.x, 1, 0, p.x.dtype == DType::f64 ? 8 : 4, p.resources.threads);
}

// Beside the ring: the gradient with respect to three components, and two sums of three planes.
static inline SobelTiles sobel_magnitude_backward_tiles(const SobelMagnitudeBackward& p) {
  return SobelTiles(p.size, p.x, 2, 9, p.x.dtype == DType::f64 ? 8 : 4, p.resources.threads);
}

// --- Edge gate ---
// Work goes in blocks of voxels, with a row of each for every input: the channels of e, those of m,
// and one of ones, whose weight is the bias.
struct EdgeGatePlan {
  int64_t inputs;
  int64_t block;    // voxels of a block, at most; a multiple of 64
  int64_t blocks;   // of a sample
  int64_t jobs;     // blocks of all samples
  int64_t pitch;    // elements from row to row; a power of two would crowd few sets of the caches
  int64_t staging;  // offset of room for 16 voxels and 16 elements of scratch
  int64_t scratch;  // elements a thread
  int64_t weights;  // elements of the weights and biases of all gates
  int64_t chunks;   // of jobs, each with its own sums of the weights' gradients

  EdgeGatePlan(const Size& size, int64_t main_channels, int64_t gates, bool backward) {
    const int64_t ce = size.channels, cm = main_channels, voxels = size.voxels();
    inputs = ce + cm + 1;
    const int64_t rows = inputs + gates + (backward ? ce : 0);
    // What the second-level cache holds beside the next block, but enough blocks to share out.
    const int64_t fit = (int64_t(96) << 10) / rows, part = (size.batch * voxels + 31) / 32;
    const int64_t wanted = fit < part ? fit : part;
    block = wanted > 1024 ? 1024 : wanted < 1 ? 64 : (wanted + 63) / 64 * 64;
    blocks = (voxels + block - 1) / block;
    jobs = size.batch * blocks;
    pitch = block + 16;
    staging = rows * pitch;
    scratch = staging + 16 * ((ce > cm ? ce : cm) + 1);
    weights = (gates * inputs + 15) / 16 * 16;
    // Within 8 MB where that is possible.
    const int64_t few = (int64_t(1) << 20) / (weights > 0 ? weights : 1);
    const int64_t most = few < 16 ? 16 : few > 128 ? 128 : few;
    chunks = jobs < most ? jobs : most;
  }
};

// --- Consistency: planes of strips of rows on their way through the stages ---
constexpr int64_t kRing = 4;      // planes of samples in flight
constexpr int64_t kEarlyRing = 8;  // planes of what comes before, which more stages look at
constexpr int64_t kReach = 4;      // rows around a strip that its stages look at
constexpr int64_t kSlack = 128;    // elements beyond a plane that vectors may touch
constexpr int64_t kLanes = 16;
constexpr int64_t kVoxels = 256;  // sampled at a time
constexpr int64_t kEdges = 512;   // compared at a time

// How a call is cut up: by sizes alone, since sums are made strip by strip.
struct ConsistencyPlan {
  int64_t classes;  // of a volume, which is a sample or, in the sigmoid form, a region of it
  int64_t volumes;
  int64_t strip, strips;  // rows of a strip, strips of a plane
  int64_t planes;         // of all strips of all volumes
  int64_t words, sets;    // of 64 voxels to a row, of 64 classes
  bool wide;              // classes need more than a byte

  explicit ConsistencyPlan(const Consistency& p) {
    const Size& size = p.size;
    classes = p.softmax ? size.channels : 1;
    volumes = size.batch * (p.softmax ? 1 : size.channels);
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
  int64_t rows, plane, row, edges;
  Code *truth, *hard;                    // (kEarlyRing, plane), (kRing, plane)
  uint64_t *across, *along, *candidate;  // (kEarlyRing, rows, words)
  uint8_t *has_candidates, *any_of_three;  // (kEarlyRing, rows), (rows)
  uint64_t* around;                      // (words)
  uint64_t *present, *near;              // (kEarlyRing, rows, sets), (rows, sets)
  int32_t *band, *band_row;              // (kRing, plane), (kRing, rows + 1)
  Acc *soft, *dense, *grad;              // (kRing, classes, plane) where they are needed
  int8_t *byte_columns, *truth_gradient, *hard_gradient;  // (3, row)
  Acc *columns, *soft_gradient;                           // (3, row)
  uint8_t* any;                                           // (row)
  int32_t *edge_x, *edge_y;                               // (edges)
  Acc *edge_gradient, *edge_truth;                        // (3, edges)
  uint32_t* noise;                                        // (4, kVoxels)
  Acc *noisy, *best, *sum;                                // (classes, kVoxels), (kVoxels)
  int32_t* code;                                          // (kVoxels)
  Acc* out;                                               // (classes, row) of the output's type

  ConsistencyScratch(const Consistency& p, const ConsistencyPlan& plan, bool backward,
                     Arrays& arrays) {
    rows = plan.strip + 2 * kReach;
    plane = rows * p.size.width + kSlack;
    row = plan.words * 64 + kSlack;
    edges = kEdges + kLanes + row;
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
    arrays.take(near, rows * plan.sets);
    arrays.take(band, kRing * plane);
    arrays.take(band_row, kRing * (rows + 1));
    arrays.take(soft, backward || !p.hard ? samples : 0);
    arrays.take(dense, p.hard ? 0 : samples);
    arrays.take(grad, backward ? samples : 0);
    arrays.take(byte_columns, 3 * row);
    arrays.take(truth_gradient, 3 * row);
    arrays.take(hard_gradient, 3 * row);
    arrays.take(columns, 3 * row);
    arrays.take(soft_gradient, 3 * row);
    arrays.take(any, row);
    arrays.take(edge_x, edges);
    arrays.take(edge_y, edges);
    arrays.take(edge_gradient, 3 * edges);
    arrays.take(edge_truth, 3 * edges);
    arrays.take(noise, 4 * kVoxels);
    arrays.take(noisy, plan.classes * kVoxels);
    arrays.take(best, kVoxels);
    arrays.take(sum, kVoxels);
    arrays.take(code, kVoxels);
    arrays.take(out, plan.classes * row);
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

  ConsistencyWorkspace(const Consistency& p, const ConsistencyPlan& plan)
      : arrays(p.resources.workspace) {
    arrays.take(sums, plan.planes * plan.classes);
    arrays.take(counts, plan.planes * plan.classes);
    arrays.take(scales, plan.volumes * plan.classes);
    arrays.take(next, p.resources.threads);
    arrays.take(end, p.resources.threads);
    arrays.take(drawn, p.both ? p.size.voxels() + kSlack : 0);
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
    Arrays arrays = ConsistencyWorkspace<Acc, Code>(p, plan).arrays;
    for (int i = 0; i < p.resources.threads; ++i) {
      ConsistencyScratch<Acc, Code>(p, plan, backward, arrays);
    }
    return arrays.bytes();
  };
  return plan.wide ? bytes(uint32_t()) : bytes(uint8_t());
}

}  // namespace egcnn
