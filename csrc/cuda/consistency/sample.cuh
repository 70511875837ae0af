// Gumbel samples of the logits (Eq. 8), drawn only in the band around the candidates. The noise
// depends on the seed and the voxel's index, so that backward draws the same as forward.
#pragma once

#include <cfloat>

#include "candidates.cuh"
#include "noise.cuh"

namespace egcnn::cuda {
namespace {

__device__ __forceinline__ void make_keys(const Task& t, uint32_t keys[math::kPhiloxKeys]) {
  const int i = threadIdx.x;
  if (i < math::kPhiloxKeys) keys[i] = math::philox_key(uint64_t(*t.p.seed), i);
}

// Where the logits of one voxel are.
template <class T>
struct Logits {
  const T* next;   // of the next class
  uint64_t voxel;  // counted through the batch
};

template <class T>
__device__ Logits<T> logits_at(const Task& t, const Tile& tile, const int64_t* rows,
                               const Position& at) {
  const int64_t voxel = rows[at.row] + at.x;
  return {
      static_cast<const T*>(t.p.logits.data) + tile.logits_offset + voxel * t.p.logits.voxel_stride,
      uint64_t(tile.first_voxel + voxel)};
}

// Reads the logits of four classes from `first` on and adds their noise; -inf past the last class.
template <class T>
__device__ void noisy_classes(const Task& t, const uint32_t* keys, Logits<T>& logits, int first,
                              Accumulate<T> z[4]) {
  using Acc = Accumulate<T>;
  for (int k = 0; k < 4; ++k) {
    z[k] = first + k < t.classes ? widen(*logits.next) : -Acc(INFINITY);
    logits.next += t.p.logits.channel_stride;
  }
  const math::Words words = math::philox(keys, logits.voxel, uint32_t(first / 4));
  for (int k = 0; k < 4; ++k) {
    if (first + k < t.classes) z[k] += gumbel(words.word[k], Acc());
  }
}

template <class T>
__device__ Accumulate<T> noisy_region(const uint32_t* keys, const Logits<T>& logits,
                                      int64_t region) {
  const math::Words words = math::philox(keys, logits.voxel, uint32_t(region / 4));
  const int k = int(region % 4);
  const uint32_t even = k < 2 ? words.word[0] : words.word[2];
  const uint32_t odd = k < 2 ? words.word[1] : words.word[3];
  return widen(*logits.next) + logistic(k % 2 == 0 ? even : odd, Accumulate<T>());
}

// An online softmax: a class's weight is exp((z - highest) / tau), its probability the weight over
// the sum of weights.
template <class Acc>
struct Softmax {
  Acc inverse_tau;
  Acc highest = -Acc(FLT_MAX), sum = 0;

  __device__ void weigh(const Acc z[4], Acc weights[4]) const {
    for (int k = 0; k < 4; ++k) weights[k] = math::exp((z[k] - highest) * inverse_tau);
  }

  // Returns the factor that rescales every sum of earlier weights.
  __device__ Acc add(const Acc z[4], Acc weights[4]) {
    const Acc before = highest;
    for (int k = 0; k < 4; ++k) highest = z[k] > highest ? z[k] : highest;
    weigh(z, weights);
    const Acc factor = math::exp((before - highest) * inverse_tau);
    sum = sum * factor + (weights[0] + weights[1]) + (weights[2] + weights[3]);
    return factor;
  }
};

// Copies a voxel's value in each of `count` boxes to where it repeats beyond the volume's borders.
template <class B, class V>
__device__ void repeat_beyond_borders(const Tile& tile, const Position& at, V* boxes, int count) {
  const auto sides = [](const Range& inside, int i, int length) -> Range {
    return {i == inside.first && i > -B::kHalo ? -1 : 0,
            i == inside.last && i < length + B::kHalo - 1 ? 1 : 0};
  };
  const Range z = sides(tile.z, B::row_z(at.row), B::kDepth);
  const Range y = sides(tile.y, B::row_y(at.row), B::kHeight);
  const Range x = sides(tile.x, at.x, B::kWidth);
  if ((z.first | z.last | y.first | y.last | x.first | x.last) == 0) return;
  V* box = boxes + at.index;
#pragma unroll 1
  for (int c = 0; c < count; ++c, box += B::kBytes) {
    const V value = *box;
#pragma unroll 1
    for (int i = z.first; i <= z.last; ++i) {
#pragma unroll 1
      for (int j = y.first; j <= y.last; ++j) {
#pragma unroll 1
        for (int k = x.first; k <= x.last; ++k) box[B::step(i, j, k)] = value;
      }
    }
  }
}

// The code of a hard sample cannot say that its logits are NaN; the loss can.
template <class B>
__device__ __forceinline__ void mark_invalid(const Task& t) {
  if constexpr (std::is_same_v<B, ForwardBox>) atomicExch(t.invalid, 1);
}

template <class T, class B>
__device__ void draw_hard(const Task& t, const Tile& tile, const int64_t* rows,
                          const uint32_t* keys, const Position& at, uint8_t* hard) {
  Logits<T> logits = logits_at<T>(t, tile, rows, at);
  if (!t.p.softmax) {
    const Accumulate<T> z = noisy_region(keys, logits, tile.region);
    hard[at.index] = z > 0 ? kInside : 0;
    if (z != z) mark_invalid<B>(t);
    return;
  }
  // A bit beside the class notes a NaN: forward has no register to spare.
  constexpr int kNaN = 1 << 8;
  Accumulate<T> z[4], highest = 0;
  int best = 0;
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, keys, logits, first, z);
    for (int k = 0; k < 4; ++k) {
      if (first + k == 0 || z[k] > highest) {
        highest = z[k];
        best = (best & kNaN) | (first + k);
      }
      if (z[k] != z[k]) best |= kNaN;
    }
  }
  hard[at.index] = uint8_t(best);
  if (best & kNaN) mark_invalid<B>(t);
}

