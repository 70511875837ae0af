// Sets of voxels, one bit each: the candidates, voxels whose 3x3x3 neighbourhood in the target is
// not constant (no other voxel is an edge), and the band around them.
#pragma once

#include "target.cuh"

namespace egcnn::cuda {
namespace {

// Bit i is set if byte i of a and b differ.
__device__ __forceinline__ uint32_t differing(const uint4 a[2], const uint4 b[2]) {
  const uint32_t words[8] = {a[0].x ^ b[0].x, a[0].y ^ b[0].y, a[0].z ^ b[0].z, a[0].w ^ b[0].w,
                             a[1].x ^ b[1].x, a[1].y ^ b[1].y, a[1].z ^ b[1].z, a[1].w ^ b[1].w};
  uint32_t any = 0, bits = 0;
  for (int k = 0; k < 8; ++k) any |= words[k];
  if (any == 0) return 0;
  for (int k = 0; k < 8; ++k) {
    // The product gathers bits 7, 15, 23 and 31 in the highest four.
    bits = bits >> 4 | (nonzero_bytes(words[k]) * 0x00204081u & 0xF0000000u);
  }
  return bits;
}

// For each voxel, whether its code differs from a neighbour in x, from the next in y, from the next
// in z.
template <class B>
struct Changes {
  static constexpr int kColumns = B::kWidth / 32;
  uint32_t x[kColumns][B::kRows], y[kColumns][B::kRows], z[kColumns][B::kRows];

  __device__ void mark(const uint8_t* box) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kColumns * B::kRows; i += kThreads) {
      const int column = i / B::kRows, row = i % B::kRows;
      const uint8_t* at = box + row * B::kPitch + B::kPad + column * 32;
      const auto load = [at](int step, uint4 bytes[2]) {
        bytes[0] = reinterpret_cast<const uint4*>(at + step)[0];
        bytes[1] = reinterpret_cast<const uint4*>(at + step)[1];
      };
      const auto shift = [](uint32_t low, uint32_t high) { return __funnelshift_r(low, high, 8); };
      uint4 own[2], other[2];
      load(0, own);
      other[0] = {shift(own[0].x, own[0].y), shift(own[0].y, own[0].z), shift(own[0].z, own[0].w),
                  shift(own[0].w, own[1].x)};
      other[1] = {shift(own[1].x, own[1].y), shift(own[1].y, own[1].z), shift(own[1].z, own[1].w),
                  shift(own[1].w, at[32])};
      const uint32_t next = differing(own, other);
      x[column][row] = next | next << 1 | uint32_t(at[-1] != at[0]);
      if (row % B::kPlaneRows < B::kPlaneRows - 1) {
        load(B::step(0, 1, 0), other);
        y[column][row] = differing(own, other);
      }
      if (row < B::kRows - B::kPlaneRows) {
        load(B::step(1, 0, 0), other);
        z[column][row] = differing(own, other);
      }
    }
  }

  // The candidates of one row of the core. A neighbourhood is constant if its nine rows are, and
  // their middle voxels agree.
  __device__ uint32_t candidates(int column, int row) const {
    uint32_t bits = z[column][row - B::kPlaneRows] | z[column][row];
    for (int k = row - B::kPlaneRows; k <= row + B::kPlaneRows; k += B::kPlaneRows) {
      bits |= x[column][k - 1] | x[column][k] | x[column][k + 1] | y[column][k - 1] | y[column][k];
    }
    return bits;
  }
};

// A bit for each of the 32 voxels from x on, set if it is in the range.
__device__ __forceinline__ uint32_t bits_inside(const Range& in, int x) {
  const int first = max(in.first - x, 0), last = min(in.last - x, 31);
  return first > last ? 0 : ~0u >> (31 - last) & ~0u << first;
}

// One row of the set, dilated by a 3x3x3 neighbourhood.
template <class B>
__device__ uint4 dilate(const Tile& tile, const uint4* set, int z, int y) {
  if (!tile.z.contains(z) || !tile.y.contains(y)) return {};
  uint4 near{};
  for (int i = z - 1; i <= z + 1; ++i) {
    for (int j = y - 1; j <= y + 1; ++j) {
      const uint4 row = set[B::set_row(i, j)];
      near = {near.x | row.x, near.y | row.y, near.z | row.z, near.w | row.w};
    }
  }
  const Range reach{max(tile.x.first, -B::kHalo), min(tile.x.last, B::kWidth + B::kHalo - 1)};
  const auto spread = [&](uint32_t before, uint32_t at, uint32_t after, int x) {
    return (at | at << 1 | at >> 1 | before >> 31 | after << 31) & bits_inside(reach, x);
  };
  return {spread(0, near.x, near.y, -32), spread(near.x, near.y, near.z, 0),
          spread(near.y, near.z, near.w, 32), spread(near.z, near.w, 0, 64)};
}

