// The weights of the edge gate with one attention value per channel, packed in the workspace as
// products take them, and how precise these are.
#pragma once

#include "products.cuh"
#include "tile.cuh"

namespace egcnn::cuda {
namespace {

// --- Precision ---

// Whether both factors of every product are split in two, which float32 needs unless TF32 is
// allowed.
template <bool tf32, class T>
constexpr bool kSplit = std::is_same_v<T, float> && !tf32;

// Whether the weights are split in the gates' sums, 16-bit types included: the signs of the sums
// decide what passes the ReLU, and rounded weights would flip too many of them.
template <bool tf32, class T>
constexpr bool kSplitSums = kSplit<tf32, T> || sizeof(T) == 2;

// Rounds a factor that is not split to TF32, in which 16-bit values are exact.
template <bool split, class T>
__device__ __forceinline__ Accumulate<T> factor(T x) {
  if constexpr (std::is_same_v<T, float> && !split && kGradientProducts<T> == Products::tf32) {
    return to_tf32(x);
  } else {
    return widen(x);
  }
}

// Calls body with whether products may be rounded to TF32, which concerns only float32.
template <class T, class Params, class Body>
void with_tf32(const Params& p, Body&& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (p.tf32) return body(std::true_type());
  }
  body(std::false_type());
}

// --- Packing ---

// The weights of a chunk of gates and a chunk of channels. For tensor cores as fragments: for step
// s over eight of the summed index and two steps u over eight of the other, four numbers for each
// lane. Otherwise as a matrix whose rows are the summed index.
constexpr int kFragments = kChunk * kChunk;

// Where element i is in that matrix.
struct PackedPlace {
  int summed, other;
  __device__ PackedPlace(int i, bool fragments) {
    const int lane = i / 4 % 32, u = i / 128 % 2 * 2 + i / 2 % 2, s = i / 256 % kSteps;
    summed = fragments ? lane % 4 * 8 + 2 * s + i % 2 : i / kChunk % kChunk;
    other = fragments ? lane / 8 * 8 + 2 * u + lane / 4 % 2 : i % kChunk;
  }
};

// Weights that a block of the forward pass keeps in shared memory: for multiply-adds, which read
// them all for each tile, those of one chunk each of gates, of e and of m. (Backward fills shared
// memory with tiles, and leaves weights to the L1 cache.)
template <class T>
constexpr int kSharedWeights = kSumProducts<T> == Products::plain ? kChunk + 2 * kFragments : 1;

// In the workspace: the bias, padded to whole chunks; fragments for the sums; and, for backward,
// fragments of the transposed weights, for the gradients of e and m. Without `many` there are one
// chunk of e and one of m.
template <class T, bool many = true>
struct PackedWeights {
  using Acc = Accumulate<T>;
  Acc* data;
  int64_t e_channels, m_channels;

  template <class Params>
  explicit PackedWeights(const Params& p)
      : data(static_cast<Acc*>(p.resources.workspace)), e_channels(p.size.channels),
        m_channels(p.main_channels) {}

  __host__ __device__ int64_t e_chunks() const { return many ? divide_up(e_channels, kChunk) : 1; }
  // There are as many gates as channels of e.
  __host__ __device__ int64_t gate_chunks() const { return e_chunks(); }
  __host__ __device__ int64_t chunks() const {
    return e_chunks() + (many ? divide_up(m_channels, kChunk) : 1);
  }
  int64_t count(bool with_transposed) const {
    return gate_chunks() * (kChunk + (with_transposed ? 2 : 1) * chunks() * kFragments);
  }

  // Copies the weights of the sums to shared memory if they fit; later reads use the copy. Call
  // with all threads of a block.
  __device__ void stage(Acc (&shared)[kSharedWeights<T>]) {
    if constexpr (kSumProducts<T> == Products::plain) {
      const int64_t count = gate_chunks() * (kChunk + chunks() * kFragments);
      if (count > kSharedWeights<T>) return;
      for (int i = threadIdx.x; i < count; i += blockDim.x) shared[i] = data[i];
      __syncthreads();
      data = shared;
    }
  }

  __device__ const Acc* bias(int64_t gates) const { return data + gates * kChunk; }
  __device__ const Acc* sum_fragments(int64_t gates, int64_t chunk) const {
    return data + gate_chunks() * kChunk + (gates * chunks() + chunk) * kFragments;
  }
  __device__ const Acc* grad_fragments(int64_t gates, int64_t chunk) const {
    return sum_fragments(gate_chunks() + gates, chunk);
  }
};

// With `tied`, all gates have one row of weights.
template <bool tf32, class T>
__global__ void __launch_bounds__(256)
    pack_weights_kernel(PackedWeights<T> packed, const Accumulate<T>* weight_e,
                        const Accumulate<T>* weight_m, const Accumulate<T>* bias, bool tied,
                        int64_t count) {
  using Acc = Accumulate<T>;
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t gates = packed.e_channels;
  Acc* const to = packed.data + i;
  if (i < packed.gate_chunks() * kChunk) {
    *to = i < gates ? bias[tied ? 0 : i] : Acc(0);
    return;
  }
  i -= packed.gate_chunks() * kChunk;
  int64_t block = i / kFragments;
  const int64_t chunk = block % packed.chunks();
  block /= packed.chunks();
  const bool transposed = block >= packed.gate_chunks();
  const bool of_e = chunk < packed.e_chunks();
  const int64_t channels = of_e ? packed.e_channels : packed.m_channels;
  const int64_t first_gate = block % packed.gate_chunks() * kChunk;
  const int64_t first_channel = (of_e ? chunk : chunk - packed.e_chunks()) * kChunk;
  const auto weight = [&](int summed, int other) {
    const int64_t gate = first_gate + (transposed ? summed : other);
    const int64_t channel = first_channel + (transposed ? other : summed);
    const bool inside = gate < gates && channel < channels;
    const int64_t row = tied ? 0 : gate;
    return inside ? (of_e ? weight_e : weight_m)[row * channels + channel] : Acc(0);
  };
  const Products products = transposed ? kGradientProducts<T> : kSumProducts<T>;
  const PackedPlace at(int(i % kFragments), products != Products::plain);
  if constexpr (kSumProducts<T> == Products::f16) {
    if (products == Products::f16) {
      const int pair = at.summed - int(i % 2);
      *to = __uint_as_float(f16_pair(weight(pair, at.other), weight(pair + 1, at.other), i % 2));
      return;
    }
  }
  const Acc value = weight(at.summed, at.other);
  *to = transposed ? factor<kSplit<tf32, T>>(value) : factor<kSplitSums<tf32, T>>(value);
}

template <class T, bool tf32, class Params>
void pack_weights(const Params& p, bool with_transposed) {
  using Acc = Accumulate<T>;
  const PackedWeights<T> packed(p);
  const int64_t count = packed.count(with_transposed);
  launch("edge_gate: packing weights", p.resources, divide_up(count, 256), 256, 0,
         pack_weights_kernel<tf32, T>, packed, static_cast<const Acc*>(p.weight_e),
         static_cast<const Acc*>(p.weight_m), static_cast<const Acc*>(p.bias), p.gates == 1, count);
}

}  // namespace
}  // namespace egcnn::cuda