template <class T, class B>
__device__ void draw_soft(const Task& t, const Tile& tile, const int64_t* rows,
                          const uint32_t* keys, const Position& at, Accumulate<T>* soft) {
  using Acc = Accumulate<T>;
  Logits<T> logits = logits_at<T>(t, tile, rows, at);
  Softmax<Acc> softmax{Acc(t.inverse_tau)};
  if (!t.p.softmax) {
    soft[at.index] = sigmoid(noisy_region(keys, logits, tile.region) * softmax.inverse_tau);
    return;
  }
  Acc z[4], weights[4];
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, keys, logits, first, z);
    softmax.add(z, weights);
  }
  logits = logits_at<T>(t, tile, rows, at);
  for (int first = 0; first < t.classes; first += 4) {
    if (t.classes > 4) {  // else the weights are still there
      noisy_classes(t, keys, logits, first, z);
      softmax.weigh(z, weights);
    }
    for (int k = 0; k < 4 && first + k < t.classes; ++k) {
      soft[(first + k) * B::kBytes + at.index] = divide(weights[k], softmax.sum);
    }
  }
}

// A block's samples, in boxes of which only the band is filled, and what repeats it beyond borders.
template <class Acc>
struct Samples {
  bool use_hard;  // whether there are hard samples
  uint8_t* hard;  // one box of class codes
  Acc* soft;      // one box per class, or null

  template <class B>
  static __device__ __forceinline__ Samples of(const Task& t, uint8_t* hard) {
    Acc* soft = nullptr;
    if (!t.p.hard) soft = static_cast<Acc*>(t.soft) + blockIdx.x * int64_t(t.classes) * B::kBytes;
    return {t.p.support_both || t.p.hard, hard, soft};
  }
};

// Draws the samples of the band around the candidates. All threads of the block must call it.
template <class T, class B>
__device__ void draw(const Task& t, const Tile& tile, const int64_t* rows, const uint32_t* keys,
                     const uint4* candidates, List& list, const Samples<Accumulate<T>>& samples) {
  for_each_list<B>(
      list, [&](int z, int y) { return dilate<B>(tile, candidates, z, y); },
      [&](int count) {
        for (int k = threadIdx.x; samples.use_hard && k < count; k += kThreads) {
          draw_hard<T, B>(t, tile, rows, keys, position<B>(list.entries[k]), samples.hard);
        }
        for (int k = threadIdx.x; samples.soft && k < count; k += kThreads) {
          draw_soft<T, B>(t, tile, rows, keys, position<B>(list.entries[k]), samples.soft);
        }
        for (int k = threadIdx.x; k < count; k += kThreads) {  // each thread its own
          const Position at = position<B>(list.entries[k]);
          if (samples.use_hard) repeat_beyond_borders<B>(tile, at, samples.hard, 1);
          if (samples.soft) repeat_beyond_borders<B>(tile, at, samples.soft, t.classes);
        }
      });
}

}  // namespace
}  // namespace egcnn::cuda
