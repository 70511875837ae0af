// The consistency loss (Eqs. 7 and 8). Only edge voxels count and only their 3x3x3 neighbourhoods
// are looked at, so noise and softmax are computed in that band alone:
//   mark      reads the target once: one bit a voxel, whether its neighbourhood is not constant (no
//             other voxel is an edge), and a list of the tiles that hold such candidates
//   compare   in those tiles: edges, samples in their band, | ‖∇p‖ - ‖∇y‖ |, sums over all edges;
//             ahead of backward it only counts the edges
//   backward  in all tiles: zeros, and in the band what the edges around give to each logit
// Support "both" draws the hard sample everywhere, so there every voxel is a candidate.
//
// Sums are made of integers, by atomics: their order does not matter, the result is the same to the
// bit. So lists may be in any order too.
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

// Classes are bytes in shared memory. In the sigmoid form each region is a volume of its own, and
// inside is its only class.
constexpr uint8_t kInside = 0, kNone = 255;

// The part of a volume that a block holds in shared memory: a core of kWidth x kHeight x kDepth
// voxels and kHalo voxels around, rows padded by a word on either side, so that words lie as they
// do in global memory. Coordinates count from the core's first voxel.
template <class Word_, int kWidth_, int kHeight_, int kHalo_>
struct Box {
  using Word = Word_;
  static constexpr int kWidth = kWidth_, kHeight = kHeight_, kDepth = 8, kHalo = kHalo_;
  static constexpr int kPad = sizeof(Word), kPitch = kWidth + 2 * kPad;
  static constexpr int kRowsHigh = kHeight + 2 * kHalo;
  static constexpr int kRows = kRowsHigh * (kDepth + 2 * kHalo), kBytes = kRows * kPitch;
  static_assert(kRows <= kThreads, "there is a thread for each row");

  // How many lie in the core and `halo` around.
  static __host__ __device__ constexpr int voxels(int halo) {
    return (kWidth + 2 * halo) * (kHeight + 2 * halo) * (kDepth + 2 * halo);
  }
  // From one voxel to its neighbour.
  static __device__ constexpr int step(int z, int y, int x) {
    return (z * kRowsHigh + y) * kPitch + x;
  }
  static __device__ int row(int z, int y) { return (z + kHalo) * kRowsHigh + y + kHalo; }
  static __device__ int row_z(int row) { return row / kRowsHigh - kHalo; }
  static __device__ int row_y(int row) { return row % kRowsHigh - kHalo; }
  // Whether a row of the box lies in the core or at most `halo` from it.
  static __device__ bool near(int z, int y, int halo) {
    return z >= -halo && z < kDepth + halo && y >= -halo && y < kHeight + halo;
  }
};

// The tiles of each kernel. One of MarkBox is four of CompareBox side by side.
using MarkBox = Box<uint4, 128, 16, 1>;
using CompareBox = Box<uint32_t, 32, 16, 1>;
using BackwardBox = Box<uint32_t, 32, 8, 2>;

struct Counters {
  int tiles;    // in the list
  int next;     // to be taken from it
  int done;     // blocks that are
  int invalid;  // whether a mismatch was not a number
};

// What the kernels share: the call, and the workspace.
struct Task {
  Consistency p;
  bool forward;
  int classes;  // of one volume, which is a sample or, in the sigmoid form, a region of it
  int64_t volumes, voxels, plane;
  int64_t words;   // of candidate bits to a row
  int64_t blocks;  // that are resident and keep soft samples
  int unit;        // mismatches are summed in 2^-unit
  double inverse_tau;
  bool target_vectors;  // the target can be read, the gradient written, 16 bytes at a time
  bool grad_vectors;

  Counters* counters;
  unsigned long long* totals;  // (B, C, 2) the count of edges and the sum of their mismatches
  void* scales;                // (B, C) from the gradient of such a sum to that of the loss
  int* tiles;                  // of CompareBox
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
  int64_t batch, channel;        // channel 0, or the region
  int64_t z0, y0, x0;            // the core's first voxel
  int64_t target, logits, grad;  // the volume's first element
  int64_t row;                   // and its first row of candidate bits
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
  Tile tile;
  tile.batch = volume / regions;
  tile.channel = volume % regions;
  tile.z0 = int64_t(layer % deep) * B::kDepth;
  tile.y0 = int64_t(column % down) * B::kHeight;
  tile.x0 = int64_t(index % across) * B::kWidth;
  tile.target = offset(t.p.target, tile.batch, tile.channel, 0);
  tile.logits = offset(t.p.logits, tile.batch, tile.channel, 0);
  tile.grad = offset(t.p.grad_logits, tile.batch, tile.channel, 0);
  tile.row = volume * s.depth * s.height;
  tile.z = range(tile.z0, s.depth, B::kDepth);
  tile.y = range(tile.y0, s.height, B::kHeight);
  tile.x = range(tile.x0, s.width, B::kWidth);
  return tile;
}

// Fills `rows` with each row's voxel at x = 0, counted in the volume; borders are replicated.
template <class B>
__device__ void find_rows(const Task& t, const Tile& tile, int64_t* rows) {
  const int row = threadIdx.x;
  if (row >= B::kRows) return;
  const int64_t z = tile.z0 + tile.z.clamp(B::row_z(row));
  const int64_t y = tile.y0 + tile.y.clamp(B::row_y(row));
  rows[row] = (z * t.p.size.height + y) * t.p.size.width + tile.x0;
}

