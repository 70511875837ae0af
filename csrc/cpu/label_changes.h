// The target as codes, and where they change from one voxel to the next.
#pragma once

#include "voxel_sets.h"

namespace egcnn::EGCNN_ISA {

// n voxels of the target: classes, those beyond the last as that number, or regions as 0 and 1.
template <class Code>
static inline void load_codes(const Tensor& target, int64_t start, int64_t n, bool softmax,
                              int64_t classes, Code* __restrict codes) {
  with_type(target.dtype, [&](auto* type) {
    const auto* in = static_cast<decltype(type)>(target.data) + start;
    const uint64_t none = uint64_t(classes);
    const auto convert = [&](int64_t stride) {
      if (softmax) {
        for (int64_t i = 0; i < n; ++i) {
          const uint64_t value = uint64_t(widen<int64_t>(in[i * stride]));
          codes[i] = Code(value < none ? value : none);
        }
      } else {
        for (int64_t i = 0; i < n; ++i) codes[i] = widen<int64_t>(in[i * stride]) != 0;
      }
    };
    target.voxel_stride == 1 ? convert(1) : convert(target.voxel_stride);
  });
}

// Adds the voxels that differ from one beside them in the plane, and those beside these in it, to
// the sets of a row and the rows before and after, where there are such; and the voxels that differ
// from that behind them to `along`.
template <class Code>
static inline void add_changes(const Code* at, const Code* below, const Code* behind, int64_t width,
                               uint64_t* before, uint64_t* across, uint64_t* after,
                               uint64_t* along) {
  uint64_t carry = 0;
  for (int64_t x = 0, w = 0; x < width; x += kWord, ++w) {
    const uint64_t inside = first_bits(width - x);
    const uint64_t dx = differing(at + x, at + x + 1) & first_bits(width - 1 - x);
    const uint64_t dy = differing(at + x, below + x) & inside;
    const uint64_t dz = differing(at + x, behind + x) & inside;
    if ((dx | dy | dz | carry) == 0) continue;
    along[w] |= dz;
    const uint64_t wide = dx | dx << 1 | carry;
    carry = dx >> 63;
    across[w] |= wide | dy;
    if (before != nullptr) before[w] |= wide;
    if (after != nullptr) after[w] |= wide | dy;
  }
}

}  // namespace egcnn::EGCNN_ISA
