// The consistency loss (Eqs. 7 and 8). Only edge voxels count and only their 3x3x3 neighbourhoods
// are looked at, so noise and softmax are computed in that band alone. Each block has a tile of the
// volume:
//   mark      candidates: voxels whose neighbourhood is not constant; no other is an edge
//   draw      the sample in their band
//   compare   at each edge: | ‖∇p‖ - ‖∇y‖ |
// Support "both" draws the hard sample everywhere, so there every voxel is a candidate. Backward,
// which knows from forward how many edges there are, marks first. Then, in tiles of its own, it
// draws and
//   scatter   the gradient of each edge's term to its neighbourhood
//   finish    through the softmax to the logits; zeros elsewhere
//
// Sums are of integers, by atomics: their order does not matter, the result is the same to the bit.
// So lists may be in any order, too.
#include "../math/gumbel.h"
#include "../math/sobel.h"
#include "launch.cuh"

#include <algorithm>
#include <cfloat>
#include <numeric>

namespace egcnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kWarp = 0xFFFFFFFFu;  // all its lanes

// The part of a volume that a block holds in shared memory: a core of kWidth x kHeight x kDepth
// voxels and kHalo voxels around, in rows padded by a word on either side, so that words lie as
// they do in global memory. Coordinates count from the core's first voxel.
template <class Word_, int kWidth_, int kHeight_, int kHalo_>
struct Box {
  using Word = Word_;
  static constexpr int kWidth = kWidth_, kHeight = kHeight_, kDepth = 8, kHalo = kHalo_;
  static constexpr int kPad = sizeof(Word), kPitch = kWidth + 2 * kPad;
  static constexpr int kHigh = kHeight + 2 * kHalo, kDeep = kDepth + 2 * kHalo;
  static constexpr int kRows = kDeep * kHigh, kBytes = kRows * kPitch;

  static __device__ int row(int z, int y) { return (z + kHalo) * kHigh + y + kHalo; }
  static __device__ int row_z(int row) { return row / kHigh - kHalo; }
  static __device__ int row_y(int row) { return row % kHigh - kHalo; }
  // From one voxel to its neighbour.
  static __device__ constexpr int step(int z, int y, int x) { return (z * kHigh + y) * kPitch + x; }

  // A set of voxels has 128 bits a row, of which the first is for x = -32, and one row more around.
  static constexpr int kSetHigh = kHigh + 2, kSetRows = (kDeep + 2) * kSetHigh;
  static_assert(kWidth <= 64 && kSetRows <= kThreads, "there is a thread for each row");
  static __device__ int set_row(int z, int y) { return (z + kHalo + 1) * kSetHigh + y + kHalo + 1; }
};

// Wide tiles read the target well; narrow ones have room for the gradients of some classes.
using CompareBox = Box<uint4, 64, 16, 1>;
using BackwardBox = Box<uint32_t, 32, 8, 2>;

// What the kernels share: the call, and the workspace.
struct Task {
  ConsistencyBackward p;  // forward has no gradients
  bool forward;
  int classes;  // of one volume, which is a sample or, in the sigmoid form, a region of it
  int code;     // of the first class, see below
  int64_t voxels;
  int64_t words;  // of candidates to a row
  int unit;       // mismatches are summed in 2^-unit
  int rows, width;  // of a window, see below
  double inverse_tau;
  bool target_vectors;  // the target can be read, the gradient written, 16 bytes at a time
  bool grad_vectors;

  unsigned long long* totals;  // (B, C, 2) the count of edges and the sum of their mismatches
  int* invalid;                // whether a mismatch was not a number
  void* scales;                // (B, C) from the gradient of such a sum to that of the loss
  uint32_t* candidates;        // (volumes, D, H, words)
  void* soft;                  // (blocks, classes, kBytes) samples
};

// --- Places ---

// The coordinates along one axis that lie in the volume, and within reach of a tile.
struct Range {
  int first, last;
  __device__ bool contains(int i) const { return i >= first && i <= last; }
  __device__ int clamp(int i) const { return min(max(i, first), last); }
};

__device__ Range range(int64_t start, int64_t size, int length) {
  constexpr int kReach = 16;
  return {start < kReach ? -int(start) : -kReach,
          size - start < length + kReach ? int(size - start) - 1 : length + kReach - 1};
}

struct Tile {
  int64_t region;
  int64_t pair, index;           // of the volume: its first (sample, class), its first voxel,
  int64_t target, logits, grad;  // its first elements,
  int64_t row;                   // its first row of candidates
  int64_t z0, y0, x0;            // the core's first voxel
  Range z, y, x;
};

template <class B>
__device__ Tile tile_at(const Task& t, unsigned index) {
  const Size& s = t.p.size;
  const unsigned across = unsigned(divide_up<int64_t>(s.width, B::kWidth));
  const unsigned down = unsigned(divide_up<int64_t>(s.height, B::kHeight));
  const unsigned deep = unsigned(divide_up<int64_t>(s.depth, B::kDepth));
  const unsigned column = index / across, layer = column / down, volume = layer / deep;
  const unsigned regions = t.p.softmax ? 1 : unsigned(s.channels);
  const int64_t batch = volume / regions;
  Tile tile;
  tile.region = volume % regions;
  tile.pair = batch * s.channels + tile.region;
  tile.index = batch * t.voxels;
  tile.target = offset(t.p.target, batch, tile.region, 0);
  tile.logits = offset(t.p.logits, batch, tile.region, 0);
  tile.grad = offset(t.p.grad_logits, batch, tile.region, 0);
  tile.row = volume * s.depth * s.height;
  tile.z0 = int64_t(layer % deep) * B::kDepth;
  tile.y0 = int64_t(column % down) * B::kHeight;
  tile.x0 = int64_t(index % across) * B::kWidth;
  tile.z = range(tile.z0, s.depth, B::kDepth);
  tile.y = range(tile.y0, s.height, B::kHeight);
  tile.x = range(tile.x0, s.width, B::kWidth);
  return tile;
}

// Each row's voxel at x = 0, counted in the volume; borders are replicated.
template <class B>
__device__ void find_rows(const Task& t, const Tile& tile, int64_t* rows) {
  const int row = threadIdx.x;
  if (row >= B::kRows) return;
  const int64_t z = tile.z0 + tile.z.clamp(B::row_z(row));
  const int64_t y = tile.y0 + tile.y.clamp(B::row_y(row));
  rows[row] = (z * t.p.size.height + y) * t.p.size.width + tile.x0;
}

// --- Target ---

// Classes have a byte in shared memory, their number and kNoClass, or, in the sigmoid form, where
// each region is a volume of its own with one class, kInside and 0.
constexpr int kInside = 0x80, kNoClass = 255;