// --- Target ---

// The highest bit of each byte that is not 0.
__device__ uint32_t nonzero_bytes(uint32_t word) {
  return (((word & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | word) & 0x80808080u;
}

// Four bytes of a target as classes. A byte that is no class may stay as it is: it equals none.
__device__ uint32_t classes(const Task& t, uint32_t word) {
  return t.p.softmax ? word : (nonzero_bytes(word) >> 7 ^ 0x01010101u) * (kNone ^ kInside);
}
__device__ uint4 classes(const Task& t, uint4 word) {
  return {classes(t, word.x), classes(t, word.y), classes(t, word.z), classes(t, word.w)};
}

// What replicates a border: its word's last or first byte.
__device__ uint32_t repeat(uint32_t word, bool last) {
  return __byte_perm(word, 0, last ? 0x3333 : 0x0000);
}
__device__ uint4 repeat(uint4 word, bool last) {
  const uint32_t bytes = repeat(last ? word.w : word.x, last);
  return {bytes, bytes, bytes, bytes};
}

__device__ bool differ(uint32_t word, uint32_t other) { return word != other; }
__device__ bool differ(uint4 word, uint32_t other) {
  return ((word.x ^ other) | (word.y ^ other) | (word.z ^ other) | (word.w ^ other)) != 0;
}

// Fills a box with classes, borders replicated, from bytes in rows that are aligned. Returns
// whether any of this thread's differs from that of the core's first voxel.
template <class B>
__device__ bool load_bytes(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  using Word = typename B::Word;
  constexpr int kWords = B::kPitch / B::kPad, kRowsAtOnce = kThreads / kWords;
  const uint8_t* target = static_cast<const uint8_t*>(t.p.target.data) + tile.target;
  const uint32_t first = classes(t, target[rows[B::row(0, 0)]] * 0x01010101u);
  const int wanted = threadIdx.x % kWords * B::kPad - B::kPad;
  const int x = min(max(wanted, tile.x.first), tile.x.last + 1 - B::kPad);
  bool differs = false;
  if (threadIdx.x >= kWords * kRowsAtOnce) return false;
#pragma unroll 4
  for (int row = threadIdx.x / kWords; row < B::kRows; row += kRowsAtOnce) {
    Word word = *reinterpret_cast<const Word*>(target + rows[row] + x);
    if (wanted != x) word = repeat(word, wanted > x);
    word = classes(t, word);
    *reinterpret_cast<Word*>(box + row * B::kPitch + B::kPad + wanted) = word;
    differs |= differ(word, first);
  }
  return differs;
}

// The same from any integers.
template <class B, class Label>
__device__ bool load_labels(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  constexpr int kColumns = B::kWidth + 2 * B::kHalo;
  const Label* target = static_cast<const Label*>(t.p.target.data) + tile.target;
  const auto label = [&](int row, int x) -> uint8_t {
    const int64_t value = target[(rows[row] + x) * t.p.target.voxel_stride];
    if (!t.p.softmax) return value != 0 ? kInside : kNone;
    return uint64_t(value) < uint64_t(t.classes) ? value : kNone;
  };
  const uint8_t first = label(B::row(0, 0), 0);
  bool differs = false;
#pragma unroll 4
  for (int i = threadIdx.x; i < B::kRows * kColumns; i += kThreads) {
    const int row = i / kColumns, x = i % kColumns - B::kHalo;
    const uint8_t value = label(row, tile.x.clamp(x));
    box[row * B::kPitch + B::kPad + x] = value;
    differs |= value != first;
  }
  return differs;
}

template <class B>
__device__ bool load_target(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  if (t.target_vectors) return load_bytes<B>(t, tile, rows, box);
  switch (t.p.target.dtype) {
    case DType::u8: return load_labels<B, uint8_t>(t, tile, rows, box);
    case DType::i8: return load_labels<B, int8_t>(t, tile, rows, box);
    case DType::i16: return load_labels<B, int16_t>(t, tile, rows, box);
    case DType::i32: return load_labels<B, int32_t>(t, tile, rows, box);
    default: return load_labels<B, int64_t>(t, tile, rows, box);
  }
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

__global__ void __launch_bounds__(kThreads) mark_kernel(const __grid_constant__ Task t) {
  using B = MarkBox;
  constexpr int kWords = B::kWidth / 32;
  alignas(16) __shared__ uint8_t box[B::kBytes];
  // Of each voxel: whether it differs from those beside it in x, from the next in y, in z.
  __shared__ uint32_t in_x[kWords][B::kRows], in_y[kWords][B::kRows], in_z[kWords][B::kRows];
  __shared__ int64_t rows[B::kRows];
  __shared__ Tile tile;
  __shared__ unsigned active;
  if (threadIdx.x == 0) {
    tile = tile_at<B>(t, blockIdx.x);
    active = 0;
  }
  __syncthreads();
  find_rows<B>(t, tile, rows);
  __syncthreads();
  const bool varies = !t.p.both && __syncthreads_or(load_target<B>(t, tile, rows, box));
  if (varies) {
    for (int i = threadIdx.x; i < B::kRows * kWords; i += kThreads) {
      const int word = i / B::kRows, row = i % B::kRows;
      const uint8_t* at = box + row * B::kPitch + B::kPad + word * 32;
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
      in_x[word][row] = next | next << 1 | uint32_t(at[-1] != at[0]);
      if (row % B::kRowsHigh < B::kRowsHigh - 1) {
        load(B::step(0, 1, 0), other);
        in_y[word][row] = differing(own, other);
      }
      if (row < B::kRows - B::kRowsHigh) {
        load(B::step(1, 0, 0), other);
        in_z[word][row] = differing(own, other);
      }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < B::kHeight * B::kDepth * kWords; i += kThreads) {
    const int word = i % kWords, y = i / kWords % B::kHeight, z = i / kWords / B::kHeight;
    const int inside = tile.x.last + 1 - word * 32;
    if (z > tile.z.last || y > tile.y.last || inside <= 0) continue;
    uint32_t bits = t.p.both ? ~0u : 0;
    if (varies) {
      // A neighbourhood is constant if its nine rows are, and their middle voxels are the same.
      const int row = B::row(z, y);
      for (int k = row - B::kRowsHigh; k <= row + B::kRowsHigh; k += B::kRowsHigh) {
        bits |= in_x[word][k - 1] | in_x[word][k] | in_x[word][k + 1] | in_y[word][k - 1] |
                in_y[word][k];
      }
      bits |= in_z[word][row - B::kRowsHigh] | in_z[word][row];
    }
    if (inside < 32) bits &= (1u << inside) - 1;
    const int64_t row = tile.row + (tile.z0 + z) * t.p.size.height + tile.y0 + y;
    t.candidates[row * t.words + tile.x0 / 32 + word] = bits;
    if (bits != 0) atomicOr(&active, 1u << word);
  }
  __syncthreads();
  if (threadIdx.x < kWords && (active >> threadIdx.x & 1)) {
    const unsigned across = unsigned(divide_up<int64_t>(t.p.size.width, B::kWidth));
    const unsigned narrow = unsigned(divide_up<int64_t>(t.p.size.width, CompareBox::kWidth));
    t.tiles[atomicAdd(&t.counters->tiles, 1)] =
        int(blockIdx.x / across * narrow + blockIdx.x % across * kWords + threadIdx.x);
  }
}

// The candidates of each row of the box that is less than the halo away from the core; bit i stands
// for x = i - kHalo. Returns whether this thread met any.
template <class B>
__device__ bool load_candidates(const Task& t, const Tile& tile, uint64_t* candidates) {
  const int row = threadIdx.x;
  if (row >= B::kRows) return false;
  const int z = B::row_z(row), y = B::row_y(row);
  uint64_t bits = 0;
  if (B::near(z, y, B::kHalo - 1) && tile.z.contains(z) && tile.y.contains(y)) {
    const int64_t word = tile.x0 / 32;
    const uint32_t* at =
        t.candidates +
        (tile.row + (tile.z0 + z) * t.p.size.height + tile.y0 + y) * t.words + word;
    bits = uint64_t(at[0]) << B::kHalo;
    if (B::kHalo == 2) {
      if (word > 0) bits |= uint64_t(at[-1] >> 31) << 1;
      if (word + 1 < t.words) bits |= uint64_t(at[1] & 1) << (B::kWidth + 2);
    }
  }
  candidates[row] = bits;
  return bits != 0;
}

// The voxels of a row that have a candidate in their neighbourhood.
template <class B>
__device__ uint64_t band(const Tile& tile, const uint64_t* candidates, int row) {
  const int z = B::row_z(row), y = B::row_y(row);
  if (!tile.z.contains(z) || !tile.y.contains(y)) return 0;
  uint64_t bits = 0;
  for (int i = -1; i <= 1; ++i) {
    for (int j = -1; j <= 1; ++j) {
      if (B::near(z + i, y + j, B::kHalo)) bits |= candidates[row + i * B::kRowsHigh + j];
    }
  }
  bits |= bits << 1 | bits >> 1;
  const int first = max(tile.x.first, -B::kHalo) + B::kHalo;
  const int last = min(tile.x.last, B::kWidth + B::kHalo - 1) + B::kHalo;
  return bits & ((uint64_t(2) << last) - (uint64_t(1) << first));
}

// Lists hold voxels as 64 row + i, in any order. Appends those that this thread's row has set.
__device__ void append(uint16_t* list, int* count, int row, uint64_t bits) {
  if (bits == 0) return;
  int at = atomicAdd(count, __popcll(bits));
  for (; bits != 0; bits &= bits - 1) list[at++] = uint16_t(row << 6 | (__ffsll(bits) - 1));
}

struct Place {
  int row, x, index;  // index in the box
};

template <class B>
__device__ Place place(int entry) {
  const int row = entry >> 6, x = (entry & 63) - B::kHalo;
  return {row, x, row * B::kPitch + B::kPad + x};
}

// --- Samples ---

// log of a positive normal float; what logf does beyond that costs as much again.
__device__ float log_of_normal(float x) {
  const int bits = __float_as_int(x), exponent = (bits - 0x3F2AAAAB) & int(0xFF800000);
  const float f = __int_as_float(bits - exponent) - 1.0f;  // in [-1/3, 1/3)
  // log(1 + f) = f + f^2 p(f), with p fitted to the least relative error: 1e-7.
  float p = 0.140263632f;
  p = p * f - 0.153885469f;
  p = p * f + 0.139958069f;
  p = p * f - 0.164159596f;
  p = p * f + 0.200111687f;
  p = p * f - 0.250078201f;
  p = p * f + 0.333331972f;
  p = p * f - 0.499999374f;
  return float(exponent) * (0.693147181f * 0x1p-23f) + (f * p * f + f);
}

// log2 of a positive normal float, to 2^-22 of the result or of 1, whichever is larger.
__device__ float fast_log2(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return log2f(x);
#endif
}

// math::uniform to the bit, without a conversion: the word becomes the mantissa of a number in
// [1, 2).
__device__ float uniform(uint32_t word) {
  return __uint_as_float(word >> 9 | 0x3F800000u) - 0x1.FFFFFEp-1f;
}

// Gumbel noise. The inner logarithm has to be accurate where u is near 1; the outer one does not.
__device__ float gumbel(uint32_t word, float) {
  return -0.693147181f * fast_log2(-log_of_normal(uniform(word)));
}
__device__ double gumbel(uint32_t word, double) {
  return math::gumbel(math::uniform<double>(word));
}

// Logistic noise; 1 - u is exact in float.
__device__ float logistic(uint32_t word, float) {
  const float u = uniform(word);
  return log_of_normal(u) - log_of_normal(1.0f - u);
}
__device__ double logistic(uint32_t word, double) {
  return math::logistic(math::uniform<double>(word));
}

// A voxel whose sample is wanted.
template <class T>
struct Voxel {
  const T* logits;  // of the first class
  uint64_t index;   // in the batch
};

template <class T>
__device__ Voxel<T> voxel(const Task& t, const Tile& tile, const int64_t* rows, const Place& at) {
  const int64_t voxel = rows[at.row] + at.x;
  return {static_cast<const T*>(t.p.logits.data) + tile.logits + voxel * t.p.logits.voxel_stride,
          uint64_t(tile.batch * t.voxels + voxel)};
}

// The logits of classes `first` to `first` + 3 with their noise; of those beyond the last, lowest.
template <class T>
__device__ void noisy_classes(const Task& t, const Voxel<T>& voxel, int first,
                              Accumulate<T> z[4]) {
  using Acc = Accumulate<T>;
  const T* logit = voxel.logits + first * t.p.logits.channel_stride;
  for (int k = 0; k < 4; ++k) {
    z[k] = first + k < t.classes ? widen(*logit) : -Acc(INFINITY);
    logit += t.p.logits.channel_stride;
  }
  const math::Words words = math::philox(uint64_t(*t.p.seed), voxel.index, uint32_t(first / 4));
  for (int k = 0; k < 4; ++k) {
    if (first + k < t.classes) z[k] += gumbel(words.word[k], Acc());
  }
}

template <class T>
__device__ Accumulate<T> noisy_region(const Task& t, const Voxel<T>& voxel, int64_t region) {
  const math::Words words = math::philox(uint64_t(*t.p.seed), voxel.index, uint32_t(region / 4));
  const int k = int(region % 4);
  const uint32_t word = k < 2 ? words.word[k == 0 ? 0 : 1] : words.word[k == 2 ? 2 : 3];
  return widen(*voxel.logits) + logistic(word, Accumulate<T>());
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

// Draws a voxel's hard sample and, where `soft` is not null, its soft one.
template <class T, class B>
__device__ void draw(const Task& t, const Tile& tile, const int64_t* rows, const Place& at,
                     uint8_t* hard, Accumulate<T>* soft) {
  using Acc = Accumulate<T>;
  const Voxel<T> voxel_at = voxel<T>(t, tile, rows, at);
  Softmax<Acc> softmax{Acc(t.inverse_tau)};
  if (!t.p.softmax) {
    const Acc z = noisy_region(t, voxel_at, tile.channel);
    hard[at.index] = z > 0 ? kInside : kNone;
    if (soft) soft[at.index] = math::sigmoid(z * softmax.inverse_tau);
    return;
  }
  Acc z[4], weights[4], highest = 0;
  int best = 0;
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, voxel_at, first, z);
    for (int k = 0; k < 4; ++k) {
      if (first + k == 0 || z[k] > highest) {
        highest = z[k];
        best = first + k;
      }
    }
    if (soft) softmax.add(z, weights);
  }
  hard[at.index] = uint8_t(best);
  if (!soft) return;
  for (int first = 0; first < t.classes; first += 4) {
    if (t.classes > 4) {
      noisy_classes(t, voxel_at, first, z);
      softmax.weigh(z, weights);
    }
    for (int k = 0; k < 4 && first + k < t.classes; ++k) {
      soft[(first + k) * B::kBytes + at.index] = weights[k] / softmax.sum;
    }
  }
}

// Replicates the borders of `boxes` boxes of samples, one axis after the other, for corners. All
// threads of the block come here.
template <class B, class V>
__device__ __noinline__ void replicate(const Tile& tile, V* box, int boxes) {
  const auto along = [&](const Range& in, int length, int step, auto&& start, int lines) {
    const bool before = in.first == 0, after = in.last < length + B::kHalo - 1;
    if (!before && !after) return;
    for (int i = threadIdx.x; i < lines * boxes; i += kThreads) {
      V* line = box + i / lines * B::kBytes + start(i % lines);
      if (before) line[-step] = line[0];
      if (after) line[(in.last + 1) * step] = line[in.last * step];
    }
    __syncthreads();
  };
  const auto row = [](int i) { return i * B::kPitch + B::kPad; };
  along(tile.x, B::kWidth, 1, row, B::kRows);
  constexpr int kPlane = B::step(1, 0, 0);
  const auto column = [](int i) { return i / B::kPitch * kPlane + B::kHalo * B::kPitch + i % B::kPitch; };
  along(tile.y, B::kHeight, B::kPitch, column, B::kRows / B::kRowsHigh * B::kPitch);
  const auto pillar = [](int i) { return B::kHalo * kPlane + i; };
  along(tile.z, B::kDepth, kPlane, pillar, kPlane);
}

// --- Gradients ---

// An indicator's gradient, unscaled.
struct Gradient {
  int z, y, x;
  __device__ int squared() const { return z * z + y * y + x * x; }
};

// The gradients of four classes' indicators, in bytes of three words. They are from -16 to 16; the
// bias keeps each byte from borrowing from the next.
struct Gradients {
  static constexpr uint32_t kBias = 0x20202020u;
  uint32_t z = kBias, y = kBias, x = kBias;

  // The bytes that are not 0 tell which gradients are not.
  __device__ uint32_t nonzero() const { return (z ^ kBias) | (y ^ kBias) | (x ^ kBias); }
  __device__ Gradient of(int k) const {
    return {int(z >> 8 * k & 0xFF) - 32, int(y >> 8 * k & 0xFF) - 32, int(x >> 8 * k & 0xFF) - 32};
  }
};

template <class B>
__device__ Gradients gradients(const uint8_t* at, int first) {
  // The byte of the voxel's class is 1; a shift by 32 or more leaves none.
  const auto indicators = [first](uint8_t code) {
    return __funnelshift_lc(0, 1, code * 8u - unsigned(first) * 8u);
  };
  constexpr uint32_t smooth[3] = {1, 2, 1}, differ[3] = {~0u, 0, 1};
  Gradients g;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const uint8_t* row = at + B::step(i - 1, j - 1, 0);
      const uint32_t before = indicators(row[-1]), after = indicators(row[1]);
      const uint32_t sum = before + 2 * indicators(row[0]) + after;
      g.z += differ[i] * smooth[j] * sum;
      g.y += smooth[i] * differ[j] * sum;
      g.x += smooth[i] * smooth[j] * (after - before);
    }
  }
  return g;
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

// From the sample of one class: the hard one's gradient or, where it is not null, the soft one.
template <class B, class Acc>
__device__ Term<Acc> term(const Gradient& truth, const Gradient& hard, const Acc* soft) {
  Term<Acc> term;
  if (soft) {
    for (int i = -1; i <= 1; ++i) {
      for (int j = -1; j <= 1; ++j) {
        const Acc* row = soft + B::step(i, j, 0);
        const Acc sum = math::smooth(row[-1], row[0], row[1]);
        const Acc smooth_z = Acc(2 - i * i), smooth_y = Acc(2 - j * j);
        term.z += Acc(i) * smooth_y * sum;
        term.y += smooth_z * Acc(j) * sum;
        term.x += smooth_z * smooth_y * math::difference(row[-1], row[1]);
      }
    }
  } else {
    term.z = Acc(hard.z);
    term.y = Acc(hard.y);
    term.x = Acc(hard.x);
  }
  term.magnitude = math::sobel_magnitude(term.z, term.y, term.x);
  term.mismatch = term.magnitude - math::sqrt(Acc(truth.squared())) * Acc(1.0 / 16);
  return term;
}

// visit(place, class, edge, gradient of the truth, gradient of the hard sample) for each listed voxel
// and class that is an edge, together with all lanes of its warp; `edge` tells which are. `hard` is
// null where the hard sample is not wanted.
template <class B, class Visit>
__device__ void for_edges(const Task& t, const uint8_t* truth, const uint8_t* hard,
                          const uint16_t* list, int count, Visit&& visit) {
  const int lane = threadIdx.x % 32;
  for (int base = threadIdx.x - lane; base < count; base += kThreads) {
    const bool listed = base + lane < count;
    const Place at = place<B>(list[listed ? base + lane : base]);
    uint32_t groups = ~0u;
    if (t.classes > 4) {
      groups = groups_near<B>(truth + at.index);
      if (t.p.both) groups |= groups_near<B>(hard + at.index);
    }
#pragma unroll 1
    for (int first = 0; first < t.classes; first += 4) {
      if (!__any_sync(kWarp, groups >> (first / 4 & 31) & 1)) continue;
      const Gradients g = gradients<B>(truth + at.index, first);
      Gradients h;
      if (hard) h = gradients<B>(hard + at.index, first);
      const uint32_t edges = t.p.both ? g.nonzero() | h.nonzero() : g.nonzero();
#pragma unroll 1
      for (int k = 0; k < 4; ++k) {
        const bool edge = listed && (edges >> 8 * k & 0xFF) != 0;
        if (__any_sync(kWarp, edge)) visit(at, first + k, edge, g.of(k), h.of(k));
      }
    }
  }
}

// --- Sums ---

// A mismatch, at most the root of 3, as an integer. 32 lanes' floats sum up without overflow.
constexpr int kFloatUnit = 26;
__device__ unsigned fixed(float mismatch, int) {
  return unsigned(__float2int_rn(mismatch * float(1 << kFloatUnit)));
}
__device__ unsigned long long fixed(double mismatch, int unit) {
  return (unsigned long long)(llrint(ldexp(mismatch, unit)));
}

template <class T>
__device__ T warp_sum(T value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kWarp, value, lane);
  return value;
}

// One warp's work, when all edges are summed up: the loss or, ahead of backward, the scales.
template <class Acc>
__device__ void finish_sums(const Task& t) {
  const int64_t pairs = t.p.size.batch * t.p.size.channels;
  double total = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < pairs; i += 32) {
    // Read by atomics, as they were made by atomics of other blocks.
    const unsigned long long count = atomicAdd(&t.totals[2 * i], 0ull);
    const double share = count == 0 ? 0 : 1 / (double(pairs) * double(count));
    if (t.forward) {
      total += ldexp(double(atomicAdd(&t.totals[2 * i + 1], 0ull)), -t.unit) * share;
    } else {
      static_cast<Acc*>(t.scales)[i] = Acc(double(*static_cast<const Acc*>(t.p.grad)) * share);
    }
  }
  total = warp_sum(total);
  if (t.forward && threadIdx.x == 0) {
    *static_cast<Acc*>(t.p.loss) = atomicAdd(&t.counters->invalid, 0) ? Acc(NAN) : Acc(total);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) compare_kernel(const __grid_constant__ Task t) {
  using Acc = Accumulate<T>;
  using B = CompareBox;
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ uint16_t list[B::voxels(B::kHalo)];
  __shared__ uint64_t candidates[B::kRows];
  __shared__ int64_t rows[B::kRows];
  __shared__ Tile tile;
  __shared__ int next, samples, edges;
  const bool hard_wanted = t.p.both || (t.forward && t.p.hard);
  const bool soft_wanted = t.forward && !t.p.hard;
  const int row = threadIdx.x, lane = threadIdx.x % 32;
  Acc* soft = nullptr;
  if (soft_wanted) soft = static_cast<Acc*>(t.soft) + blockIdx.x * int64_t(t.classes) * B::kBytes;

  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) {
      next = atomicAdd(&t.counters->next, 1);
      if (next < t.counters->tiles) tile = tile_at<B>(t, unsigned(t.tiles[next]));
      samples = edges = 0;
    }
    __syncthreads();
    if (next >= t.counters->tiles) break;
    find_rows<B>(t, tile, rows);
    load_candidates<B>(t, tile, candidates);
    __syncthreads();
    load_target<B>(t, tile, rows, truth);
    if (hard_wanted || soft_wanted) {
      if (row < B::kRows) append(list, &samples, row, band<B>(tile, candidates, row));
      __syncthreads();
      for (int i = threadIdx.x; i < samples; i += kThreads) {
        draw<T, B>(t, tile, rows, place<B>(list[i]), hard, soft);
      }
      __syncthreads();
      if (hard_wanted) replicate<B>(tile, hard, 1);
      if (soft_wanted) replicate<B>(tile, soft, t.classes);
    }
    if (row < B::kRows) append(list, &edges, row, candidates[row]);
    __syncthreads();
    for_edges<B>(t, truth, hard_wanted ? hard : nullptr, list, edges,
                 [&](const Place& at, int c, bool edge, const Gradient& of_truth,
                     const Gradient& of_hard) {
                   decltype(fixed(Acc(), 0)) amount = 0;
                   if (t.forward && edge) {
                     const Acc mismatch =
                         term<B>(of_truth, of_hard, soft ? soft + c * B::kBytes + at.index : nullptr)
                             .mismatch;
                     if (mismatch == mismatch) {
                       amount = fixed(mismatch < 0 ? -mismatch : mismatch, t.unit);
                     } else {
                       t.counters->invalid = 1;
                     }
                   }
                   if (t.forward) amount = warp_sum(amount);
                   const int count = __popc(__ballot_sync(kWarp, edge));
                   if (lane < 2) {
                     const int64_t pair = tile.batch * t.p.size.channels + tile.channel + c;
                     atomicAdd(&t.totals[2 * pair + lane],
                               (unsigned long long)(lane == 0 ? count : amount));
                   }
                 });
  }

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) next = atomicAdd(&t.counters->done, 1);
  __syncthreads();
  if (next == int(gridDim.x) - 1 && threadIdx.x < 32) finish_sums<Acc>(t);
}

