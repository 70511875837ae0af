// Regions as bits of a byte, for labels wider than a byte.
#pragma once

#include "march.cuh"

namespace egcnn::cuda {
namespace {

// The labels of up to kRegions regions, passed to the kernel by value.
struct RegionLabels {
  static constexpr int kMost = 256;
  int64_t label[kMost];
  uint8_t regions[kMost];  // bit r: the label is in region r
  int count;
};

// Converts wider labels, or masks of one channel per region, to bytes: bit r is whether the voxel
// is in region r.
template <class T>
__global__ void __launch_bounds__(kThreads)
    region_bits_kernel(Tensor labels, Tensor bits, Size size, bool masks, RegionLabels known) {
  const int64_t voxels = size.voxels();
  const unsigned blocks = unsigned(divide_up(voxels, kThreads));
  const int64_t batch = blockIdx.x / blocks;
  const int64_t voxel = int64_t(blockIdx.x % blocks) * kThreads + threadIdx.x;
  if (voxel >= voxels) return;
  const auto label = [&](int64_t channel) {
    return int64_t(static_cast<const T*>(labels.data)[labels.offset(batch, channel, voxel)]);
  };
  unsigned regions = 0;
  if (masks) {
    for (int r = 0; r < size.channels; ++r) regions |= unsigned(label(r) != 0) << r;
  } else {
    const int64_t value = label(0);
    for (int i = 0; i < known.count; ++i) {
      if (value == known.label[i]) regions |= known.regions[i];
    }
  }
  static_cast<uint8_t*>(bits.data)[bits.offset(batch, 0, voxel)] = uint8_t(regions);
}

inline bool can_hold(DType dtype, int64_t label) {
  switch (dtype) {
    case DType::u8: return label == uint8_t(label);
    case DType::i8: return label == int8_t(label);
    case DType::i16: return label == int16_t(label);
    case DType::i32: return label == int32_t(label);
    default: return true;
  }
}

// Adds the labels of one region, except those that `dtype` cannot hold. Returns false, with nothing
// added, if they do not fit.
inline bool add_region(RegionLabels& known, int region, const int64_t* labels, int64_t count,
                       DType dtype) {
  RegionLabels more = known;
  for (const int64_t* label = labels; label != labels + count; ++label) {
    if (!can_hold(dtype, *label)) continue;
    const int i = int(std::find(more.label, more.label + more.count, *label) - more.label);
    if (i == RegionLabels::kMost) return false;
    if (i == more.count) more.label[more.count++] = *label;
    more.regions[i] |= uint8_t(1 << region);
  }
  known = more;
  return true;
}

}  // namespace
}  // namespace egcnn::cuda