// kInside in each byte that is not 0.
__device__ uint32_t nonzero_bytes(uint32_t word) {
  return (((word & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | word) & 0x80808080u;
}

// A word of a target as classes. Numbers beyond the last class may stay: they equal none.
template <bool kSoftmax>
__device__ uint32_t codes(uint32_t word) {
  return kSoftmax ? word : nonzero_bytes(word);
}
template <bool kSoftmax>
__device__ uint4 codes(uint4 word) {
  return {codes<kSoftmax>(word.x), codes<kSoftmax>(word.y), codes<kSoftmax>(word.z),
          codes<kSoftmax>(word.w)};
}

__device__ bool differs(uint32_t word, uint32_t other) { return word != other; }
__device__ bool differs(uint4 word, uint32_t other) {
  return ((word.x ^ other) | (word.y ^ other) | (word.z ^ other) | (word.w ^ other)) != 0;
}

// Fills a box with classes, from bytes in aligned rows. Returns whether any of this thread's
// differs from that of the core's first voxel.
template <class B, bool kSoftmax>
__device__ bool load_bytes(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  using Word = typename B::Word;
  constexpr int kWords = B::kPitch / B::kPad, kRowsAtOnce = kThreads / kWords;
  constexpr int kPasses = divide_up(B::kRows, kRowsAtOnce);
  const uint8_t* target = static_cast<const uint8_t*>(t.p.target.data) + tile.target;
  const uint32_t first = codes<kSoftmax>(target[rows[B::row(0, 0)]] * 0x01010101u);
  const int column = threadIdx.x % kWords, row = threadIdx.x / kWords;
  if (row >= kRowsAtOnce) return false;
  target += min(max((column - 1) * B::kPad, tile.x.first), tile.x.last + 1 - B::kPad);
  Word words[kPasses];
#pragma unroll
  for (int k = 0; k < kPasses; ++k) {
    const int at = min(row + k * kRowsAtOnce, B::kRows - 1);
    words[k] = *reinterpret_cast<const Word*>(target + rows[at]);
  }
  bool any = false;
#pragma unroll
  for (int k = 0; k < kPasses; ++k) {
    const int at = row + k * kRowsAtOnce;
    const Word word = codes<kSoftmax>(words[k]);
    if (at < B::kRows) reinterpret_cast<Word*>(box)[at * kWords + column] = word;
    any |= differs(word, first);
  }
  return any;
}

// The same from any integers.
template <class B, class Label>
__device__ bool load_labels(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  constexpr int kColumns = B::kWidth + 2 * B::kHalo, kCount = B::kRows * kColumns, kBatch = 4;
  const Label* target = static_cast<const Label*>(t.p.target.data) + tile.target;
  const auto code = [&](Label label) -> uint8_t {
    if (!t.p.softmax) return label != 0 ? kInside : 0;
    return uint64_t(label) < uint64_t(t.classes) ? label : kNoClass;
  };
  const uint8_t first = code(target[rows[B::row(0, 0)] * t.p.target.voxel_stride]);
  bool any = false;
  for (int start = threadIdx.x; start < kCount; start += kBatch * kThreads) {
    // All fetched before any is stored: for all the compiler knows, a store may change the rest.
    Label labels[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = min(start + k * kThreads, kCount - 1);
      const int64_t voxel = rows[i / kColumns] + tile.x.clamp(i % kColumns - B::kHalo);
      labels[k] = target[voxel * t.p.target.voxel_stride];
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = start + k * kThreads;
      if (i >= kCount) break;
      const uint8_t label = code(labels[k]);
      box[i / kColumns * B::kPitch + B::kPad + i % kColumns - B::kHalo] = label;
      any |= label != first;
    }
  }
  return any;
}

template <class B>
__device__ bool load_target(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  if (t.target_vectors && t.p.softmax) return load_bytes<B, true>(t, tile, rows, box);
  if (t.target_vectors) return load_bytes<B, false>(t, tile, rows, box);
  switch (t.p.target.dtype) {
    case DType::u8: return load_labels<B, uint8_t>(t, tile, rows, box);
    case DType::i8: return load_labels<B, int8_t>(t, tile, rows, box);
    case DType::i16: return load_labels<B, int16_t>(t, tile, rows, box);
    case DType::i32: return load_labels<B, int32_t>(t, tile, rows, box);
    default: return load_labels<B, int64_t>(t, tile, rows, box);
  }
}

// Replicates a box's borders by one voxel, along one axis after the other, for corners. All threads
// of the block come here together.
template <class B, class V>
__device__ void replicate(const Tile& tile, V* box) {
  constexpr int kPlane = B::step(1, 0, 0);
  const int i = threadIdx.x;
  const auto copy = [](V* to, const V* from) {
#pragma unroll 1
    for (int k = 0; k < B::kPitch; ++k) to[k] = from[k];
  };
  if (i < B::kRows) {
    V* row = box + i * B::kPitch + B::kPad;
    if (tile.x.first == 0) row[-1] = row[0];
    if (tile.x.last < B::kWidth + B::kHalo - 1) row[tile.x.last + 1] = row[tile.x.last];
  }
  __syncthreads();
  if (i < B::kDeep) {
    V* row = box + i * kPlane + B::kHalo * B::kPitch;
    V* last = row + tile.y.last * B::kPitch;
    if (tile.y.first == 0) copy(row - B::kPitch, row);
    if (tile.y.last < B::kHeight + B::kHalo - 1) copy(last + B::kPitch, last);
  }
  __syncthreads();
  if (i < B::kHigh) {
    V* row = box + B::kHalo * kPlane + i * B::kPitch;
    V* last = row + tile.z.last * kPlane;
    if (tile.z.first == 0) copy(row - kPlane, row);
    if (tile.z.last < B::kDepth + B::kHalo - 1) copy(last + kPlane, last);
  }
  __syncthreads();
}

// --- Candidates ---

// Bit i is whether byte i of a and b differ.
__device__ uint32_t differing(const uint4 a[2], const uint4 b[2]) {
  const uint32_t words[8] = {a[0].x ^ b[0].x, a[0].y ^ b[0].y, a[0].z ^ b[0].z, a[0].w ^ b[0].w,
                             a[1].x ^ b[1].x, a[1].y ^ b[1].y, a[1].z ^ b[1].z, a[1].w ^ b[1].w};
  uint32_t any = 0, bits = 0;
  for (int k = 0; k < 8; ++k) any |= words[k];
  if (any == 0) return 0;
  for (int k = 0; k < 8; ++k) {
    // The product brings bits 7, 15, 23 and 31 together as the highest four.
    bits = bits >> 4 | (nonzero_bytes(words[k]) * 0x00204081u & 0xF0000000u);
  }
  return bits;
}

// Of each voxel, whether it differs from those beside it in x, from the next in y, in z.
template <class B>
struct Differences {
  static constexpr int kColumns = B::kWidth / 32;
  uint32_t x[kColumns][B::kRows], y[kColumns][B::kRows], z[kColumns][B::kRows];

  __device__ void find(const uint8_t* box) {
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
      other[0] = {shift(own[0].x, own[0].y), shift(own[0].y, own[0].z),
                  shift(own[0].z, own[0].w), shift(own[0].w, own[1].x)};
      other[1] = {shift(own[1].x, own[1].y), shift(own[1].y, own[1].z),
                  shift(own[1].z, own[1].w), shift(own[1].w, at[32])};
      const uint32_t next = differing(own, other);
      x[column][row] = next | next << 1 | uint32_t(at[-1] != at[0]);
      if (row % B::kHigh < B::kHigh - 1) {
        load(B::step(0, 1, 0), other);
        y[column][row] = differing(own, other);
      }
      if (row < B::kRows - B::kHigh) {
        load(B::step(1, 0, 0), other);
        z[column][row] = differing(own, other);
      }
    }
  }

  // The voxels of a row of the core whose neighbourhood is not constant. It is if its nine rows
  // are, and their middle voxels are the same.
  __device__ uint32_t near(int column, int row) const {
    uint32_t bits = z[column][row - B::kHigh] | z[column][row];
    for (int k = row - B::kHigh; k <= row + B::kHigh; k += B::kHigh) {
      bits |= x[column][k - 1] | x[column][k] | x[column][k + 1] | y[column][k - 1] | y[column][k];
    }
    return bits;
  }
};

// The bits of those among 32 voxels from x on that lie in a range.
__device__ uint32_t bits_inside(const Range& in, int x) {
  const int first = max(in.first - x, 0), last = min(in.last - x, 31);
  return first > last ? 0 : ~0u >> (31 - last) & ~0u << first;
}

// The voxels of a row that have a member of the set in their neighbourhood.
template <class B>
__device__ uint4 band(const Tile& tile, const uint4* set, int z, int y) {
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

// --- Lists of voxels ---

struct List {
  static constexpr int kRoom = 3000;
  uint16_t entries[kRoom];  // 128 row + x + 32
  int count, end;
};

struct Place {
  int row, x, index;  // index in the box
};

template <class B>
__device__ Place place(int entry) {
  const int row = entry / 128, x = entry % 128 - 32;
  return {row, x, row * B::kPitch + B::kPad + x};
}

// visit(count) is called for lists of all voxels that bits_of(z, y) names, each with as many rows
// as there is room for. All threads of the block come here together.
template <class B, class Bits, class Visit>
__device__ void for_voxels(List& list, Bits&& bits_of, Visit&& visit) {
  const int row = threadIdx.x;
  bool waits = row < B::kRows;
  do {
    if (threadIdx.x == 0) {
      list.count = 0;
      list.end = List::kRoom;
    }
    __syncthreads();
    if (waits) {
      const uint4 bits = bits_of(B::row_z(row), B::row_y(row));
      const int count = __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
      int at = count > 0 ? atomicAdd(&list.count, count) : 0;
      waits = at + count > List::kRoom;
      const auto append = [&](uint32_t word, int x) {
#pragma unroll 1
        for (; word != 0; word &= word - 1) {
          list.entries[at++] = uint16_t(row * 128 + x + __ffs(int(word)) - 1);
        }
      };
      if (waits) {
        atomicMin(&list.end, at);  // what comes later finds no room either
      } else {
        append(bits.x, 0);
        append(bits.y, 32);
        append(bits.z, 64);
        append(bits.w, 96);
      }
    }
    __syncthreads();
    visit(min(list.count, list.end));
  } while (__syncthreads_or(waits));
}

// --- Samples ---

// For float, a few units in the last place do; correct rounding costs branches, calls and registers.
#ifdef __CUDA_ARCH__
__device__ float fast_log2(float x) {  // to 2^-22 of the result or of 1, whichever is larger
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ float root(float x) {
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#else
__device__ float fast_log2(float x) { return log2f(x); }
__device__ float root(float x) { return sqrtf(x); }
#endif
__device__ double root(double x) { return sqrt(x); }
__device__ float divide(float a, float b) { return __fdividef(a, b); }
__device__ double divide(double a, double b) { return a / b; }

template <class Acc>
__device__ Acc sigmoid(Acc x) {
  return divide(Acc(1), Acc(1) + math::exp(-x));
}

// -log(u) to 4e-7 of itself, for u from uniform(). 1 - u is exact, and has all the bits near 1,
// where the logarithm's error would be large; the polynomial is fitted to 4e-8.
__device__ float minus_log(float u) {
  const float w = 1.0f - u;
  float p = 0.3398001f;
  p = p * w + 0.14391336f;
  p = p * w + 0.2577998f;
  p = p * w + 0.3328566f;
  p = p * w + 0.5000105f;
  p = p * w + 0.99999994f;
  return w < 0.25f ? w * p : -0.69314718f * fast_log2(u);
}

// math::uniform to the bit, without a conversion: the word becomes the mantissa of a number in
// [1, 2).
__device__ float uniform(uint32_t word) {
  return __uint_as_float(word >> 9 | 0x3F800000u) - 0x1.FFFFFEp-1f;
}

__device__ float gumbel(uint32_t word, float) {
  return -0.69314718f * fast_log2(minus_log(uniform(word)));
}
__device__ double gumbel(uint32_t word, double) {
  return math::gumbel(math::uniform<double>(word));
}

__device__ float logistic(uint32_t word, float) {
  const float u = uniform(word);
  return minus_log(1.0f - u) - minus_log(u);
}
__device__ double logistic(uint32_t word, double) {
  return math::logistic(math::uniform<double>(word));
}

__device__ void find_keys(const Task& t, uint32_t keys[math::kPhiloxKeys]) {
  const int i = threadIdx.x;
  if (i < math::kPhiloxKeys) keys[i] = math::philox_key(uint64_t(*t.p.seed), i);
}

// A voxel whose sample is wanted.
template <class T>
struct Voxel {
  const T* logit;  // of the next class
  uint64_t index;  // in the batch
};

template <class T>
__device__ Voxel<T> voxel(const Task& t, const Tile& tile, const int64_t* rows, const Place& at) {
  const int64_t voxel = rows[at.row] + at.x;
  return {static_cast<const T*>(t.p.logits.data) + tile.logits + voxel * t.p.logits.voxel_stride,
          uint64_t(tile.index + voxel)};
}

// The logits of the next four classes, from `first` on, with their noise; beyond the last, lowest.
template <class T>
__device__ void noisy_classes(const Task& t, const uint32_t* keys, Voxel<T>& voxel, int first,
                              Accumulate<T> z[4]) {
  using Acc = Accumulate<T>;
  for (int k = 0; k < 4; ++k) {
    z[k] = first + k < t.classes ? widen(*voxel.logit) : -Acc(INFINITY);
    voxel.logit += t.p.logits.channel_stride;
  }
  const math::Words words = math::philox(keys, voxel.index, uint32_t(first / 4));
  for (int k = 0; k < 4; ++k) {
    if (first + k < t.classes) z[k] += gumbel(words.word[k], Acc());
  }
}

template <class T>
__device__ Accumulate<T> noisy_region(const uint32_t* keys, const Voxel<T>& voxel,
                                      int64_t region) {
  const math::Words words = math::philox(keys, voxel.index, uint32_t(region / 4));
  const int k = int(region % 4);
  const uint32_t even = k < 2 ? words.word[0] : words.word[2];
  const uint32_t odd = k < 2 ? words.word[1] : words.word[3];
  return widen(*voxel.logit) + logistic(k % 2 == 0 ? even : odd, Accumulate<T>());
}

// A voxel's soft sample: exp((z - highest) / tau), its weight, over the sum of all classes'.
template <class Acc>
struct Softmax {
  Acc inverse_tau;
  Acc highest = -Acc(FLT_MAX), sum = 0;

  __device__ void weigh(const Acc z[4], Acc weights[4]) const {
    for (int k = 0; k < 4; ++k) weights[k] = math::exp((z[k] - highest) * inverse_tau);
  }

  // Returns the factor that sums of weights made so far are to be multiplied by.
  __device__ Acc add(const Acc z[4], Acc weights[4]) {
    const Acc before = highest;
    for (int k = 0; k < 4; ++k) highest = z[k] > highest ? z[k] : highest;
    weigh(z, weights);
    const Acc factor = math::exp((before - highest) * inverse_tau);
    sum = sum * factor + (weights[0] + weights[1]) + (weights[2] + weights[3]);
    return factor;
  }
};

template <class T, class B>
__device__ void draw_hard(const Task& t, const Tile& tile, const int64_t* rows,
                          const uint32_t* keys, const Place& at, uint8_t* hard) {
  Voxel<T> next = voxel<T>(t, tile, rows, at);
  if (!t.p.softmax) {
    hard[at.index] = noisy_region(keys, next, tile.region) > 0 ? kInside : 0;
    return;
  }
  Accumulate<T> z[4], highest = 0;
  int best = 0;
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, keys, next, first, z);
    for (int k = 0; k < 4; ++k) {
      if (first + k == 0 || z[k] > highest) {
        highest = z[k];
        best = first + k;
      }
    }
  }
  hard[at.index] = uint8_t(best);
}

template <class T, class B>
__device__ void draw_soft(const Task& t, const Tile& tile, const int64_t* rows,
                          const uint32_t* keys, const Place& at, Accumulate<T>* soft) {
  using Acc = Accumulate<T>;
  Voxel<T> next = voxel<T>(t, tile, rows, at);
  Softmax<Acc> softmax{Acc(t.inverse_tau)};
  if (!t.p.softmax) {
    soft[at.index] = sigmoid(noisy_region(keys, next, tile.region) * softmax.inverse_tau);
    return;
  }
  Acc z[4], weights[4];
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, keys, next, first, z);
    softmax.add(z, weights);
  }
  next = voxel<T>(t, tile, rows, at);
  for (int first = 0; first < t.classes; first += 4) {
    if (t.classes > 4) {
      noisy_classes(t, keys, next, first, z);
      softmax.weigh(z, weights);
    }
    for (int k = 0; k < 4 && first + k < t.classes; ++k) {
      soft[(first + k) * B::kBytes + at.index] = divide(weights[k], softmax.sum);
    }
  }
}

