// How a volume is cut into slabs that are marched along z, and a thread's scratch: for the kernels
// and for the size queries of dispatch.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn {

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

}  // namespace egcnn
