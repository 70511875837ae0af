// How the edge gate cuts a call into blocks, and its scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "../../ops.h"
#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

// A call is cut into blocks of voxels, with a row for every channel of e and of m.
struct EdgeGatePlan {
  bool stage_next;  // whether the next block is staged in scratch during the matmuls of this one
  int64_t inputs;
  int64_t block;    // maximum voxels per block; a multiple of 64
  int64_t blocks;   // of a sample
  int64_t jobs;     // blocks of all samples
  int64_t pitch;    // elements from row to row; a power of two would use few sets of the caches
  int64_t sums;     // offset in scratch of the sums' rows
  int64_t transit;  // offset in scratch of room for 16 voxels and a line
  int64_t scratch;  // elements per thread
  int64_t weights;  // elements of the weights and biases of all gates
  int64_t chunks;   // of jobs, each with its own sums of the weights' gradients

  explicit EdgeGatePlan(const EdgeGate& p)
      : EdgeGatePlan(p.size, p.main_channels, p.gates, 0, can_stage(p.gates, {&p.e, &p.m})) {}

  explicit EdgeGatePlan(const EdgeGateBackward& p)
      : EdgeGatePlan(p.size, p.main_channels, p.gates, p.size.channels,
                     can_stage(p.gates, {&p.e, &p.m, &p.grad})) {}

 private:
  // Staging copies cache lines, so the tensors must consist of the same rows as the blocks, in the
  // accumulation type. The voxel gate has no matmul to overlap it with.
  static bool can_stage(int64_t gates, std::initializer_list<const Tensor*> tensors) {
    if (gates == 1) return false;
    const DType dtype = (*tensors.begin())->dtype;
    for (const Tensor* t : tensors) {
      if (t->dtype != dtype || dtype > DType::f32 || t->voxel_stride != 1) return false;
    }
    return true;
  }

  EdgeGatePlan(const Size& size, int64_t main_channels, int64_t gates, int64_t gradients,
               bool stage_next)
      : stage_next(stage_next) {
    const int64_t ce = size.channels, cm = main_channels, voxels = size.voxels();
    inputs = ce + cm;
    const int64_t loaded = (inputs + gradients) * (stage_next ? 2 : 1);
    const int64_t rows = loaded + (gates > 2 ? gates : 2);
    // As many voxels as fit in the second-level cache, together with the next block if that is
    // prefetched and not staged; but enough blocks for all threads, unless they get too short to be
    // worth starting.
    const int64_t fit = (int64_t(stage_next ? 128 : 96) << 10) / rows;
    const int64_t part = (size.batch * voxels + 31) / 32;
    const int64_t least = gates == 1 ? 256 : 64, enough = part < least ? least : part;
    const int64_t ideal = fit < enough ? fit : enough;
    block = ideal > 1024 ? 1024 : ideal < 1 ? 64 : (ideal + 63) / 64 * 64;
    blocks = (voxels + block - 1) / block;
    jobs = size.batch * blocks;
    pitch = block + 16;
    sums = loaded * pitch;
    transit = rows * pitch;
    scratch = transit + 16 * ((ce > cm ? ce : cm) + 2);
    weights = (gates * (inputs + 1) + 15) / 16 * 16;
    // At most 8 MB if possible.
    const int64_t few = (int64_t(1) << 20) / (weights > 0 ? weights : 1);
    const int64_t most = few < 16 ? 16 : few > 128 ? 128 : few;
    chunks = jobs < most ? jobs : most;
  }
};

}  // namespace egcnn::EGCNN_ISA
