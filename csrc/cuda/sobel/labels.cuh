// Sobel edges of masks and labels (section 2.1). The gradients of a mask are small integers,
// computed bit-sliced for 32 voxels at a time.
#pragma once

#include "../device/warp.cuh"
#include "bit_sliced.cuh"
#include "march.cuh"

namespace egcnn::cuda {
namespace {

// A lane holds 32 voxels of a row, four along x in the bytes of a word by eight along z in the bits
// of a byte, and marches along y. A warp's outer lanes only provide their neighbours' halo.
constexpr int kWord = 4, kPlanes = 8;
constexpr int kInnerLanes = kWarpSize - 2, kBlockColumns = kThreads / kWarpSize * kInnerLanes;
constexpr uint32_t kLowBits = 0x01010101u, kHighBits = 0x80808080u;  // of the bytes of a word

// Regions per launch: each has a bit of a byte.
constexpr int kRegions = 8;

struct LabelEdges {
  Tensor labels;  // bytes
  Tensor edges;
  Size size;                // its channels are the regions of this launch
  uint8_t regions_of[256];  // bit r of a label's entry: the label is in region r
  int least;                // smallest squared gradient of an edge
  int64_t row_words;
  int64_t columns;  // of words, eight planes deep
  unsigned groups;  // of columns, one per block
  unsigned parts;   // of the rows, one per lane
  int64_t part_rows;
};

// The layout of labels and edges: rows of whole, aligned words; rows of any start and length; or
// voxels with other channels in between.
enum class Layout { words, bytes, strided };

// A row's contribution to the gradient at the adjacent rows: the mask smoothed along z and x; and
// its difference along each of them, smoothed along the other.
struct Row {
  BitSliced<5> smooth;
  BitSliced<4> difference_z, difference_x;
};

// `inside` holds ones where the mask is, in a lane's planes and in the planes before and after. The
// selectors pick the neighbours along x from the bytes of this word and the word before or after.
__device__ __forceinline__ Row make_row(const uint32_t (&inside)[kPlanes + 2],
                                        unsigned select_before, unsigned select_after) {
  uint32_t mask = 0;
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) mask += inside[k + 1] << k;
  const BitSliced<1> z[3] = {{(mask << 1 & ~kLowBits) | inside[0]},
                             {mask},
                             {(mask >> 1 & ~kHighBits) | inside[kPlanes + 1] << (kPlanes - 1)}};
  BitSliced<1> before[3], after[3];  // along x
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint32_t word = z[i][0];
    before[i] = {__byte_perm(__shfl_up_sync(kAllLanes, word, 1), word, select_before)};
    after[i] = {__byte_perm(word, __shfl_down_sync(kAllLanes, word, 1), select_after)};
  }
  const BitSliced<3> smooth_before = smooth(before[0], before[1], before[2]);
  const BitSliced<3> smooth_after = smooth(after[0], after[1], after[2]);
  return {smooth(smooth_before, smooth(z[0], z[1], z[2]), smooth_after),
          smooth(difference(before[0], before[2]), difference(z[0], z[2]),
                 difference(after[0], after[2])),
          difference(smooth_before, smooth_after)};
}

// kNonZero: every nonzero gradient is an edge, so that squares are not needed.
template <bool kNonZero>
__device__ __forceinline__ uint32_t find_edges(const Row& before, const Row& at, const Row& after,
                                               int least) {
  const BitSliced<6> gz = smooth(before.difference_z, at.difference_z, after.difference_z);
  const BitSliced<6> gy = difference(before.smooth, after.smooth);
  const BitSliced<6> gx = smooth(before.difference_x, at.difference_x, after.difference_x);
  // A difference of N bits has a bias of 2^N - 1, which each later smoothing multiplies by four.
  constexpr int kZeroZ = 1 * 4 * 4, kZeroY = 31, kZeroX = 7 * 4;
  if constexpr (kNonZero) {
    return differs(gz, kZeroZ) | differs(gy, kZeroY) | differs(gx, kZeroX);
  } else {
    return at_least(
        squared_distance(gz, kZeroZ) + squared_distance(gy, kZeroY) + squared_distance(gx, kZeroX),
        least);
  }
}

// The voxels of a lane.
struct LaneColumn {
  int64_t x, z;  // of its first voxel
  int last;      // byte of its words that is in the row; kWord if more follow
  int planes;    // that it writes: none for an outer lane
  unsigned select_before, select_after;  // see make_row

  __device__ __forceinline__ LaneColumn(const LabelEdges& p, unsigned group) {
    const int warp = threadIdx.x / kWarpSize, lane = lane_index();
    const int64_t unclamped = int64_t(group) * kBlockColumns + warp * kInnerLanes + lane - 1;
    const bool inner = lane > 0 && lane <= kInnerLanes && unclamped < p.columns;
    const int64_t column = clamp(unclamped, p.columns);
    x = column % p.row_words * kWord;
    z = column / p.row_words * kPlanes;
    last = int(min(p.size.width - 1 - x, int64_t(kWord)));
    planes = inner ? int(min(p.size.depth - z, int64_t(kPlanes))) : 0;
    select_before = x > 0 ? 0x6543 : 0x6544;
    select_after = 0;
#pragma unroll
    for (int i = 0; i < kWord; ++i) select_after |= min(i + 1, last) << 4 * i;
  }
};

