// Scratch of the interpolation in the edge gate, and how its backward pass is shared.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

constexpr int64_t kMostLanes = 16;  // of floats in a vector of any instruction set

// Elements of a row of n that may be read in whole vectors, and `beyond` elements further. An odd
// number of lines, since rows a power of two apart use few sets of the caches.
constexpr int64_t row_pitch(int64_t n, int64_t beyond = kMostLanes) {
  return (divide_up(n + beyond, kMostLanes) | 1) * kMostLanes;
}

struct ResamplingPlan {
  // Forward: a row of e for each channel, interpolated in depth and height, with one more element;
  // and the same row as channels_last_3d has it.
  int64_t line_pitch = 0, lines = 0, run = 0;
  // Backward: the gradients of two planes of e before they are added up along the width, and a
  // plane of the gradient.
  int64_t wide_pitch = 0, wide_plane = 0, plane_pitch = 0, plane = 0;
  // Backward: chunks of a sample, each of which has a run of planes of e.
  int64_t parts = 0;

  ResamplingPlan() = default;

  explicit ResamplingPlan(const Size& coarse)
      : line_pitch(row_pitch(coarse.width, 1 + kMostLanes)), lines(coarse.channels * line_pitch),
        run(coarse.channels * coarse.width + kMostLanes) {}

  // With about `chunks` chunks of all samples. Each but the first in a sample adds two planes to
  // the workspace, so they are not shorter than two planes.
  ResamplingPlan(const Size& coarse, const Size& fine, int64_t chunks) : ResamplingPlan(coarse) {
    wide_pitch = row_pitch(fine.width);
    wide_plane = coarse.channels * coarse.height * wide_pitch;
    plane_pitch = row_pitch(coarse.height * coarse.width, 2 * kMostLanes);
    plane = coarse.channels * plane_pitch;
    const int64_t most = std::max<int64_t>(coarse.depth / 2, 1);
    parts = std::clamp<int64_t>(chunks / std::max<int64_t>(coarse.batch, 1), 1, most);
  }

  // Elements per thread.
  int64_t scratch() const { return lines + run + 2 * wide_plane + plane; }

  // Elements of the planes at the borders of chunks, two for each chunk.
  int64_t borders(int64_t chunks) const { return 2 * chunks * plane; }
};

}  // namespace egcnn::EGCNN_ISA
