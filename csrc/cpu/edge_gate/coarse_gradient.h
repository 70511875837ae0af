// The gradient of e from that of e at the resolution of m: the adjoint of the interpolation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../../ops.h"
#include "../simd/isa.h"
#include "../simd/threads.h"
#include "../simd/vectors.h"
#include "adjoint.h"
#include "axis.h"
#include "blocks.h"
#include "plan.h"
#include "resampling.h"

namespace egcnn::EGCNN_ISA {

// The voxels of a sample whose gradients a chunk adds up, and the planes of e that they go to:
// those before `last` are in order, and plane `last` is that of the next chunk.
struct Planes {
  int64_t batch, first, last;
  int64_t voxel, end;
};

template <class Acc>
static inline Planes planes_of(const Grid<Acc>& grid, const ResamplingPlan& plan, int64_t chunk) {
  Planes planes;
  planes.batch = chunk / plan.parts;
  share(grid.coarse.depth, plan.parts, chunk % plan.parts, &planes.first, &planes.last);
  const int64_t plane = grid.fine.height * grid.fine.width;
  planes.voxel = grid.z.first(planes.first) * plane;
  planes.end = grid.z.first(planes.last) * plane;
  return planes;
}

// What all threads share.
template <class Acc>
struct CoarseGradientPlan {
  const Grid<Acc>& grid;
  const ResamplingPlan& plan;
  const Output& out;
  Acc* borders;  // the first plane of each chunk and the one after its last
  Adjoint<Acc> width;

  CoarseGradientPlan(const Grid<Acc>& grid, const ResamplingPlan& plan, const Output& out,
                     Acc* borders)
      : grid(grid), plan(plan), out(out), borders(borders), width(grid.x) {}

  Acc* first_plane(int64_t chunk) const { return borders + 2 * chunk * plan.plane; }
  Acc* plane_after(int64_t chunk) const { return first_plane(chunk) + plan.plane; }

  void store(int64_t batch, int64_t z, const Acc* plane, Acc* transit) const {
    const int64_t n = grid.coarse.height * grid.coarse.width;
    const Block block = {batch, z * n, n, n, n};
    store_block(out.tensor, grid.coarse.channels, block, out.stream, transit, plane,
                plan.plane_pitch);
  }

  // Adds up the plane that a chunk shares with the one before it, if there is one.
  void store_border(int64_t chunk, Acc* transit) const {
    const Planes planes = planes_of(grid, plan, chunk);
    if (planes.first == 0) return;
    Acc* plane = first_plane(chunk);
    const Acc* other = plane_after(chunk - 1);
    for (int64_t i = 0; i < plan.plane; ++i) plane[i] += other[i];
    store(planes.batch, planes.first, plane, transit);
  }
};

// Adds up the gradient of one chunk after another, for one thread. Of the fine volume's rows those
// that go to one row of e are added up first, in vectors; the width follows, for a quarter as many.
template <class Acc>
class CoarseGradient {
 public:
  CoarseGradient(const CoarseGradientPlan<Acc>& shared, Acc* scratch, Acc* transit)
      : shared_(shared), grid_(shared.grid), plan_(shared.plan), near_(scratch),
        far_(scratch + plan_.wide_plane), plane_(far_ + plan_.wide_plane), transit_(transit) {
    std::fill(near_, near_ + 2 * plan_.wide_plane, Acc(0));
  }

  // Returns the voxels to be added next, block by block.
  Planes begin(int64_t chunk) {
    planes_ = planes_of(grid_, plan_, chunk);
    chunk_ = chunk, z_ = planes_.first;
    return planes_;
  }

  // Adds a block's rows.
  __attribute__((noinline)) void add(const Block& b, const Acc* rows, int64_t pitch) {
    grid_.each_row(b.voxel, b.n, [&](int64_t z, int64_t y, int64_t x, int64_t at, int64_t n) {
      store_planes_before(grid_.z.index[z]);
      Acc* const far = grid_.z.after(z) > z_ ? far_ : near_;
      const int64_t near_y = grid_.y.index[y] * plan_.wide_pitch + x;
      const int64_t far_y = grid_.y.after(y) * plan_.wide_pitch + x;
      const auto weights = grid_.row_weights(z, y);
      for (int64_t c = 0; c < grid_.coarse.channels; ++c) {
        const int64_t channel = c * grid_.coarse.height * plan_.wide_pitch;
        Acc* const to[] = {near_ + channel + near_y, near_ + channel + far_y,
                           far + channel + near_y, far + channel + far_y};
        add_row(rows + c * pitch + at, n, to, weights);
      }
    });
  }

  // Stores what is complete of the chunk's planes, and keeps the rest for store_border().
  void end() {
    store_planes_before(planes_.last);
    if (z_ < grid_.coarse.depth) add_up(shared_.plane_after(chunk_));
  }

 private:
  const CoarseGradientPlan<Acc>& shared_;
  const Grid<Acc>& grid_;
  const ResamplingPlan& plan_;
  Acc *near_, *far_, *plane_, *transit_;
  int64_t chunk_ = 0, z_ = 0;  // the plane in near_; the next is in far_
  Planes planes_{};

  static void add_row(const Acc* in, int64_t n, Acc* const (&to)[4],
                      const typename Grid<Acc>::RowWeights& weights) {
    constexpr int64_t lanes = kLanes<Acc>;
    const auto add = [&](int64_t i, Vector<Acc> x) __attribute__((always_inline)) {
      for (int row = 0; row < 4; ++row) {
        store_vector(to[row] + i, load_vector(to[row] + i) + weights.of[row] * x);
      }
    };
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) add(i, load_vector(in + i));
    if (i < n) {
      Vector<Acc> x = {};
      for (int64_t k = 0; k < n - i; ++k) x[k] = in[i + k];
      add(i, x);
    }
  }

  void store_planes_before(int64_t z) {
    for (; z_ < z; ++z_) {
      if (z_ == planes_.first && z_ > 0) {
        add_up(shared_.first_plane(chunk_));
      } else {
        add_up(plane_);
        shared_.store(planes_.batch, z_, plane_, transit_);
      }
      std::swap(near_, far_);
    }
  }

  // Adds up near_ along the width, and clears it.
  void add_up(Acc* plane) {
    for (int64_t c = 0; c < grid_.coarse.channels; ++c) {
      for (int64_t y = 0; y < grid_.coarse.height; ++y) {
        shared_.width.add_up(near_ + (c * grid_.coarse.height + y) * plan_.wide_pitch,
                             plane + c * plan_.plane_pitch + y * grid_.coarse.width);
      }
    }
    std::fill(near_, near_ + plan_.wide_plane, Acc(0));
  }
};

// Calls body(block) for all blocks of a chunk, between begin() and end() of `gradient` if the
// gradient of e is `resampled`. A constant, since a body that may do either took the channel gate a
// tenth longer.
template <bool resampled, class Acc, class Body>
__attribute__((always_inline)) static inline void each_block(const EdgeGatePlan& plan,
                                                             const Size& size, int64_t chunk,
                                                             CoarseGradient<Acc>* gradient,
                                                             Body&& body) {
  if constexpr (resampled) {
    const Planes planes = gradient->begin(chunk);
    for (int64_t voxel = planes.voxel; voxel < planes.end; voxel += plan.block) {
      body(block_from<Acc>(plan, planes.batch, voxel, planes.end));
    }
    gradient->end();
  } else {
    int64_t first, last;
    share(plan.jobs, plan.chunks, chunk, &first, &last);
    for (int64_t job = first; job < last; ++job) body(block_at<Acc>(plan, size, job));
  }
}

}  // namespace egcnn::EGCNN_ISA
