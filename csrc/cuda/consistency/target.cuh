// Loads a tile of the target into shared memory as one byte per voxel, its class code. With
// softmax the code is the class index, or kNoClass; with sigmoid each region is a volume of its
// own with one class, and the code is kInside or 0.
#pragma once

#include "tile.cuh"

namespace egcnn::cuda {
namespace {

constexpr int kInside = 0x80, kNoClass = 255;

// Replaces each nonzero byte by kInside.
__device__ __forceinline__ uint32_t nonzero_bytes(uint32_t word) {
  return (((word & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | word) & 0x80808080u;
}

// The codes of four target bytes. Indices beyond the last class match no class and can stay.
template <bool kSoftmax>
__device__ uint32_t class_codes(uint32_t word) {
  return kSoftmax ? word : nonzero_bytes(word);
}
template <bool kSoftmax>
__device__ uint4 class_codes(uint4 word) {
  return {class_codes<kSoftmax>(word.x), class_codes<kSoftmax>(word.y),
          class_codes<kSoftmax>(word.z), class_codes<kSoftmax>(word.w)};
}

// A word of nothing but the first of its bytes, or the last.
__device__ __forceinline__ uint32_t repeat_first(uint32_t word) { return __byte_perm(word, 0, 0); }
__device__ __forceinline__ uint32_t repeat_last(uint32_t word) {
  return __byte_perm(word, 0, 0x3333);
}
__device__ __forceinline__ uint4 repeat_first(uint4 word) {
  const uint32_t each = repeat_first(word.x);
  return {each, each, each, each};
}
__device__ __forceinline__ uint4 repeat_last(uint4 word) {
  const uint32_t each = repeat_last(word.w);
  return {each, each, each, each};
}

__device__ __forceinline__ bool differs(uint32_t word, uint32_t other) { return word != other; }
__device__ __forceinline__ bool differs(uint4 word, uint32_t other) {
  return ((word.x ^ other) | (word.y ^ other) | (word.z ^ other) | (word.w ^ other)) != 0;
}

// load_target from bytes in aligned rows.
template <class B, bool kSoftmax>
__device__ bool load_bytes(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  using Word = typename B::Word;
  constexpr int kWords = B::kPitch / B::kPad, kRowsAtOnce = kThreads / kWords;
  constexpr int kPasses = divide_up(B::kRows, kRowsAtOnce);
  const uint8_t* target = static_cast<const uint8_t*>(t.p.target.data) + tile.target_offset;
  const uint32_t first = class_codes<kSoftmax>(target[rows[B::row(0, 0)]] * 0x01010101u);
  const int column = threadIdx.x % kWords, row = threadIdx.x / kWords;
  if (row >= kRowsAtOnce) return false;
  const int x = (column - 1) * B::kPad;  // of the word's first voxel
  target += min(max(x, tile.x.first), tile.x.last + 1 - B::kPad);
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
    Word word = class_codes<kSoftmax>(words[k]);
    if (x < tile.x.first) word = repeat_first(word);
    if (x > tile.x.last) word = repeat_last(word);
    if (at < B::kRows) reinterpret_cast<Word*>(box)[at * kWords + column] = word;
    any |= differs(word, first);
  }
  return any;
}

// The same for any integer type and strides.
template <class B, class Label>
__device__ bool load_labels(const Task& t, const Tile& tile, const int64_t* rows, uint8_t* box) {
  constexpr int kColumns = B::kWidth + 2 * B::kHalo, kCount = B::kRows * kColumns, kBatch = 4;
  const Label* target = static_cast<const Label*>(t.p.target.data) + tile.target_offset;
  const auto code = [&](Label label) -> uint8_t {
    if (!t.p.softmax) return label != 0 ? kInside : 0;
    return uint64_t(label) < uint64_t(t.classes) ? label : kNoClass;
  };
  const uint8_t first = code(target[rows[B::row(0, 0)] * t.p.target.voxel_stride]);
  bool any = false;
  for (int start = threadIdx.x; start < kCount; start += kBatch * kThreads) {
    // Load the whole batch before the first store, which may alias it as far as the compiler knows.
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

// Fills the box; beyond the volume's borders with the voxels there. Returns whether a voxel that
// this thread loaded differs from the core's first voxel.
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

}  // namespace
}  // namespace egcnn::cuda
