// Linear interpolation between two sizes of a volume, axis by axis.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../../ops.h"
#include "../simd/isa.h"
#include "resampling.h"

namespace egcnn::EGCNN_ISA {

// One axis, as torch's interpolation with align_corners=False has it: position x of the fine volume
// is (1 - weight) of the coarse one's `index[x]` and weight of its after(x).
template <class Acc>
struct Axis {
  using Index = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;  // as wide as a lane

  int64_t coarse, fine;
  // The last position is repeated, so that whole vectors can be read from any position on.
  std::vector<Index> index;
  std::vector<Acc> weight;

  Axis(int64_t coarse, int64_t fine)
      : coarse(coarse), fine(fine), index(fine + kMostLanes), weight(fine + kMostLanes) {
    for (int64_t i = 0; i < fine + kMostLanes; ++i) {
      const int64_t x = std::min(i, fine - 1);
      const double scale = double(coarse) / fine, at = std::max((x + 0.5) * scale - 0.5, 0.0);
      const int64_t before = std::min(int64_t(at), coarse - 1);
      index[i] = Index(before);
      weight[i] = Acc(std::min(at - before, 1.0));
    }
  }

  int64_t after(int64_t x) const { return std::min(int64_t(index[x]) + 1, coarse - 1); }

  // The first fine position whose index is at least `i`.
  int64_t first(int64_t i) const {
    return std::lower_bound(index.begin(), index.begin() + fine, Index(i)) - index.begin();
  }
};

template <class Acc>
struct Grid {
  Size coarse, fine;
  Axis<Acc> z, y, x;

  Grid(const Size& coarse, const Size& fine)
      : coarse(coarse), fine(fine), z(coarse.depth, fine.depth), y(coarse.height, fine.height),
        x(coarse.width, fine.width) {}

  struct RowWeights {
    Acc of[4];
  };

  // The bilinear weights with which coarse rows (near z, near y), (near z, far y), (far z, near y)
  // and (far z, far y) make up row (z, y) of the fine volume.
  RowWeights row_weights(int64_t z, int64_t y) const {
    const Acc wz = this->z.weight[z], wy = this->y.weight[y];
    return {(1 - wz) * (1 - wy), (1 - wz) * wy, wz * (1 - wy), wz * wy};
  }

  // Calls body(z, y, x, at, n) for each row that a block has a part of: n voxels of the row from x
  // on are those of the block from `at` on.
  template <class Body>
  void each_row(int64_t voxel, int64_t voxels, Body&& body) const {
    for (int64_t at = 0; at < voxels;) {
      const int64_t x = (voxel + at) % fine.width, row = (voxel + at) / fine.width;
      const int64_t n = std::min(fine.width - x, voxels - at);
      body(row / fine.height, row % fine.height, x, at, n);
      at += n;
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