// Draws the samples of the band around the candidates, soft ones if `soft` is not null.
template <class T, class B>
__device__ void draw(const Task& t, const Tile& tile, const int64_t* rows, const uint32_t* keys,
                     const uint4* candidates, List& list, bool hard_too, uint8_t* hard,
                     Accumulate<T>* soft) {
  for_voxels<B>(
      list, [&](int z, int y) { return band<B>(tile, candidates, z, y); },
      [&](int count) {
        for (int k = threadIdx.x; hard_too && k < count; k += kThreads) {
          draw_hard<T, B>(t, tile, rows, keys, place<B>(list.entries[k]), hard);
        }
        for (int k = threadIdx.x; soft && k < count; k += kThreads) {
          draw_soft<T, B>(t, tile, rows, keys, place<B>(list.entries[k]), soft);
        }
      });
  if (hard_too) replicate<B>(tile, hard);
  for (int c = 0; soft && c < t.classes; ++c) replicate<B>(tile, soft + c * B::kBytes);
}

// --- Gradients ---

// The unscaled gradients of four classes' indicators, from -16 to 16: a byte each of three words.
struct Gradients {
  uint32_t z = 0, y = 0, x = 0;

  // The bytes that are not 0 tell which gradients are not.
  __device__ uint32_t nonzero() const { return z | y | x; }
  __device__ int z_of(int k) const { return int8_t(z >> 8 * k); }
  __device__ int y_of(int k) const { return int8_t(y >> 8 * k); }
  __device__ int x_of(int k) const { return int8_t(x >> 8 * k); }
  __device__ int squared(int k) const {
    return z_of(k) * z_of(k) + y_of(k) * y_of(k) + x_of(k) * x_of(k);
  }
};

