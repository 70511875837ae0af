// How each CPU kernel divides its workspace: the kernels and the size queries read it here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn {

// --- Sobel: rows of scratch, each of width + 2, that one thread needs to march over a plane ---
constexpr int64_t kSobelRows = 15;

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
// Work goes in blocks of voxels. A block's inputs are the rows of e, of m and one of ones, whose
// weight is the bias; `rows` more hold what is computed of them.
struct EdgeGatePlan {
  int64_t inputs;   // rows
  int64_t block;    // voxels of a block, at most
  int64_t blocks;   // of a sample
  int64_t jobs;     // blocks of all samples
  int64_t pitch;    // elements from row to row; not a power of two, which would crowd the caches
  int64_t staging;  // offset of a vector of voxels of all channels, and one vector
  int64_t scratch;  // elements a thread
  int64_t weights;  // elements of the weights and biases of all gates
  int64_t chunks;   // of jobs, each with its own sums of the weights' gradients

  EdgeGatePlan(const Size& size, int64_t main_channels, int64_t gates, bool backward) {
    const int64_t ce = size.channels, cm = main_channels, voxels = size.voxels();
    inputs = ce + cm + 1;
    const int64_t rows = inputs + gates + 1 + (backward ? ce : 0);
    // What the second-level cache holds beside the rest, but enough blocks to share out.
    const int64_t fit = (int64_t(96) << 10) / rows, share = (size.batch * voxels + 15) / 16;
    const int64_t wanted = fit < share ? fit : share;
    block = ((wanted < 1024 ? wanted : 1024) + 63) / 64 * 64;
    if (block == 0) block = 64;
    blocks = (voxels + block - 1) / block;
    jobs = size.batch * blocks;
    pitch = block + 16;
    staging = rows * pitch;
    scratch = staging + 16 * ((ce > cm ? ce : cm) + 1);
    weights = (gates * inputs + 15) / 16 * 16;
    // Within 4 MB where that is possible.
    const int64_t few = (int64_t(1) << 19) / (weights > 0 ? weights : 1);
    chunks = few < 8 ? 8 : few > 64 ? 64 : few;
    if (chunks > jobs) chunks = jobs;
  }
};

// --- Consistency: arrays for one sample ---
// Marks an edge of the hard sample where the truth has none; no squared gradient is so large.
constexpr uint16_t kHardOnly = 0xFFFF;

template <class Acc>
struct ConsistencyWorkspace {
  double* sums;     // (C, D) mismatch of each plane
  int64_t* counts;  // (C, D) edges of each plane
  Acc* soft;        // (C, D, H, W)
  Acc* grad;        // (C, D, H, W) of the sample, then of the logits
  uint16_t* edges;  // (C, D, H, W) 0, or the truth's squared gradient, or kHardOnly
  uint8_t* hard;    // (C, D, H, W)
  uint8_t* band;    // (D, H, W)
  Acc* rows;        // kSobelRows rows a thread
  int64_t pitch;

  ConsistencyWorkspace(const Size& size, void* workspace) {
    const int64_t planes = size.channels * size.depth, voxels = size.channels * size.voxels();
    pitch = size.width + 2;
    char* next = static_cast<char*>(workspace);
    take(next, sums, planes);
    take(next, counts, planes);
    take(next, soft, voxels);
    take(next, grad, voxels);
    take(next, edges, voxels);
    take(next, hard, voxels);
    take(next, band, size.voxels());
    take(next, rows, 0);
    used = next - static_cast<char*>(workspace);
  }

  Acc* scratch(int64_t thread) const { return rows + thread * kSobelRows * pitch; }

  size_t bytes(int threads) const { return used + threads * kSobelRows * pitch * sizeof(Acc); }

 private:
  size_t used;

  template <class T>
  static void take(char*& next, T*& array, int64_t count) {
    array = reinterpret_cast<T*>(next);
    next += (count * sizeof(T) + 63) / 64 * 64;
  }
};

}  // namespace egcnn