// --- Backward ---

// Sums of what the edges around give to one voxel and class. They stay below 4.5, because each edge
// gives slope times gradient, at most 1/16, times one of the 27 weights.
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

// Adds one edge's gradient, slope times the term's, to the voxels around, so far as they are among
// those `count` voxels of the core, from `first` on, that `sums` holds.
template <class B, class Acc, class Sum>
__device__ void scatter(const Tile& tile, const Place& at, Acc slope, const Term<Acc>& term,
                        Sum* sums, int first, int count) {
  constexpr int kElsewhere = -(1 << 20);
  const int at_z = B::row_z(at.row), at_y = B::row_y(at.row);
  int z[3], y[3], x[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    z[i] = tile.z.clamp(at_z + i - 1);
    y[i] = tile.y.clamp(at_y + i - 1);
    x[i] = tile.x.clamp(at.x + i - 1);
    z[i] = unsigned(z[i]) < B::kDepth ? z[i] * B::kHeight * B::kWidth - first : kElsewhere;
    y[i] = unsigned(y[i]) < B::kHeight ? y[i] * B::kWidth : kElsewhere;
    x[i] = unsigned(x[i]) < B::kWidth ? x[i] : kElsewhere;
  }
  const Acc smooth[3] = {1, 2, 1}, differ[3] = {-1, 0, 1};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const int index = z[i] + y[j] + x[k];
        if ((i == 1 && j == 1 && k == 1) || unsigned(index) >= unsigned(count)) continue;
        const Acc value = slope * (term.z * (differ[i] * smooth[j] * smooth[k]) +
                                   term.y * (smooth[i] * differ[j] * smooth[k]) +
                                   term.x * (smooth[i] * smooth[j] * differ[k]));
        using Atomic = typename Fixed<Acc>::Atomic;
        atomicAdd(reinterpret_cast<Atomic*>(sums + index), Atomic(Fixed<Acc>::from(value)));
      }
    }
  }
}