// Those of the classes whose codes times 8 are `shift`, `shift` + 8 and so on.
template <class B>
__device__ Gradients gradients(const uint8_t* at, uint32_t shift) {
  // Of four bytes, that of the voxel's class is 1; a shift by 32 or more leaves none.
  const auto indicators = [shift](uint8_t code) {
    return __funnelshift_lc(0, 1, code * 8u - shift);
  };
  constexpr uint32_t kSmooth[3] = {1, 2, 1}, kDiffer[3] = {~0u, 0, 1};
  constexpr uint32_t kBias = 0x80808080u;  // keeps each byte from borrowing from the next
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

// Which groups of four classes, modulo 32, a neighbourhood holds.
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

// One edge's term of the loss: the sample's gradient, unscaled, its magnitude, and by how much that
// exceeds the truth's.
template <class Acc>
struct Term {
  Acc z = 0, y = 0, x = 0, magnitude, mismatch;
};

// Of class k: from the soft sample at `at` or, where that is null, the hard one.
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

// visit(place, class, lanes, k, truth, sample) for each listed voxel and class that is an edge, by
// all lanes of a warp together, of which `lanes` are at one. Its gradients are those of k in `truth`
// and, with `hard_too`, in `sample`.
template <class B, class Visit>
__device__ void for_edges(const Task& t, const uint8_t* truth, bool hard_too, const uint8_t* hard,
                          const List& list, int count, Visit&& visit) {
  const int lane = threadIdx.x % 32;
  for (int base = threadIdx.x - lane; base < count; base += kThreads) {
    const bool listed = base + lane < count;
    const Place at = place<B>(list.entries[listed ? base + lane : base]);
    uint32_t groups = ~0u, shift = 8 * t.code;
    if (t.classes > 4) {
      groups = groups_near<B>(truth + at.index);
      if (t.p.support_both) groups |= groups_near<B>(hard + at.index);
    }
#pragma unroll 1
    for (int first = 0; first < t.classes; first += 4, shift += 32) {
      if (!__any_sync(kWarp, groups >> (first / 4 & 31) & 1)) continue;
      const Gradients g = gradients<B>(truth + at.index, shift);
      const Gradients h = hard_too ? gradients<B>(hard + at.index, shift) : Gradients{};
      uint32_t edges = listed ? g.nonzero() | (t.p.support_both ? h.nonzero() : 0) : 0;
#pragma unroll 1
      for (int k = 0; k < 4; ++k, edges >>= 8) {
        const unsigned lanes = __ballot_sync(kWarp, (edges & 0xFF) != 0);
        if (lanes != 0) visit(at, first + k, lanes, k, g, h);
      }
    }
  }
}

// --- Forward ---

// A mismatch, at most the root of 3, as an integer. 32 lanes' floats sum up without overflow.
constexpr int kFloatUnit = 26;
__device__ unsigned fixed(float mismatch, int) {
  return unsigned(__float2int_rn(mismatch * float(1 << kFloatUnit)));
}
__device__ unsigned long long fixed(double mismatch, int unit) {
  return (unsigned long long)(llrint(ldexp(mismatch, unit)));
}

template <class V>
__device__ V warp_sum(V value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kWarp, value, lane);
  return value;
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ unsigned warp_sum(unsigned value) { return __reduce_add_sync(kWarp, value); }
#endif

// Marks the candidates in a tile's core, for backward in global memory. Returns whether there are
// any.
template <class B>
__device__ bool mark(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* truth,
                     Differences<B>& differences, uint4* candidates) {
  constexpr int kColumns = B::kWidth / 32;
  static_assert(kColumns * B::kHeight * B::kDepth == kThreads, "there is a thread for each word");
  if (threadIdx.x < B::kSetRows) candidates[threadIdx.x] = {};
  const bool constant = !__syncthreads_or(load_target<B>(t, tile, rows, truth));
  if (constant && t.forward && !t.p.support_both) return false;
  replicate<B>(tile, truth);
  differences.find(truth);
  __syncthreads();
  const int column = threadIdx.x % kColumns, y = threadIdx.x / kColumns % B::kHeight;
  const int z = threadIdx.x / kColumns / B::kHeight, x = 32 * column;
  uint32_t bits = 0;
  if (z <= tile.z.last && y <= tile.y.last && x <= tile.x.last) {
    bits = t.p.support_both ? ~0u : differences.near(column, B::row(z, y));
    bits &= bits_inside(tile.x, x);
    reinterpret_cast<uint32_t*>(candidates + B::set_row(z, y))[column + 1] = bits;
    if (!t.forward) {
      const int64_t row = tile.row + (tile.z0 + z) * t.p.size.height + tile.y0 + y;
      t.candidates[row * t.words + (tile.x0 + x) / 32] = bits;
    }
  }
  return __syncthreads_or(bits != 0);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    compare_kernel(const __grid_constant__ Task t, unsigned first_tile) {
  using Acc = Accumulate<T>;
  using B = CompareBox;
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ union {
    Differences<B> differences;
    List list;
  } memory;
  __shared__ uint4 candidates[B::kSetRows];
  __shared__ int64_t rows[B::kRows];
  alignas(16) __shared__ uint32_t keys[math::kPhiloxKeys];
  __shared__ Tile tile;
  if (threadIdx.x == 0) tile = tile_at<B>(t, first_tile + blockIdx.x);
  __syncthreads();
  find_rows<B>(t, tile, rows);
  __syncthreads();
  if (!mark<B>(t, tile, rows, truth, memory.differences, candidates)) return;

  const bool hard_too = t.p.support_both || t.p.hard;
  Acc* soft = nullptr;
  if (!t.p.hard) soft = static_cast<Acc*>(t.soft) + blockIdx.x * int64_t(t.classes) * B::kBytes;
  List& list = memory.list;
  find_keys(t, keys);
  draw<T, B>(t, tile, rows, keys, candidates, list, hard_too, hard, soft);
  const int lane = threadIdx.x % 32;
  unsigned long long* totals = t.totals + 2 * tile.pair + lane;
  for_voxels<B>(
      list, [&](int z, int y) { return candidates[B::set_row(z, y)]; },
      [&](int count) {
        for_edges<B>(t, truth, hard_too, hard, list, count,
                     [&](const Place& at, int c, unsigned lanes, int k, const Gradients& of_truth,
                         const Gradients& of_hard) {
          decltype(fixed(Acc(), 0)) amount = 0;
          if (lanes >> lane & 1) {
            const Acc mismatch =
                term<B>(of_truth, of_hard, k, soft, c * B::kBytes + at.index).mismatch;
            if (mismatch == mismatch) {
              amount = fixed(mismatch < 0 ? -mismatch : mismatch, t.unit);
            } else {
              atomicExch(t.invalid, 1);
            }
          }
          amount = warp_sum(amount);
          if (lane < 2) {
            atomicAdd(totals + 2 * c, (unsigned long long)(lane == 0 ? __popc(lanes) : amount));
          }
        });
      });
}

// What each edge of such a sample and class contributes to the loss.
__device__ double share_of(const Task& t, int64_t edges) {
  return edges > 0 ? 1 / (double(t.p.size.batch * t.p.size.channels) * double(edges)) : 0;
}

// One warp: the loss and the numbers of edges.
template <class Acc>
__global__ void loss_kernel(const __grid_constant__ Task t) {
  double loss = 0;
  for (int64_t i = threadIdx.x; i < t.p.size.batch * t.p.size.channels; i += 32) {
    const int64_t edges = int64_t(t.totals[2 * i]);
    loss += ldexp(double(t.totals[2 * i + 1]), -t.unit) * share_of(t, edges);
    t.p.edges[i] = edges;
  }
  loss = warp_sum(loss);
  if (threadIdx.x == 0) *static_cast<Acc*>(t.p.loss) = *t.invalid ? Acc(NAN) : Acc(loss);
}

// --- Backward ---

__global__ void __launch_bounds__(kThreads)
    mark_kernel(const __grid_constant__ Task t, unsigned first_tile) {
  using B = CompareBox;
  alignas(16) __shared__ uint8_t truth[B::kBytes];
  __shared__ Differences<B> differences;
  __shared__ uint4 candidates[B::kSetRows];
  __shared__ int64_t rows[B::kRows];
  __shared__ Tile tile;
  if (threadIdx.x == 0) tile = tile_at<B>(t, first_tile + blockIdx.x);
  __syncthreads();
  find_rows<B>(t, tile, rows);
  __syncthreads();
  mark<B>(t, tile, rows, truth, differences, candidates);
}

// One warp: what the gradients of the mismatches are multiplied by.
template <class Acc>
__global__ void scales_kernel(const __grid_constant__ Task t) {
  const double grad = double(*static_cast<const Acc*>(t.p.grad));
  for (int64_t i = threadIdx.x; i < t.p.size.batch * t.p.size.channels; i += 32) {
    static_cast<Acc*>(t.scales)[i] = Acc(grad * share_of(t, t.p.edges[i]));
  }
}

// Numbers of at most 4.5 as integers.
template <class Acc>
struct Fixed {
  using Type = int;
  using Atomic = int;
  static constexpr Acc kOne = Acc(1 << 28);
  static __device__ Type from(Acc value) { return __float2int_rn(value * kOne); }
};
template <>
struct Fixed<double> {
  using Type = long long;
  using Atomic = unsigned long long;
  static constexpr double kOne = double(1ll << 60);
  static __device__ Type from(double value) { return llrint(value * kOne); }
};

// The part of a core, some rows or a piece of one, whose sums over edges have room: of each class
// and row a line, with two more voxels on either side.
struct Window {
  static constexpr int kBytes = 18432;
  int first_row, rows, first_x, width;

  static __host__ __device__ constexpr int pitch(int width) { return width + 4; }
  __device__ int line(int row) const { return (row - first_row) * pitch(width) + 2 - first_x; }
  __device__ int lines() const { return rows * pitch(width); }
  __device__ bool contains(int row) const {
    return row >= first_row && row < first_row + rows;
  }
};

// Adds one edge's gradient, slope times the term's and at most 1/16, times the weights of the voxels
// around to their sums. A voxel's sum stays below 4.5, as each of the 27 weights comes once. What
// lies beyond the volume's border in z or y goes where that is replicated.
template <class B, class Acc, class Sum>
__device__ void scatter(const Window& window, const Tile& tile, const Place& at, Acc slope,
                        const Term<Acc>& term, Sum* sums) {
  constexpr int kElsewhere = 1 << 20;
  const int at_z = B::row_z(at.row), at_y = B::row_y(at.row);
  const Sum z = Fixed<Acc>::from(slope * term.z), y = Fixed<Acc>::from(slope * term.y);
  const Sum x = Fixed<Acc>::from(slope * term.x);
#pragma unroll 1
  for (int i = -1; i <= 1; ++i) {
    const int to_z = tile.z.clamp(at_z + i);
    const int plane = to_z >= 0 && to_z < B::kDepth ? to_z * B::kHeight : kElsewhere;
#pragma unroll
    for (int j = -1; j <= 1; ++j) {
      const int to_y = tile.y.clamp(at_y + j);
      const int row = plane + (to_y >= 0 && to_y < B::kHeight ? to_y : kElsewhere);
      if (!window.contains(row)) continue;
      using Atomic = typename Fixed<Acc>::Atomic;
      Atomic* to = reinterpret_cast<Atomic*>(sums) + window.line(row) + at.x;
      const Sum sum = z * (i * (2 - j * j)) + y * ((2 - i * i) * j);
      const Sum difference = x * ((2 - i * i) * (2 - j * j));
      atomicAdd(to - 1, Atomic(sum - difference));
      atomicAdd(to, Atomic(2 * sum));
      atomicAdd(to + 1, Atomic(sum + difference));
    }
  }
}

// Moves what was added beyond the volume's border in x to where that is replicated.
template <class Sum>
__device__ void fold(const Window& window, const Tile& tile, int classes, Sum* sums) {
  const bool before = tile.x.first == 0 && window.first_x == 0;
  const bool after = tile.x.last >= window.first_x && tile.x.last < window.first_x + window.width;
  for (int i = threadIdx.x; i < classes * window.rows; i += kThreads) {
    Sum* line = sums + i * Window::pitch(window.width) + 2 - window.first_x;
    if (before) line[0] += line[-1];
    if (after) line[tile.x.last] += line[tile.x.last + 1];
  }
  __syncthreads();
}

// From the gradient of a voxel's sample, its first class at `sums` and the next `pitch` further, to
// that of its logits.
template <class T, class Sum>
__device__ void finish(const Task& t, const Tile& tile, const int64_t* rows, const uint32_t* keys,
                       const Place& at, const Sum* sums, int pitch) {
  using Acc = Accumulate<T>;
  const Acc* scales = static_cast<const Acc*>(t.scales) + tile.pair;
  const auto grad = [&](int c) {
    return Acc(sums[c * pitch]) * (1 / Fixed<Acc>::kOne) * scales[c];
  };
  T* out = static_cast<T*>(t.p.grad_logits.data) + tile.grad +
           (rows[at.row] + at.x) * t.p.grad_logits.voxel_stride;
  Voxel<T> next = voxel<T>(t, tile, rows, at);
  Softmax<Acc> softmax{Acc(t.inverse_tau)};
  if (!t.p.softmax) {
    const Acc q = sigmoid(noisy_region(keys, next, tile.region) * softmax.inverse_tau);
    *out = narrow<T>(q * softmax.inverse_tau * (grad(0) * (1 - q)));
    return;
  }
  Acc z[4], weights[4], mean = 0;
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, keys, next, first, z);
    mean *= softmax.add(z, weights);
    for (int k = 0; k < 4; ++k) {
      if (first + k < t.classes) mean += weights[k] * grad(first + k);
    }
  }
  const Acc inverse_sum = divide(Acc(1), softmax.sum);
  mean *= inverse_sum;
  next = voxel<T>(t, tile, rows, at);
  for (int first = 0; first < t.classes; first += 4) {
    if (t.classes > 4) {
      noisy_classes(t, keys, next, first, z);
      softmax.weigh(z, weights);
    }
    for (int k = 0; k < 4 && first + k < t.classes; ++k) {
      const Acc q = weights[k] * inverse_sum;
      *out = narrow<T>(q * softmax.inverse_tau * (grad(first + k) - mean));
      out += t.p.grad_logits.channel_stride;
    }
  }
}