// The word of candidates in global memory of the voxels from (z, y, x) of a tile on.
__device__ __forceinline__ uint32_t* candidates_at(const Task& t, const Tile& tile, int z, int y,
                                                   int x) {
  const int64_t row = tile.candidate_row + (tile.z0 + z) * t.p.size.height + tile.y0 + y;
  return t.p.candidates + row * t.row_words + (tile.x0 + x) / 32;
}

// Loads the target and marks the candidates in a tile's core, for backward also in global memory.
// Returns whether there are any. All threads of the block must call it.
//
// With support "both" the hard sample can make any voxel an edge, so every voxel is a candidate.
template <class B>
__device__ bool mark_candidates(const Task& t, const Tile& tile, const int64_t* rows,
                                uint8_t* truth, Changes<B>& changes, uint4* candidates) {
  constexpr int kColumns = B::kWidth / 32;
  static_assert(kColumns * B::kCoreRows == kThreads, "one thread per word");
  if (threadIdx.x < B::kSetRows) candidates[threadIdx.x] = {};
  const bool differs = __syncthreads_or(load_target<B>(t, tile, rows, truth));
  const bool any = differs || t.p.support_both;
  if (any) {
    changes.mark(truth);
    __syncthreads();
  }
  const int column = threadIdx.x % kColumns, y = threadIdx.x / kColumns % B::kHeight;
  const int z = threadIdx.x / kColumns / B::kHeight, x = 32 * column;
  uint32_t bits = 0;
  if (z <= tile.z.last && y <= tile.y.last && x <= tile.x.last) {
    if (any) bits = t.p.support_both ? ~0u : changes.candidates(column, B::row(z, y));
    bits &= bits_inside(tile.x, x);
    reinterpret_cast<uint32_t*>(candidates + B::set_row(z, y))[column + 1] = bits;
    *candidates_at(t, tile, z, y, x) = bits;
  }
  return any && __syncthreads_or(bits != 0);
}

// Reads the candidates of one row per thread, of the core and of one voxel around it.
template <class B>
__device__ uint4 read_candidates(const Task& t, const Tile& tile) {
  const int z = int(threadIdx.x) / B::kSetPlaneRows - B::kHalo - 1;
  const int y = int(threadIdx.x) % B::kSetPlaneRows - B::kHalo - 1;
  uint4 bits{};
  if (z < -1 || z > B::kDepth || !tile.z.contains(z)) return bits;
  if (y < -1 || y > B::kHeight || !tile.y.contains(y)) return bits;
  const uint32_t* words = candidates_at(t, tile, z, y, 0);
  bits.y = words[0];
  if (tile.x.first < 0) bits.x = words[-1] & 1u << 31;
  if (tile.x.last >= 32) bits.z = words[1] & 1u;
  return bits;
}

// --- Lists ---

// The voxels of a set as a list, so that the threads share the work evenly. The order varies
// from run to run; nothing depends on it.
struct List {
  static constexpr int kCapacity = 8 * kThreads;
  uint16_t entries[kCapacity];  // 128 row + x + 32
  int count, end;
};

// A voxel of a box.
struct Position {
  int row, x, index;  // index: in the box's memory
};

template <class B>
__device__ Position position(int entry) {
  const int row = entry / 128, x = entry % 128 - 32;
  return {row, x, row * B::kPitch + B::kPad + x};
}

// Lists the voxels that bits_of(z, y) marks in each row and calls visit(count) for each list, which
// holds as many whole rows as fit. All threads of the block must call it.
template <class B, class Bits, class Visit>
__device__ void for_each_list(List& list, Bits&& bits_of, Visit&& visit) {
  int row = threadIdx.x;  // past the last once it is listed
  do {
    if (threadIdx.x == 0) {
      list.count = 0;
      list.end = List::kCapacity;
    }
    __syncthreads();
    if (row < B::kRows) {
      const uint4 bits = bits_of(B::row_z(row), B::row_y(row));
      const int count = __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
      int at = count > 0 ? atomicAdd(&list.count, count) : 0;
      const auto append = [&](uint32_t word, int x) {
#pragma unroll 1
        for (; word != 0; word &= word - 1) {
          list.entries[at++] = uint16_t(row * 128 + x + __ffs(int(word)) - 1);
        }
      };
      if (at + count > List::kCapacity) {
        atomicMin(&list.end, at);  // every later row is past the end, too
      } else {
        append(bits.x, 0);
        append(bits.y, 32);
        append(bits.z, 64);
        append(bits.w, 96);
        row = B::kRows;
      }
    }
    __syncthreads();
    visit(min(list.count, list.end));
  } while (__syncthreads_or(row < B::kRows));
}

}  // namespace
}  // namespace egcnn::cuda
