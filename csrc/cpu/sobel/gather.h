// The transposed Sobel operator over a slab, marched along z: it converts q, the gradient with
// respect to (gz, gy, gx), to the gradient with respect to the volume. It gathers instead of
// scattering, so that no two threads write the same voxel and the order of every sum is fixed.
#pragma once

#include <cstdint>

#include "../../math/sobel.h"
#include "../simd/vectors.h"
#include "march.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// Borders are replicated, with the sign flipped for the transposed difference.
template <class T>
class SobelGather {
  using V = Vector<T>;
  static constexpr int64_t lanes = kLanes<T>;

 public:
  // `planes` has room for five planes of plan.rows() rows, from row `low` of the volume on: three
  // of q, two of sums.
  SobelGather(const SobelPlan& plan, int64_t low, T* planes)
      : plan_(plan), low_(low), plane_(plan.rows() * plan.pitch), q_(planes + plan.left),
        sums_(q_ + 3 * plane_), last_(q_ + 4 * plane_) {}

  int64_t plane() const { return plane_; }

  // The address of qz of row y of the current plane; qy and qx follow at plane() and 2 * plane().
  T* q(int64_t y) const { return q_ + (y - low_) * plan_.pitch; }

  // Replicates the borders of a row of q after it is filled in.
  void close(int64_t y) const {
    T* const row = q(y);
    extend<T>(row, plan_.width, plan_.step, 1);
    extend<T>(row + plane_, plan_.width, plan_.step, 1);
    extend<T>(row + 2 * plane_, plan_.width, plan_.step, -1);
  }

  // Adds rows [y, y + rows) of the current plane, which may be the volume's `first`, and completes
  // those of the plane before, consecutively in `out`, which needs room for two more vectors.
  void add(int64_t y, int64_t rows, bool first, T* out) const {
    if constexpr (kHasShift<T>) {
      if (plan_.step == 1) return add<2, true>(y, rows, first, out);
    }
    add<1, false>(y, rows, first, out);
  }

  // Completes the volume's last plane after it was added.
  void finish(int64_t y, int64_t rows, T* out) const {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = (y + i - low_) * plan_.pitch;
      const T *sum = sums_ + row, *last = last_ + row;
      for (int64_t x = 0; x < plan_.width; ++x) out[i * plan_.width + x] = sum[x] + last[x];
    }
  }

 private:
  const SobelPlan& plan_;
  int64_t low_, plane_;
  T* q_;
  T *sums_, *last_;  // of the plane before: its result without the next plane's contribution, and
                     // its contribution to the next plane's result

  template <int kBlock, bool adjacent>
  __attribute__((noinline)) void add(int64_t y, int64_t rows, bool first, T* out) const {
    const int64_t step = plan_.step, pitch = plan_.pitch, width = plan_.width, plane = plane_;
    const int64_t lowest = plan_.height - 1 - y;
    const T* const q0 = q(y);
    T *const sums0 = sums_ + (y - low_) * pitch, *const last0 = last_ + (y - low_) * pitch;
    // q after the pass along x: qz and qy smoothed, qx by the transposed difference.
    struct Row {
      V z, y, x;

      Row flipped() const { return {z, -y, x}; }
    };
    const auto along_x = [=](const T* q, Row* rows_x) {
      if constexpr (adjacent) {
        V z[kBlock + 2], y[kBlock + 2], x[kBlock + 2];
        for (int k = 0; k < kBlock + 2; ++k) {
          const T* const at = q + (k - 1) * lanes;
          z[k] = load_vector(at), y[k] = load_vector(at + plane),
          x[k] = load_vector(at + 2 * plane);
        }
        for (int k = 0; k < kBlock; ++k) {
          rows_x[k].z =
              math::smooth(from_last(z[k], z[k + 1]), z[k + 1], from_second(z[k + 1], z[k + 2]));
          rows_x[k].y =
              math::smooth(from_last(y[k], y[k + 1]), y[k + 1], from_second(y[k + 1], y[k + 2]));
          rows_x[k].x = from_last(x[k], x[k + 1]) - from_second(x[k + 1], x[k + 2]);
        }
      } else {
        const T *const qy = q + plane, *const qx = qy + plane;
        rows_x->z = math::smooth(load_vector(q - step), load_vector(q), load_vector(q + step));
        rows_x->y = math::smooth(load_vector(qy - step), load_vector(qy), load_vector(qy + step));
        rows_x->x = load_vector(qx - step) - load_vector(qx + step);
      }
    };
    // From right to left, so that what spills past a row's end is overwritten by the next column.
    constexpr int64_t kColumn = kBlock * lanes;
    for (int64_t x = (width - 1) / kColumn * kColumn; x >= 0; x -= kColumn) {
      Row up[kBlock], mid[kBlock], down[kBlock];
      along_x(q0 + x, mid);
      if (y > 0) {
        along_x(q0 + x - pitch, up);
      } else {
        for (int k = 0; k < kBlock; ++k) up[k] = mid[k].flipped();
      }
      for (int64_t i = 0; i < rows; ++i) {
        if (i < lowest) {
          along_x(q0 + x + (i + 1) * pitch, down);
        } else {
          for (int k = 0; k < kBlock; ++k) down[k] = mid[k].flipped();
        }
        for (int k = 0; k < kBlock; ++k) {
          const V across = math::smooth(up[k].z, mid[k].z, down[k].z);
          const V along = up[k].y - down[k].y + math::smooth(up[k].x, mid[k].x, down[k].x);
          const int64_t at = x + k * lanes;
          T *const sums = sums0 + i * pitch + at, *const last = last0 + i * pitch + at;
          const V before = first ? along - across : load_vector(last);
          store_vector(out + i * width + at, load_vector(sums) + (along - across));
          store_vector(sums, before + T(2) * along);
          store_vector(last, across + along);
          up[k] = mid[k], mid[k] = down[k];
        }
      }
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
