// How a volume is cut into slabs, each marched along z, and a thread's scratch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

// Rows whose gradient is computed at a time, for elements and for bits.
constexpr int64_t kSobelRun = 16, kSobelBitRun = 64;

// Rows whose marks are compared at a time.
constexpr int64_t kSobelMarks = 64;

// Elements, or words of bits, after the last row that vectors may touch.
constexpr int64_t kSobelSpill = 64, kSobelWordSpill = 8;

// Regions processed at a time, as the bits of a byte.
constexpr int64_t kSobelRegions = 8;

// Voxels per word of bits whose edges the word gives.
constexpr int64_t kSobelWord = 62;

struct SobelPlan {
  int64_t volumes, depth, height;
  int64_t step, width;   // elements from one voxel to the next along x, and of a whole row
  int64_t left, pitch;   // elements before a row's first in scratch, and from row to row
  int64_t tile, planes;  // rows and planes of a slab
  int64_t halo;          // rows that a slab reads beyond its own on each side
  int64_t extra;         // planes that a caller keeps in addition to the ring of three
  int64_t element;       // bytes
  int64_t regions = 0;   // kept as bits at a time, instead of the ring

  SobelPlan(const Size& size, const Tensor& x, int64_t halo, int64_t extra, int64_t element,
            int threads)
      : depth(size.depth), height(size.height), step(x.voxel_stride), width(size.width * step),
        halo(halo), extra(extra), element(element) {
    // channels_last_3d is one volume, whose neighbours along x are `step` elements apart.
    volumes = step > 1 ? size.batch : size.batch * size.channels;
    const int64_t line = kLine / element;
    left = round_up(step, line);
    // Pairs of whole vectors may be written without touching the next row.
    pitch = left + std::max(divide_up(width + step, line), divide_up(width, 2 * line) * 2) * line;
    // As many rows as fit in the second-level cache; enough slabs for an even distribution, but
    // none so thin that it mostly reads its neighbours' rows.
    constexpr int64_t kCache = 384 << 10, kThin = 8, kSlabsPerThread = 8;
    const int64_t fit = kCache / ((3 + extra) * pitch * element) - 2 * halo;
    const int64_t slabs = divide_up(kSlabsPerThread * threads, volumes);
    int64_t y_tiles = divide_up(height, std::max(fit, kThin));
    const int64_t z_tiles = std::min(divide_up(slabs, y_tiles), divide_up(depth, kThin));
    y_tiles = std::max(y_tiles, std::min(slabs / z_tiles, divide_up(height, kThin)));
    planes = divide_up(depth, z_tiles);
    tile = divide_up(height, y_tiles);
  }

  int64_t rows() const { return tile + 2 * halo; }

  // The first element of row y of plane z of a volume.
  int64_t start(int64_t volume, int64_t z, int64_t y) const {
    return ((volume * depth + z) * height + y) * width;
  }

  // Words of bits from row to row, and from plane to plane.
  int64_t row_words() const { return divide_up(width, kSobelWord); }
  int64_t plane_words() const { return (tile + 2) * row_words() + kSobelWordSpill; }

  // Bytes for one mark per row and two more, in whole vectors.
  int64_t marks() const { return round_up(rows(), kSobelMarks) + 2; }

  // A thread's scratch: elements of the ring and the extra planes, of a run's output and of a row
  // of zeros, or words of bits; then four times its marks.
  size_t bytes() const {
    const int64_t elements = ((3 + extra) * rows() + kSobelRun + 1) * pitch + 2 * kSobelSpill;
    const int64_t words =
        regions * 3 * plane_words() + kSobelBitRun * row_words() + kSobelWordSpill;
    return round_up(std::max(elements * element, words * 8) + 4 * marks() + kLine, kLine);
  }
};

static inline SobelPlan sobel_edges_plan(const SobelEdges& p) {
  const int64_t element = is_float(p.labels.dtype) ? accumulator_bytes(p.labels.dtype)
                          : p.threshold > 0        ? 2
                                                   : 1;
  // A label map has one channel for all regions.
  Size size = p.size;
  if (p.region_counts != nullptr) size.channels = 1;
  SobelPlan plan(size, p.labels, 1, 0, element, p.resources.threads);
  if (p.threshold == 0 && plan.step == 1) {
    plan.regions = p.region_counts == nullptr ? 1 : std::min(p.size.channels, kSobelRegions);
  }
  return plan;
}

static inline SobelPlan sobel_magnitude_plan(const SobelMagnitude& p) {
  return SobelPlan(p.size, p.x, 1, 0, accumulator_bytes(p.x.dtype), p.resources.threads);
}

// In addition to the ring, the planes of SobelGather.
static inline SobelPlan sobel_magnitude_backward_plan(const SobelMagnitudeBackward& p) {
  return SobelPlan(p.size, p.x, 2, 5, accumulator_bytes(p.x.dtype), p.resources.threads);
}

}  // namespace egcnn::EGCNN_ISA