template <Layout kLayout>
__device__ __forceinline__ int64_t stride_of(const Tensor& t) {
  return kLayout == Layout::strided ? t.voxel_stride : 1;
}

template <Layout kLayout>
__device__ __forceinline__ uint32_t load_word(const Tensor& t, const uint8_t* from, int last) {
  if constexpr (kLayout == Layout::words) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kWord; ++i) {
    if (i <= last) word |= uint32_t(from[i * stride_of<kLayout>(t)]) << 8 * i;
  }
  return word;
}

template <Layout kLayout>
__device__ __forceinline__ void store_word(const Tensor& t, uint8_t* to, uint32_t word, int last) {
  if constexpr (kLayout == Layout::words) {
    *reinterpret_cast<uint32_t*>(to) = word;
  } else {
#pragma unroll
    for (int i = 0; i < kWord; ++i) {
      if (i <= last) to[i * stride_of<kLayout>(t)] = uint8_t(word >> 8 * i);
    }
  }
}

// Looks up four labels.
__device__ __forceinline__ uint32_t look_up(const uint8_t (&inside)[256], uint32_t labels) {
  return inside[labels & 255] | inside[labels >> 8 & 255] << 8 | inside[labels >> 16 & 255] << 16 |
         uint32_t(inside[labels >> 24]) << 24;
}

template <Layout kLayout, bool kNonZero>
__global__ void __launch_bounds__(kThreads) label_edges_kernel(LabelEdges p) {
  __shared__ uint8_t inside[256];
  const Size size = p.size;
  // Blocks that differ only in the region are adjacent, so that the labels stay in the cache.
  unsigned job = blockIdx.x;
  const unsigned region = job % unsigned(size.channels);
  job /= unsigned(size.channels);
  const unsigned group = job % p.groups;
  job /= p.groups;
  const int64_t y = job % p.parts * p.part_rows, batch = job / p.parts;

  for (int i = threadIdx.x; i < 256; i += kThreads) inside[i] = p.regions_of[i] >> region & 1;
  __syncthreads();
  const bool ones_are_inside = !inside[0] && inside[1];

  const LaneColumn lane(p, group);
  const auto start = [&](const Tensor& t, int64_t row) {
    return static_cast<uint8_t*>(t.data) + t.offset(batch, region, row * size.width + lane.x);
  };
  const uint8_t* labels = start(p.labels, 0);
  uint8_t* to = start(p.edges, y);
  int64_t from_plane[kPlanes + 2], to_plane[kPlanes + 2];
#pragma unroll
  for (int k = 0; k < kPlanes + 2; ++k) {
    const int64_t plane = clamp(lane.z + k - 1, size.depth) * size.height * size.width;
    from_plane[k] = plane * stride_of<kLayout>(p.labels);
    to_plane[k] = plane * stride_of<kLayout>(p.edges);
  }

  const int64_t end = min(y + p.part_rows, size.height);
  int empty_rows = 0;
  Row before{}, at{};
  for (int64_t row = y - 1; row <= end; ++row) {
    const uint8_t* from =
        labels + clamp(row, size.height) * size.width * stride_of<kLayout>(p.labels);
    uint32_t word[kPlanes + 2], any = 0, edges = 0;
#pragma unroll
    for (int k = 0; k < kPlanes + 2; ++k) {
      word[k] = load_word<kLayout>(p.labels, from + from_plane[k], lane.last);
    }
#pragma unroll
    for (int k = 0; k < kPlanes + 2; ++k) any |= word[k];

    // Skip rows that are empty throughout the warp. From the third such row on there are no edges,
    // and `before` and `at` are already those of empty rows.
    empty_rows = __all_sync(kAllLanes, any == 0) ? empty_rows + 1 : 0;
    if (empty_rows < 3) {
      if (!ones_are_inside || (any & ~kLowBits) != 0) {
#pragma unroll
        for (int k = 0; k < kPlanes + 2; ++k) word[k] = look_up(inside, word[k]);
      }
      const Row after = make_row(word, lane.select_before, lane.select_after);
      edges = find_edges<kNonZero>(before, at, after, p.least);
      before = at;
      at = after;
    }
    if (row > y) {
#pragma unroll
      for (int k = 0; k < kPlanes; ++k) {
        if (k >= lane.planes) continue;
        store_word<kLayout>(p.edges, to + to_plane[k + 1], edges >> k & kLowBits, lane.last);
      }
      to += size.width * stride_of<kLayout>(p.edges);
    }
  }
}

}  // namespace
}  // namespace egcnn::cuda
