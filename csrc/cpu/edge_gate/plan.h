// How the edge gate cuts a call into blocks, and its scratch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/threads.h"
#include "resampling.h"

namespace egcnn::EGCNN_ISA {

// A call is cut into blocks of voxels, with a row for every channel of e and of m.
struct EdgeGatePlan {
  // Whether the next block is staged in scratch during the matmuls of this one. It takes 9 to 13 %
  // off the channel gate's forward and backward (paired runs, AVX-512).
  bool stage_next;
  int64_t inputs;
  int64_t block;      // maximum voxels per block; a multiple of kBlockStep
  int64_t blocks;     // of a sample
  int64_t jobs;       // blocks of all samples
  int64_t pitch;      // elements from row to row; a power of two would use few sets of the caches
  int64_t sums;       // offset in scratch of the sums' rows
  int64_t transit;    // offset in scratch of room for kMostLanes voxels and a line
  int64_t resampled;  // offset in scratch of the interpolation's own
  int64_t scratch;    // elements per thread
  int64_t weights;    // elements of the weights and biases of all gates
  int64_t chunks;     // of jobs, each with its own sums of the weights' gradients
  ResamplingPlan resampling;

  // With the size of e where it is another one than that of m.
  explicit EdgeGatePlan(const EdgeGate& p, const Size* coarse = nullptr)
      : EdgeGatePlan(p.size, p.main_channels, p.gates, 0,
                     can_stage(p.gates, {&p.m, coarse ? &p.m : &p.e})) {
    if (coarse) resampling = ResamplingPlan(*coarse);
    scratch += resampling.scratch();
  }

  explicit EdgeGatePlan(const EdgeGateBackward& p, const Size* coarse = nullptr)
      : EdgeGatePlan(p.size, p.main_channels, p.gates, p.size.channels,
                     can_stage(p.gates, {&p.m, &p.grad, coarse ? &p.m : &p.e})) {
    if (coarse) {
      resampling = ResamplingPlan(*coarse, p.size, chunks);
      chunks = jobs == 0 ? 0 : p.size.batch * resampling.parts;
    }
    scratch += resampling.scratch();
  }

  size_t workspace(const EdgeGate& p) const {
    return (weights + p.resources.threads * scratch) * accumulator_bytes(p.m.dtype);
  }

  size_t workspace(const EdgeGateBackward& p) const {
    const int64_t borders = resampling.borders(chunks);
    return chunks * weights * sizeof(double) +
           (weights + p.resources.threads * scratch + borders) * accumulator_bytes(p.m.dtype);
  }

 private:
  static constexpr int64_t kLineOfFloats = kLine / sizeof(float);
  static constexpr int64_t kMostPerLine = 32;  // 16-bit elements

  static constexpr int64_t kBlockStep = 64;  // whole panels, and whole lines of every type
  static constexpr int64_t kMostVoxels = 1024;
  static constexpr int64_t kEnoughBlocks = 32;
  // Voxels that are worth a block, with one attention value per voxel or per channel.
  static constexpr int64_t kLeastVoxels = 256, kLeastChannels = 64;
  // Elements of a block's rows: 512 KB of floats, or less if the next block is cached beside it.
  static constexpr int64_t kCached = 128 << 10, kCachedBesideNext = 96 << 10;

  // Between these limits, as many chunks as keep their sums within 8 MB.
  static constexpr int64_t kLeastChunks = 16, kMostChunks = 128;
  static constexpr int64_t kPartialSums = 1 << 20;  // doubles

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
    const int64_t fit = (stage_next ? kCached : kCachedBesideNext) / rows;
    const int64_t least = gates == 1 ? kLeastVoxels : kLeastChannels;
    const int64_t enough = std::max(divide_up(size.batch * voxels, kEnoughBlocks), least);
    block = std::clamp(round_up(std::min(fit, enough), kBlockStep), kBlockStep, kMostVoxels);
    blocks = divide_up(voxels, block);
    jobs = size.batch * blocks;
    pitch = block + kLineOfFloats;
    sums = loaded * pitch;
    transit = rows * pitch;
    resampled = transit + kMostLanes * std::max(ce, cm) + kMostPerLine;
    scratch = resampled;
    weights = round_up(gates * (inputs + 1), kLineOfFloats);
    const int64_t affordable = kPartialSums / std::max<int64_t>(weights, 1);
    chunks = std::min(jobs, std::clamp(affordable, kLeastChunks, kMostChunks));
  }
};

}  // namespace egcnn::EGCNN_ISA