// Writes zeros to the core.
template <class T, class B>
__device__ void zero(const Task& t, const Tile& tile, const int64_t* rows) {
  constexpr int kPerVector = 16 / sizeof(T), kLanes = B::kWidth / kPerVector;
  constexpr int kCoreRows = B::kHeight * B::kDepth;
  const Tensor& grad = t.p.grad_logits;
  // The voxels of a row lie together; or with all their channels; or, as one region, apart.
  const bool interleaved = t.p.softmax && grad.voxel_stride != 1;
  const int runs = kCoreRows * (interleaved ? 1 : t.classes);
  const int length = min(tile.x.last + 1, B::kWidth) * (interleaved ? t.classes : 1);
  const int64_t stride = interleaved ? 1 : grad.voxel_stride;
  for (int run = threadIdx.x / kLanes; run < runs; run += kThreads / kLanes) {
    const int c = run / kCoreRows, z = run % kCoreRows / B::kHeight, y = run % B::kHeight;
    if (z > tile.z.last || y > tile.y.last) continue;
    T* out = static_cast<T*>(grad.data) + tile.grad + c * grad.channel_stride +
             rows[B::row(z, y)] * grad.voxel_stride;
    if (t.grad_vectors) {
      for (int i = threadIdx.x % kLanes * kPerVector; i < length; i += B::kWidth) {
        __stcs(reinterpret_cast<uint4*>(out + i), make_uint4(0, 0, 0, 0));
      }
    } else {
      for (int i = threadIdx.x % kLanes; i < length; i += kLanes) out[i * stride] = narrow<T>(0);
    }
  }
}