// From the gradient of a voxel's sample, its first class at `sums` and the next `pitch` further, to
// that of its logits.
template <class T, class Sum>
__device__ void finish(const Task& t, const Tile& tile, const int64_t* rows, const Place& at,
                       const Sum* sums, int pitch) {
  using Acc = Accumulate<T>;
  const Voxel<T> voxel_at = voxel<T>(t, tile, rows, at);
  const Acc* scales =
      static_cast<const Acc*>(t.scales) + tile.batch * t.p.size.channels + tile.channel;
  const auto grad = [&](int c) {
    return Acc(sums[c * pitch]) * (1 / Fixed<Acc>::kOne) * scales[c];
  };
  T* out = static_cast<T*>(t.p.grad_logits.data) + tile.grad +
           (rows[at.row] + at.x) * t.p.grad_logits.voxel_stride;
  Softmax<Acc> softmax{Acc(t.inverse_tau)};
  if (!t.p.softmax) {
    const Acc q = math::sigmoid(noisy_region(t, voxel_at, tile.channel) * softmax.inverse_tau);
    *out = narrow<T>(q * softmax.inverse_tau * (grad(0) * (1 - q)));
    return;
  }
  Acc z[4], weights[4], mean = 0;
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, voxel_at, first, z);
    mean *= softmax.add(z, weights);
    for (int k = 0; k < 4; ++k) {
      if (first + k < t.classes) mean += weights[k] * grad(first + k);
    }
  }
  const Acc inverse_sum = 1 / softmax.sum;
  mean *= inverse_sum;
  for (int first = 0; first < t.classes; first += 4) {
    if (t.classes > 4) {
      noisy_classes(t, voxel_at, first, z);
      softmax.weigh(z, weights);
    }
    for (int k = 0; k < 4; ++k) {
      if (first + k >= t.classes) break;
      const Acc q = weights[k] * inverse_sum;
      out[(first + k) * t.p.grad_logits.channel_stride] =
          narrow<T>(q * softmax.inverse_tau * (grad(first + k) - mean));
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

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const __grid_constant__ Task t, unsigned tiles, unsigned stride) {
  using Acc = Accumulate<T>;
  using B = BackwardBox;
  using Sum = typename Fixed<Acc>::Type;
  constexpr int kSums = 16384 / sizeof(Sum), kCore = B::voxels(0);
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ uint16_t edge_list[B::voxels(1)], band_list[kCore];
  __shared__ union {
    uint16_t sample_list[B::voxels(2)];
    Sum sums[kSums];  // (classes, chunk)
  } memory;
  __shared__ uint64_t candidates[B::kRows];
  __shared__ int64_t rows[B::kRows];
  __shared__ Tile tile;
  __shared__ int samples, edges, bands;
  const int row = threadIdx.x;
  const int chunk = min(kCore, kSums / t.classes);  // voxels of the core whose sums have room
  Acc* soft = nullptr;
  if (!t.p.hard) soft = static_cast<Acc*>(t.soft) + blockIdx.x * int64_t(t.classes) * B::kBytes;

  for (unsigned i = blockIdx.x; i < tiles; i += gridDim.x) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned across = unsigned(divide_up<int64_t>(t.p.size.width, B::kWidth));
      const unsigned column = unsigned(uint64_t(i / across) * stride % (tiles / across));
      tile = tile_at<B>(t, column * across + i % across);
      samples = edges = bands = 0;
    }
    __syncthreads();
    find_rows<B>(t, tile, rows);
    if (!__syncthreads_or(load_candidates<B>(t, tile, candidates))) {
      zero<T, B>(t, tile, rows);
      continue;
    }
    load_target<B>(t, tile, rows, truth);
    if (row < B::kRows) {
      const uint64_t bits = band<B>(tile, candidates, row);
      append(memory.sample_list, &samples, row, bits);
      append(edge_list, &edges, row, candidates[row]);
      if (B::near(B::row_z(row), B::row_y(row), 0)) {
        append(band_list, &bands, row, bits & uint64_t(kWarp) << B::kHalo);
      }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < samples; k += kThreads) {
      draw<T, B>(t, tile, rows, place<B>(memory.sample_list[k]), hard, soft);
    }
    zero<T, B>(t, tile, rows);
    __syncthreads();
    replicate<B>(tile, hard, 1);
    if (soft) replicate<B>(tile, soft, t.classes);

    for (int first = 0; first < kCore; first += chunk) {
      for (int k = threadIdx.x; k < chunk * t.classes; k += kThreads) memory.sums[k] = 0;
      __syncthreads();
      for_edges<B>(t, truth, hard, edge_list, edges,
                   [&](const Place& at, int c, bool edge, const Gradient& of_truth,
                       const Gradient& of_hard) {
                     if (!edge) return;
                     const Term<Acc> of = term<B>(
                         of_truth, of_hard, soft ? soft + c * B::kBytes + at.index : nullptr);
                     const Acc sign = Acc(of.mismatch > 0) - Acc(of.mismatch < 0);
                     const Acc slope = sign * math::sobel_slope(of.magnitude);
                     if (slope == 0) return;
                     scatter<B>(tile, at, slope, of, memory.sums + c * chunk, first, chunk);
                   });
      __syncthreads();
      for (int k = threadIdx.x; k < bands; k += kThreads) {
        const Place at = place<B>(band_list[k]);
        const int core_row = B::row_z(at.row) * B::kHeight + B::row_y(at.row);
        const int index = core_row * B::kWidth + at.x - first;
        if (unsigned(index) < unsigned(chunk)) {
          finish<T>(t, tile, rows, at, memory.sums + index, chunk);
        }
      }
      __syncthreads();
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

// The parameters, and the workspace's addresses; `*bytes` is its size.
Task make_task(const Consistency& p, bool forward, size_t* bytes) {
  const Size& size = p.size;
  if (p.softmax && size.channels > kNone) {
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
  Task t{};
  t.p = p;
  t.forward = forward;
  t.classes = p.softmax ? int(size.channels) : 1;
  t.volumes = p.softmax ? size.batch : size.batch * size.channels;
  t.voxels = size.voxels();
  t.plane = size.height * size.width;
  t.words = divide_up<int64_t>(size.width, 32);
  t.inverse_tau = 1 / p.tau;
  t.target_vectors = p.target.dtype == DType::u8 && p.target.voxel_stride == 1 &&
                     size.width % 16 == 0 && aligned(p.target);
  t.grad_vectors = (p.softmax || p.grad_logits.voxel_stride == 1) && aligned(p.grad_logits) &&
                   size.width * p.grad_logits.voxel_stride * element % 16 == 0;
  // For double, the least unit in which a volume's sum has room.
  t.unit = element == 8 ? 61 : kFloatUnit;
  for (int64_t n = t.voxels; element == 8 && n > 0; n /= 2) --t.unit;

  // Enough blocks to fill the GPU; but soft samples may take 256 MB.
  const int64_t tiles = forward ? tile_count<CompareBox>(p) : tile_count<BackwardBox>(p);
  const int64_t soft = p.hard ? 0
                              : t.classes * accumulate *
                                    (forward ? CompareBox::kBytes : BackwardBox::kBytes);
  t.blocks = std::min<int64_t>(tiles, 8 * multiprocessors(p.resources.device));
  if (soft > 0) t.blocks = std::clamp<int64_t>((256 << 20) / soft, 1, t.blocks);

  const int64_t pairs = size.batch * size.channels;
  char* const start = static_cast<char*>(p.resources.workspace);
  *bytes = 0;
  const auto take = [&](auto*& array, int64_t count, int64_t each) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(start + *bytes);
    *bytes += (size_t(count * each) + 63) / 64 * 64;
  };
  take(t.counters, 1, sizeof *t.counters);
  take(t.totals, 2 * pairs, sizeof *t.totals);
  take(t.scales, pairs, accumulate);
  take(t.tiles, tile_count<CompareBox>(p), sizeof *t.tiles);
  take(t.candidates, t.volumes * size.depth * size.height * t.words, sizeof *t.candidates);
  take(t.soft, t.blocks, soft);
  return t;
}

size_t workspace(const Consistency& p, bool forward) {
  size_t bytes = 0;
  if (!p.size.empty()) make_task(p, forward, &bytes);
  return bytes;
}

void clear(const Resources& resources, void* data, size_t bytes) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(resources.stream)),
        "cudaMemsetAsync");
}

