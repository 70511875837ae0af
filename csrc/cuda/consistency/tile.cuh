// The tiles into which the kernels of the consistency loss cut volumes, one per block, and the
// parameters and workspace that the kernels share.
#pragma once

#include "../device/launch.cuh"
#include "../device/warp.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kThreads = 256;

// The part of a volume that a block holds in shared memory: a core of kWidth x kHeight x kDepth
// voxels and a halo of kHalo voxels on every side. Rows are padded by one word at both ends, so
// that words are aligned as in global memory. Coordinates count from the core's first voxel.
template <class Word_, int kWidth_, int kHeight_, int kHalo_, int kBlocks_>
struct Box {
  using Word = Word_;
  static constexpr int kBlocks = kBlocks_;  // that a multiprocessor is to hold
  static constexpr int kWidth = kWidth_, kHeight = kHeight_, kDepth = 8, kHalo = kHalo_;
  static constexpr int kPad = sizeof(Word), kPitch = kWidth + 2 * kPad;
  static constexpr int kPlaneRows = kHeight + 2 * kHalo, kPlanes = kDepth + 2 * kHalo;
  static constexpr int kRows = kPlanes * kPlaneRows, kBytes = kRows * kPitch;
  static constexpr int kCoreRows = kHeight * kDepth;

  static __device__ int row(int z, int y) { return (z + kHalo) * kPlaneRows + y + kHalo; }
  static __device__ int row_z(int row) { return row / kPlaneRows - kHalo; }
  static __device__ int row_y(int row) { return row % kPlaneRows - kHalo; }
  // The distance in memory from a voxel to the one at (z, y, x) relative to it.
  static __device__ constexpr int step(int z, int y, int x) {
    return (z * kPlaneRows + y) * kPitch + x;
  }

  // A set of voxels has 128 bits per row, starting at x = -32, and one extra row on every side.
  static constexpr int kSetPlaneRows = kPlaneRows + 2;
  static constexpr int kSetRows = (kPlanes + 2) * kSetPlaneRows;
  static_assert(kWidth <= 64 && kSetRows <= kThreads, "one thread per row of a set");
  static __device__ int set_row(int z, int y) {
    return (z + kHalo + 1) * kSetPlaneRows + y + kHalo + 1;
  }
};

// Wide tiles read the target faster; narrow ones leave shared memory for the gradients of classes.
using ForwardBox = Box<uint4, 64, 16, 1, 4>;
using BackwardBox = Box<uint32_t, 32, 8, 2, 3>;

struct Task {
  ConsistencyBackward p;  // forward has no gradients
  int classes;            // per volume, which is a sample or, with sigmoid, one region of a sample
  int first_code;         // of the first class, see target.cuh
  unsigned tiles, tile_rows;  // a row of tiles lies along x
  unsigned stride;            // blocks take rows of tiles in steps of so many
  int64_t voxels;
  int64_t row_words;              // words of candidates per row
  int fraction_bits;              // of the fixed-point sums of mismatches
  int window_rows, window_width;  // see scatter.cuh
  double inverse_tau;
  bool target_vectors;  // read the target 16 bytes at a time
  bool grad_vectors;    // write the gradient 16 bytes at a time

  unsigned long long* totals;  // (B, C, 2) number of edges, sum of their mismatches
  int* invalid;                // whether a mismatch or a logit was NaN
  void* soft;                  // (blocks, classes, Box::kBytes) soft samples
};

// The coordinates along one axis that are inside the volume and within reach of a tile.
struct Range {
  int first, last;
  __device__ bool contains(int i) const { return i >= first && i <= last; }
  __device__ int clamp(int i) const { return min(max(i, first), last); }
};

__device__ __forceinline__ Range range(int64_t start, int64_t size, int length) {
  constexpr int kReach = 16;
  return {start < kReach ? -int(start) : -kReach,
          size - start < length + kReach ? int(size - start) - 1 : length + kReach - 1};
}

struct Tile {
  unsigned index;  // in the order in which blocks take them
  int64_t region;
  int64_t pair;                                       // the volume's first (sample, class) pair
  int64_t first_voxel;                                // of the sample, counted through the batch
  int64_t target_offset, logits_offset, grad_offset;  // of the volume's first elements
  int64_t candidate_row;                              // the volume's first row of candidates
  int64_t z0, y0, x0;                                 // the core's first voxel
  Range z, y, x;
};

template <class B>
__device__ Tile tile_at(const Task& t, unsigned index) {
  const Size& s = t.p.size;
  const unsigned across = unsigned(divide_up(s.width, B::kWidth));
  const unsigned down = unsigned(divide_up(s.height, B::kHeight));
  const unsigned deep = unsigned(divide_up(s.depth, B::kDepth));
  unsigned column = index / across;
  if (t.stride > 1) column = unsigned(uint64_t(column) * t.stride % t.tile_rows);
  const unsigned layer = column / down, volume = layer / deep;
  const unsigned regions = t.p.softmax ? 1 : unsigned(s.channels);
  const int64_t batch = volume / regions;
  Tile tile;
  tile.region = volume % regions;
  tile.pair = batch * s.channels + tile.region;
  tile.first_voxel = batch * t.voxels;
  tile.target_offset = t.p.target.offset(batch, tile.region, 0);
  tile.logits_offset = t.p.logits.offset(batch, tile.region, 0);
  tile.grad_offset = t.p.grad_logits.offset(batch, tile.region, 0);
  tile.candidate_row = volume * s.depth * s.height;
  tile.z0 = int64_t(layer % deep) * B::kDepth;
  tile.y0 = int64_t(column % down) * B::kHeight;
  tile.x0 = int64_t(index % across) * B::kWidth;
  tile.z = range(tile.z0, s.depth, B::kDepth);
  tile.y = range(tile.y0, s.height, B::kHeight);
  tile.x = range(tile.x0, s.width, B::kWidth);
  return tile;
}

// A block takes every gridDim.x-th tile, from that of its own index on:
//   start_tiles(tile); while (next_tile<B>(t, tile)) ...
// Call with all threads of the block. What they share is free again after next_tile.
__device__ __forceinline__ void start_tiles(Tile& tile) {
  if (threadIdx.x == 0) tile.index = blockIdx.x - gridDim.x;
}
template <class B>
__device__ __forceinline__ bool next_tile(const Task& t, Tile& tile) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned index = tile.index + gridDim.x;
    if (index < t.tiles) tile = tile_at<B>(t, index);
    tile.index = index;
  }
  __syncthreads();
  return tile.index < t.tiles;
}

// For each row of the box, the index in the volume of its voxel at x = 0. Borders are replicated.
template <class B>
__device__ void locate_rows(const Task& t, const Tile& tile, int64_t* rows) {
  const int row = threadIdx.x;
  if (row >= B::kRows) return;
  const int64_t z = tile.z0 + tile.z.clamp(B::row_z(row));
  const int64_t y = tile.y0 + tile.y.clamp(B::row_y(row));
  rows[row] = (z * t.p.size.height + y) * t.p.size.width + tile.x0;
}

}  // namespace
}  // namespace egcnn::cuda