// Loads the candidates of the core and one voxel around. Returns whether there are any.
template <class B>
__device__ bool load_candidates(const Task& t, const Tile& tile, uint4* candidates) {
  const int z = int(threadIdx.x) / B::kSetHigh - B::kHalo - 1;
  const int y = int(threadIdx.x) % B::kSetHigh - B::kHalo - 1;
  uint4 bits{};
  if (z >= -1 && z <= B::kDepth && tile.z.contains(z) && y >= -1 && y <= B::kHeight &&
      tile.y.contains(y)) {
    const int64_t row = tile.row + (tile.z0 + z) * t.p.size.height + tile.y0 + y;
    const int64_t column = tile.x0 / 32;
    const uint32_t* words = t.candidates + row * t.words + column;
    bits.y = words[0];
    if (column > 0) bits.x = words[-1] & 1u << 31;
    if (column + 1 < t.words) bits.z = words[1] & 1u;
  }
  if (threadIdx.x < B::kSetRows) candidates[threadIdx.x] = bits;
  return __syncthreads_or((bits.x | bits.y | bits.z) != 0);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(const __grid_constant__ Task t, unsigned first_tile, unsigned tile_rows,
                    unsigned stride) {
  using Acc = Accumulate<T>;
  using B = BackwardBox;
  using Sum = typename Fixed<Acc>::Type;
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ Sum sums[Window::kBytes / sizeof(Sum)];  // (classes, rows, pitch)
  __shared__ List list;
  __shared__ uint4 candidates[B::kSetRows];
  __shared__ int64_t rows[B::kRows];
  alignas(16) __shared__ uint32_t keys[math::kPhiloxKeys];
  __shared__ Tile tile;
  if (threadIdx.x == 0) {
    const unsigned across = unsigned(divide_up<int64_t>(t.p.size.width, B::kWidth));
    const unsigned index = first_tile + blockIdx.x;
    const unsigned row = unsigned(uint64_t(index / across) * stride % tile_rows);
    tile = tile_at<B>(t, row * across + index % across);
  }
  __syncthreads();
  find_rows<B>(t, tile, rows);
  const bool any = load_candidates<B>(t, tile, candidates);
  zero<T, B>(t, tile, rows);
  if (!any) return;

  const bool hard_too = t.p.support_both || t.p.hard;
  Acc* soft = nullptr;
  if (!t.p.hard) soft = static_cast<Acc*>(t.soft) + blockIdx.x * int64_t(t.classes) * B::kBytes;
  find_keys(t, keys);
  load_target<B>(t, tile, rows, truth);
  __syncthreads();
  replicate<B>(tile, truth);
  draw<T, B>(t, tile, rows, keys, candidates, list, hard_too, hard, soft);

  constexpr int kCoreRows = B::kHeight * B::kDepth;
  for (int first_row = 0; first_row < kCoreRows; first_row += t.rows) {
    for (int first_x = 0; first_x < B::kWidth; first_x += t.width) {
      const Window window{first_row, min(t.rows, kCoreRows - first_row), first_x, t.width};
      const int first_z = first_row / B::kHeight, last_z = (first_row + t.rows - 1) / B::kHeight;
      const Range around{first_x - 1, first_x + t.width};
      for (int k = threadIdx.x; k < window.lines() * t.classes; k += kThreads) sums[k] = 0;
      for_voxels<B>(
          list,
          [&](int z, int y) -> uint4 {
            if (z < first_z - 1 || z > last_z + 1) return {};
            const uint4 row = candidates[B::set_row(z, y)];
            return {row.x & bits_inside(around, -32), row.y & bits_inside(around, 0),
                    row.z & bits_inside(around, 32), 0};
          },
          [&](int count) {
            for_edges<B>(t, truth, hard_too, hard, list, count,
                         [&](const Place& at, int c, unsigned lanes, int k,
                             const Gradients& of_truth, const Gradients& of_hard) {
              if (!(lanes >> threadIdx.x % 32 & 1)) return;
              const Term<Acc> of = term<B>(of_truth, of_hard, k, soft, c * B::kBytes + at.index);
              if (!(of.magnitude > 0) || of.mismatch == 0) return;
              const Acc sign = of.mismatch < 0 ? -1 : 1;
              const Acc slope = divide(sign * Acc(1.0 / 256), of.magnitude);
              scatter<B>(window, tile, at, slope, of, sums + c * window.lines());
            });
          });
      fold(window, tile, t.classes, sums);
      for_voxels<B>(
          list,
          [&](int z, int y) -> uint4 {
            if (y < 0 || y >= B::kHeight || !window.contains(z * B::kHeight + y)) return {};
            const Range inside{first_x, first_x + t.width - 1};
            return {0, band<B>(tile, candidates, z, y).y & bits_inside(inside, 0), 0, 0};
          },
          [&](int count) {
            for (int k = threadIdx.x; k < count; k += kThreads) {
              const Place at = place<B>(list.entries[k]);
              const int row = B::row_z(at.row) * B::kHeight + B::row_y(at.row);
              const Sum* gradients = sums + window.line(row) + at.x;
              finish<T>(t, tile, rows, keys, at, gradients, window.lines());
            }
          });
    }
  }
}

// --- Host ---

template <class B>
int64_t tile_count(const Consistency& p) {
  return (p.softmax ? 1 : p.size.channels) * p.size.batch *
         divide_up<int64_t>(p.size.depth, B::kDepth) *
         divide_up<int64_t>(p.size.height, B::kHeight) *
         divide_up<int64_t>(p.size.width, B::kWidth);
}

struct Plan {
  Task task;
  int64_t blocks;  // at most, in a launch that keeps soft samples
  size_t bytes;    // of workspace
};

Plan make_plan(const ConsistencyBackward& p, bool forward) {
  const Size& size = p.size;
  if (p.softmax && size.channels > kNoClass) {
    throw std::runtime_error("egcnn: consistency on CUDA takes at most 255 classes");
  }
  if (tile_count<BackwardBox>(p) > INT32_MAX) {
    throw std::runtime_error("egcnn: the volume is too large for consistency");
  }
  const int64_t element = p.logits.dtype == DType::f64   ? 8
                          : p.logits.dtype == DType::f32 ? 4
                                                         : 2;
  const int64_t accumulate = element == 8 ? 8 : 4;
  const auto aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  };
  Plan plan{};
  Task& t = plan.task;
  t.p = p;
  t.forward = forward;
  t.classes = p.softmax ? int(size.channels) : 1;
  t.code = p.softmax ? 0 : kInside;
  t.voxels = size.voxels();
  t.words = divide_up<int64_t>(size.width, 32);
  t.inverse_tau = 1 / p.tau;
  t.target_vectors = p.target.dtype == DType::u8 && p.target.voxel_stride == 1 &&
                     size.width % 16 == 0 && aligned(p.target);
  t.grad_vectors = (p.softmax || p.grad_logits.voxel_stride == 1) && aligned(p.grad_logits) &&
                   size.width * p.grad_logits.voxel_stride * element % 16 == 0;
  const int room = Window::kBytes / int(accumulate) / t.classes;
  t.rows = std::clamp(room / Window::pitch(BackwardBox::kWidth), 1,
                      BackwardBox::kHeight * BackwardBox::kDepth);
  t.width = std::min(BackwardBox::kWidth, room / t.rows - Window::pitch(0));
  // For double, the least unit in which a volume's sum has room.
  t.unit = element == 8 ? 61 : kFloatUnit;
  for (int64_t n = t.voxels; element == 8 && n > 0; n /= 2) --t.unit;

  // Soft samples have room for as many blocks as fill the GPU, or as 256 MB hold.
  const int64_t tiles = forward ? tile_count<CompareBox>(p) : tile_count<BackwardBox>(p);
  const int64_t soft = t.classes * accumulate * (forward ? CompareBox::kBytes : BackwardBox::kBytes);
  plan.blocks = p.hard ? tiles
                       : std::clamp<int64_t>((256 << 20) / soft, 1,
                                             4 * multiprocessors(p.resources.device));
  const int64_t pairs = size.batch * size.channels, volumes = pairs / t.classes;
  char* const start = static_cast<char*>(p.resources.workspace);
  const auto take = [&](auto*& array, int64_t count, int64_t each) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(start + plan.bytes);
    plan.bytes += (size_t(count * each) + 63) / 64 * 64;
  };
  take(t.totals, forward ? 2 * pairs : 0, sizeof *t.totals);
  take(t.invalid, forward, sizeof *t.invalid);
  take(t.scales, forward ? 0 : pairs, accumulate);
  take(t.candidates, forward ? 0 : volumes * size.depth * size.height * t.words,
       sizeof *t.candidates);
  take(t.soft, p.hard ? 0 : plan.blocks, soft);
  return plan;
}

