// How each CPU kernel divides its workspace: the kernels and the size queries read it here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn {

// --- Sobel: rows of scratch, each of width + 2, that one thread needs to march over a plane ---
constexpr int64_t kSobelRows = 15;

// --- Edge gate: voxels that are worked on at a time, and elements of scratch a thread ---
constexpr int64_t kBlock = 256;

static inline int64_t edge_gate_scratch(int64_t ce, int64_t cm, int64_t gates) {
  return (ce + cm + gates + (ce > cm ? ce : cm)) * kBlock;
}

static inline int64_t edge_gate_backward_scratch(int64_t ce, int64_t cm, int64_t gates) {
  return (2 * ce + 2 * cm + 2 * gates + (ce > cm ? ce : cm)) * kBlock;
}

// Partial sums of the weight gradients: enough to share out, within 16 MB where that is possible.
static inline int64_t edge_gate_chunks(int64_t ce, int64_t cm, int64_t gates) {
  const int64_t sums = gates * (ce + cm + 1);
  const int64_t fit = (int64_t(1) << 21) / (sums > 0 ? sums : 1);
  return fit < 16 ? 16 : fit > 128 ? 128 : fit;
}

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
