// Rows of e at the resolution of m, interpolated block by block: a row in depth and height, in
// coarse elements, and then along the width.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../ops.h"
#include "../simd/convert.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/vectors.h"
#include "axis.h"
#include "blocks.h"
#include "resampling.h"

namespace egcnn::EGCNN_ISA {

// The weighted sum of n consecutive elements of four rows, of which the last ends nearest to `end`,
// the end of the tensor. Whole vectors are read where the tensor has them.
template <class Acc, class T>
static inline void blend_run(const T* const (&rows)[4], const Acc (&weights)[4], int64_t n,
                             const T* end, Acc* __restrict out) {
  constexpr int64_t lanes = kLanes<Acc>;
  int64_t i = 0;
  for (; i < n && end - rows[3] >= i + lanes; i += lanes) {
    Vector<Acc> sum = weights[0] * load_as<Acc>(rows[0] + i);
    for (int row = 1; row < 4; ++row) sum += weights[row] * load_as<Acc>(rows[row] + i);
    store_vector(out + i, sum);
  }
  for (; i < n; ++i) {
    Acc sum = weights[0] * widen<Acc>(rows[0][i]);
    for (int row = 1; row < 4; ++row) sum += weights[row] * widen<Acc>(rows[row][i]);
    out[i] = sum;
  }
}

// out = n elements of a fine row from x on. The line has one more element than a coarse row, and
// can be read in whole vectors.
template <class Acc>
static inline void stretch(const Axis<Acc>& axis, const Acc* line, int64_t x, int64_t n, Acc* out) {
  constexpr int64_t lanes = kLanes<Acc>;
  if (axis.coarse > axis.fine) {
    for (int64_t i = 0; i < n; ++i) {
      const Acc *from = line + axis.index[x + i], weight = axis.weight[x + i];
      out[i] = from[0] * (1 - weight) + from[1] * weight;
    }
    return;
  }
  // A vector of fine positions lies within a vector of coarse ones.
  for (int64_t i = 0; i < n; i += lanes) {
    const auto* index = axis.index.data() + x + i;
    const Acc* from = line + index[0];
    const auto lane = load_vector(index) - index[0];
    const auto weight = load_vector(axis.weight.data() + x + i);
    store_vector(out + i, permute(load_vector(from), lane) * (1 - weight) +
                              permute(load_vector(from + 1), lane) * weight);
  }
}

// e at the resolution of m, for one thread.
template <class Acc>
class Upsampled {
 public:
  Upsampled(const Grid<Acc>& grid, const ResamplingPlan& plan, const Tensor& e, Acc* scratch)
      : grid_(grid), e_(e), line_pitch_(plan.line_pitch), lines_(scratch),
        run_(scratch + plan.lines) {}

  // Loads all rows of a block.
  __attribute__((noinline)) void load(const Block& b, Acc* out, int64_t pitch) {
    const int64_t channels = grid_.coarse.channels;
    grid_.each_row(b.voxel, b.n, [&](int64_t z, int64_t y, int64_t x, int64_t at, int64_t n) {
      blend(b.batch, z, y);
      for (int64_t c = 0; c < channels; ++c) {
        stretch(grid_.x, lines_ + c * line_pitch_, x, n, out + c * pitch + at);
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t v = b.n; v < b.padded; ++v) out[c * pitch + v] = 0;
    }
  }

 private:
  const Grid<Acc>& grid_;
  const Tensor& e_;
  int64_t line_pitch_;
  Acc *lines_, *run_;
  int64_t batch_ = -1, z_ = -1, y_ = -1;  // of the row in lines_

  // Interpolates a row in depth and height, for all channels.
  void blend(int64_t batch, int64_t z, int64_t y) {
    if (batch == batch_ && z == z_ && y == y_) return;
    batch_ = batch, z_ = z, y_ = y;
    const Size& size = grid_.coarse;
    const int64_t near_z = grid_.z.index[z], far_z = grid_.z.after(z);
    const int64_t near_y = grid_.y.index[y], far_y = grid_.y.after(y);
    const auto row = [&](int64_t plane, int64_t row) {
      return e_.offset(batch, 0, (plane * size.height + row) * size.width);
    };
    const int64_t rows[] = {row(near_z, near_y), row(near_z, far_y), row(far_z, near_y),
                            row(far_z, far_y)};
    const auto weights = grid_.row_weights(z, y);
    with_float_of<Acc>(e_.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* data = static_cast<const T*>(e_.data);
      const T* end = data + size.batch * e_.batch_stride;
      const auto blend_from = [&](int64_t offset, int64_t n, Acc* out) {
        const T* const from[] = {data + rows[0] + offset, data + rows[1] + offset,
                                 data + rows[2] + offset, data + rows[3] + offset};
        blend_run(from, weights.of, n, end, out);
      };
      if (e_.voxel_stride == 1) {
        for (int64_t c = 0; c < size.channels; ++c) {
          blend_from(c * e_.channel_stride, size.width, lines_ + c * line_pitch_);
        }
      } else {
        blend_from(0, size.width * size.channels, run_);
        transpose_run();
      }
    });
    for (int64_t c = 0; c < size.channels; ++c) {
      Acc* line = lines_ + c * line_pitch_;
      line[size.width] = line[size.width - 1];
    }
  }

  void transpose_run() {
    constexpr int64_t lanes = kLanes<Acc>;
    const int64_t channels = grid_.coarse.channels, width = grid_.coarse.width;
    for (int64_t x = 0; x < width; x += lanes) {
      const int64_t voxels = width - x < lanes ? width - x : lanes;
      for (int64_t c = 0; c < channels; c += lanes) {
        transpose(run_ + x * channels + c, channels, voxels, lines_ + c * line_pitch_ + x,
                  line_pitch_, channels - c);
      }
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