template <class T>
void mark_and_compare(const Task& t) {
  const Resources& resources = t.p.resources;
  clear(resources, t.counters,
        reinterpret_cast<char*>(t.scales) - reinterpret_cast<char*>(t.counters));
  launch("consistency's mark_kernel", resources, tile_count<MarkBox>(t.p), kThreads, 0,
         mark_kernel, t);
  launch("consistency's compare_kernel", resources, t.blocks, kThreads, 0, compare_kernel<T>, t);
}

}  // namespace

size_t consistency_workspace(const Consistency& p) { return workspace(p, true); }
size_t consistency_backward_workspace(const Consistency& p) { return workspace(p, false); }

void consistency_launch(const Consistency& p) {
  const DeviceGuard guard(p.resources.device);
  if (p.size.empty()) {
    return clear(p.resources, p.loss, p.logits.dtype == DType::f64 ? sizeof(double) : sizeof(float));
  }
  size_t bytes;
  const Task t = make_task(p, true, &bytes);
  with_float(p.logits.dtype,
             [&](auto* type) { mark_and_compare<std::remove_pointer_t<decltype(type)>>(t); });
}

void consistency_backward_launch(const Consistency& p) {
  if (p.size.empty()) return;
  const DeviceGuard guard(p.resources.device);
  size_t bytes;
  const Task t = make_task(p, false, &bytes);
  // Tiles with much work lie near one another, as do those of zeros. Taking rows of tiles in steps
  // of about the golden ratio, without a divisor in common, mixes them at all times.
  const int64_t tiles = tile_count<BackwardBox>(p);
  const int64_t rows = tiles / divide_up<int64_t>(p.size.width, BackwardBox::kWidth);
  int64_t stride = int64_t(0.618 * double(rows)) + 1;
  while (std::gcd(stride, rows) != 1) ++stride;
  with_float(p.logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    mark_and_compare<T>(t);
    launch("consistency's backward_kernel", p.resources, p.hard ? tiles : t.blocks, kThreads, 0,
           backward_kernel<T>, t, unsigned(tiles), unsigned(stride));
  });
}

}  // namespace egcnn::cuda
