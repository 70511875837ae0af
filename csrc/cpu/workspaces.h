// How each CPU kernel divides its workspace: the kernels and the size queries read it here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace egcnn {

// --- Sobel: rows of scratch, each of width + 2, that one thread needs to march over a plane ---
constexpr int64_t kSobelRows = 15;

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
