// How the edge gate cuts a call into blocks, and its scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "../ops.h"

namespace egcnn::EGCNN_ISA {

// Work goes in blocks of voxels, with a row of each for every input: e's channels and m's.
struct EdgeGatePlan {
  bool brings;      // the products bring the next block's rows, for which there is room
  int64_t inputs;
  int64_t block;    // voxels of a block, at most; a multiple of 64
  int64_t blocks;   // of a sample
  int64_t jobs;     // blocks of all samples
  int64_t pitch;    // elements from row to row; a power of two would crowd few sets of the caches
  int64_t sums;     // offset of the sums' rows in scratch
  int64_t staging;  // offset of room for 16 voxels and a line of scratch
  int64_t scratch;  // elements a thread
  int64_t weights;  // elements of the weights and biases of all gates
  int64_t chunks;   // of jobs, each with its own sums of the weights' gradients

  explicit EdgeGatePlan(const EdgeGate& p)
      : EdgeGatePlan(p.size, p.main_channels, p.gates, 0, p.gates > 1 && in_rows({&p.e, &p.m})) {}

  explicit EdgeGatePlan(const EdgeGateBackward& p)
      : EdgeGatePlan(p.size, p.main_channels, p.gates, p.size.channels,
                     p.gates > 1 && in_rows({&p.e, &p.m, &p.grad})) {}

 private:
  // Whether tensors consist of rows as the blocks have them, in the type of their sums.
  static bool in_rows(std::initializer_list<const Tensor*> tensors) {
    const DType dtype = (*tensors.begin())->dtype;
    for (const Tensor* t : tensors) {
      if (t->dtype != dtype || dtype > DType::f32 || t->voxel_stride != 1) return false;
    }
    return true;
  }

  EdgeGatePlan(const Size& size, int64_t main_channels, int64_t gates, int64_t gradients,
               bool brings)
      : brings(brings) {
    const int64_t ce = size.channels, cm = main_channels, voxels = size.voxels();
    inputs = ce + cm;
    const int64_t loaded = (inputs + gradients) * (brings ? 2 : 1);
    const int64_t rows = loaded + (gates > 2 ? gates : 2);
    // What the second-level cache holds, beside the next block where that has no rows here, but
    // enough blocks to share out, unless they get so short that the work on rows is not worth
    // their starting.
    const int64_t fit = (int64_t(brings ? 128 : 96) << 10) / rows;
    const int64_t part = (size.batch * voxels + 31) / 32;
    const int64_t least = gates == 1 ? 256 : 64, enough = part < least ? least : part;
    const int64_t wanted = fit < enough ? fit : enough;
    block = wanted > 1024 ? 1024 : wanted < 1 ? 64 : (wanted + 63) / 64 * 64;
    blocks = (voxels + block - 1) / block;
    jobs = size.batch * blocks;
    pitch = block + 16;
    sums = loaded * pitch;
    staging = rows * pitch;
    scratch = staging + 16 * ((ce > cm ? ce : cm) + 2);
    weights = (gates * (inputs + 1) + 15) / 16 * 16;
    // Within 8 MB where that is possible.
    const int64_t few = (int64_t(1) << 20) / (weights > 0 ? weights : 1);
    const int64_t most = few < 16 ? 16 : few > 128 ? 128 : few;
    chunks = jobs < most ? jobs : most;
  }
};

}  // namespace egcnn::EGCNN_ISA
