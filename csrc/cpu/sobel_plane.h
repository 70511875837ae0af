// One plane of the 3D Sobel operator, marched along y so that each input row is read three times
// (once per neighbouring plane) and all else stays in the first-level cache.
#pragma once

#include "../math/sobel.h"
#include "rows.h"
#include "workspaces.h"

namespace egcnn::EGCNN_ISA {

static inline int64_t below(int64_t i) { return i > 0 ? i - 1 : 0; }
static inline int64_t above(int64_t i, int64_t n) { return i + 1 < n ? i + 1 : n - 1; }

// For every row y of plane z: load(z, y, row) fetches the input, emit(y, gz, gy, gx) receives the
// unscaled gradient. Borders replicate.
template <class Acc, class Load, class Emit>
static inline void sobel_plane(const Size& size, int64_t z, Acc* scratch, Load&& load,
                               Emit&& emit) {
  const int64_t w = size.width, pitch = w + 2;
  Acc* row[kSobelRows];
  for (int i = 0; i < kSobelRows; ++i) row[i] = scratch + i * pitch + 1;
  Acc *before = row[0], *at = row[1], *after = row[2];
  Acc* const* smoothed = row + 3;    // along z, a ring of three rows
  Acc* const* difference = row + 6;  // along z, likewise
  Acc *smooth_zy = row[9], *smooth_z_diff_y = row[10], *diff_z_smooth_y = row[11];
  Acc *gz = row[12], *gy = row[13], *gx = row[14];

  const auto fetch = [&](int64_t y) {
    load(below(z), y, before);
    load(z, y, at);
    load(above(z, size.depth), y, after);
    Acc *__restrict s = smoothed[y % 3], *__restrict d = difference[y % 3];
    for (int64_t x = 0; x < w; ++x) {
      s[x] = math::smooth(before[x], at[x], after[x]);
      d[x] = math::difference(before[x], after[x]);
    }
  };

  fetch(0);
  for (int64_t y = 0; y < size.height; ++y) {
    if (y + 1 < size.height) fetch(y + 1);
    const int64_t up = below(y) % 3, mid = y % 3, down = above(y, size.height) % 3;
    for (int64_t x = 0; x < w; ++x) {
      smooth_zy[x] = math::smooth(smoothed[up][x], smoothed[mid][x], smoothed[down][x]);
      smooth_z_diff_y[x] = math::difference(smoothed[up][x], smoothed[down][x]);
      diff_z_smooth_y[x] = math::smooth(difference[up][x], difference[mid][x], difference[down][x]);
    }
    for (int i = 9; i < 12; ++i) {
      row[i][-1] = row[i][0];
      row[i][w] = row[i][w - 1];
    }
    for (int64_t x = 0; x < w; ++x) {
      gx[x] = math::difference(smooth_zy[x - 1], smooth_zy[x + 1]);
      gy[x] = math::smooth(smooth_z_diff_y[x - 1], smooth_z_diff_y[x], smooth_z_diff_y[x + 1]);
      gz[x] = math::smooth(diff_z_smooth_y[x - 1], diff_z_smooth_y[x], diff_z_smooth_y[x + 1]);
    }
    emit(y, gz, gy, gx);
  }
}

}  // namespace egcnn::EGCNN_ISA
