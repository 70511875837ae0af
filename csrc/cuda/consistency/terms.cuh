// The terms of the loss (Eq. 7): at each edge voxel of each class, the difference of the Sobel
// magnitudes of the sample and the truth.
#pragma once

#include "../../math/sobel.h"
#include "sample.cuh"

namespace egcnn::cuda {
namespace {

// The unscaled gradients of four classes' indicators, from -16 to 16: one byte each of three words.
struct Gradients {
  uint32_t z = 0, y = 0, x = 0;

  // A nonzero byte marks a nonzero gradient.
  __device__ uint32_t nonzero() const { return z | y | x; }
  __device__ int z_of(int k) const { return int8_t(z >> 8 * k); }
  __device__ int y_of(int k) const { return int8_t(y >> 8 * k); }
  __device__ int x_of(int k) const { return int8_t(x >> 8 * k); }
  __device__ int squared(int k) const {
    return z_of(k) * z_of(k) + y_of(k) * y_of(k) + x_of(k) * x_of(k);
  }
};

// At one voxel of a box of class codes, for the classes whose codes times 8 are `shift`,
// `shift` + 8, `shift` + 16 and `shift` + 24.
template <class B>
__device__ Gradients gradients(const uint8_t* at, uint32_t shift) {
  // One byte per class, 1 for the voxel's own class; a shift by 32 or more gives 0.
  const auto indicators = [shift](uint8_t code) {
    return __funnelshift_lc(0, 1, code * 8u - shift);
  };
  constexpr uint32_t kSmooth[3] = {1, 2, 1}, kDiffer[3] = {~0u, 0, 1};
  constexpr uint32_t kBias = 0x80808080u;  // keeps a byte from borrowing from the next
  uint32_t z = kBias, y = kBias, x = kBias;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const uint8_t* row = at + B::step(i - 1, j - 1, 0);
      const uint32_t before = indicators(row[-1]), after = indicators(row[1]);
      const uint32_t sum = before + 2 * indicators(row[0]) + after;
      z += kDiffer[i] * kSmooth[j] * sum;
      y += kSmooth[i] * kDiffer[j] * sum;
      x += kSmooth[i] * kSmooth[j] * (after - before);
    }
  }
  return {z ^ kBias, y ^ kBias, x ^ kBias};
}

// Bit g modulo 32 is set if the neighbourhood holds one of the classes 4 g to 4 g + 3.
template <class B>
__device__ uint32_t groups_near(const uint8_t* at) {
  uint32_t groups = 0;
  for (int i = -1; i <= 1; ++i) {
    for (int j = -1; j <= 1; ++j) {
      for (int k = -1; k <= 1; ++k) groups |= 1u << (at[B::step(i, j, k)] / 4 & 31);
    }
  }
  return groups;
}

// The sample's unscaled gradient, its magnitude, and the excess of that over the truth's.
template <class Acc>
struct Term {
  Acc z = 0, y = 0, x = 0, magnitude, mismatch;
};

// The term of class k of four, from the soft sample at `soft`, or from the hard sample if null.
template <class B, class Acc>
__device__ Term<Acc> term(const Gradients& truth, const Gradients& hard, int k, const Acc* soft,
                          int64_t at) {
  Term<Acc> term;
  if (soft) {
#pragma unroll 1
    for (int i = -1; i <= 1; ++i) {
      for (int j = -1; j <= 1; ++j) {
        const Acc* row = soft + at + B::step(i, j, 0);
        const Acc sum = math::smooth(row[-1], row[0], row[1]);
        const Acc smooth_z = Acc(2 - i * i), smooth_y = Acc(2 - j * j);
        term.z += Acc(i) * smooth_y * sum;
        term.y += smooth_z * Acc(j) * sum;
        term.x += smooth_z * smooth_y * math::difference(row[-1], row[1]);
      }
    }
  } else {
    term.z = Acc(hard.z_of(k));
    term.y = Acc(hard.y_of(k));
    term.x = Acc(hard.x_of(k));
  }
  const Acc squared = term.z * term.z + term.y * term.y + term.x * term.x;
  term.magnitude = root(squared) * Acc(1.0 / 16);
  term.mismatch = term.magnitude - root(Acc(truth.squared(k))) * Acc(1.0 / 16);
  return term;
}

// Calls visit(position, class, lanes, k, truth, hard) for each listed voxel and class with an edge.
// The warp stays converged: all its lanes make the call, and `lanes` marks those at an edge. The
// class's gradients are entry k of `truth` and, if samples.use_hard, of `hard`.
template <class B, class Acc, class Visit>
__device__ void for_each_edge(const Task& t, const uint8_t* truth, const Samples<Acc>& samples,
                              const List& list, int count, Visit&& visit) {
  const int lane = lane_index();
  for (int base = threadIdx.x - lane; base < count; base += kThreads) {
    const bool listed = base + lane < count;
    const Position at = position<B>(list.entries[listed ? base + lane : base]);
    uint32_t groups = ~0u, shift = 8 * t.first_code;
    if (t.classes > 4) {
      groups = groups_near<B>(truth + at.index);
      if (t.p.support_both) groups |= groups_near<B>(samples.hard + at.index);
    }
#pragma unroll 1
    for (int first = 0; first < t.classes; first += 4, shift += 32) {
      if (!__any_sync(kAllLanes, groups >> (first / 4 & 31) & 1)) continue;
      const Gradients g = gradients<B>(truth + at.index, shift);
      const Gradients h =
          samples.use_hard ? gradients<B>(samples.hard + at.index, shift) : Gradients{};
      uint32_t edges = listed ? g.nonzero() | (t.p.support_both ? h.nonzero() : 0) : 0;
#pragma unroll 1
      for (int k = 0; k < 4; ++k, edges >>= 8) {
        const unsigned lanes = __ballot_sync(kAllLanes, (edges & 0xFF) != 0);
        if (lanes != 0) visit(at, first + k, lanes, k, g, h);
      }
    }
  }
}

// The weight of each edge of one sample and class in the loss.
__device__ __forceinline__ double edge_weight(const Task& t, int64_t edges) {
  return edges > 0 ? 1 / (double(t.p.size.batch * t.p.size.channels) * double(edges)) : 0;
}

}  // namespace
}  // namespace egcnn::cuda