void clear(const Resources& resources, void* data, size_t bytes) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(resources.stream)),
        "cudaMemsetAsync");
}

// Launches one block for each tile, so many at a time.
template <class... Parameters, class... Arguments>
void launch_tiles(const char* name, const Plan& plan, int64_t tiles, int64_t at_a_time,
                  void (*kernel)(Task, unsigned, Parameters...), Arguments... arguments) {
  for (int64_t first = 0; first < tiles; first += at_a_time) {
    launch(name, plan.task.p.resources, std::min(at_a_time, tiles - first), kThreads, 0, kernel,
           plan.task, unsigned(first), arguments...);
  }
}

}  // namespace

size_t consistency_workspace(const Consistency& p) {
  return p.size.empty() ? 0 : make_plan({p, nullptr, {}}, true).bytes;
}
size_t consistency_backward_workspace(const ConsistencyBackward& p) {
  return p.size.empty() ? 0 : make_plan(p, false).bytes;
}

void consistency_launch(const Consistency& p) {
  const DeviceGuard guard(p.resources.device);
  if (p.size.empty()) {
    const bool is_double = p.logits.dtype == DType::f64;
    clear(p.resources, p.edges, p.size.batch * p.size.channels * sizeof *p.edges);
    return clear(p.resources, p.loss, is_double ? sizeof(double) : sizeof(float));
  }
  const Plan plan = make_plan({p, nullptr, {}}, true);
  const Task& t = plan.task;
  clear(p.resources, t.totals,
        static_cast<char*>(t.scales) - reinterpret_cast<char*>(t.totals));
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_tiles("consistency's compare_kernel", plan, tile_count<CompareBox>(p), plan.blocks,
                 compare_kernel<T>);
    launch("consistency's loss_kernel", p.resources, 1, 32, 0, loss_kernel<Accumulate<T>>, t);
  });
}

void consistency_backward_launch(const ConsistencyBackward& p) {
  if (p.size.empty()) return;
  const DeviceGuard guard(p.resources.device);
  const Plan plan = make_plan(p, false);
  // Tiles with much work lie near one another, as do those of zeros. Taking rows of tiles in steps
  // of about the golden ratio, without a divisor in common, mixes them at all times.
  const int64_t tiles = tile_count<BackwardBox>(p);
  const int64_t rows = tiles / divide_up<int64_t>(p.size.width, BackwardBox::kWidth);
  int64_t stride = int64_t(0.618 * double(rows)) + 1;
  while (std::gcd(stride, rows) != 1) ++stride;
  const int64_t marked = tile_count<CompareBox>(p);
  launch_tiles("consistency's mark_kernel", plan, marked, marked, mark_kernel);
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("consistency's scales_kernel", p.resources, 1, 32, 0, scales_kernel<Accumulate<T>>,
           plan.task);
    launch_tiles("consistency's backward_kernel", plan, tiles, plan.blocks, backward_kernel<T>,
                 unsigned(rows), unsigned(stride));
  });
}

}  // namespace egcnn::cuda
