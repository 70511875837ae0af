// The voxel gate if all tensors are in channels_last_3d and the channels fill whole vectors: a few
// voxels at a time, without an intermediate copy.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/vectors.h"
#include "blocks.h"
#include "gate.h"
#include "prefetch.h"

namespace egcnn::EGCNN_ISA {

// Whether a voxel's channels are consecutive, whole vectors.
template <class Acc>
static inline bool channels_in_vectors(const Tensor& t, int64_t channels) {
  return t.voxel_stride != 1 && channels % kLanes<Acc> == 0;
}

// As many voxels as a vector has lanes, in the accumulation type, held in the first-level cache.
// Scratch has room for kRoom voxels and their sums, since the last line that load() converts may
// reach beyond the voxels.
template <class Acc>
struct Voxels {
  static constexpr int64_t kRoom = 32;
  static constexpr int64_t kAhead = 4;  // vectors of voxels from loading to prefetching

  int64_t channels;
  Acc* values;

  // Room for a sum per channel.
  Acc* sums() const { return values + kRoom * channels; }

  template <class T>
  void load(const T* in, int64_t voxels) const {
    const int64_t n = voxels * channels;
    // Prefetch in software too, since hardware prefetching stops at page boundaries: a fifth of
    // the backward time with pages of 4 KB.
    const PrefetchQueue::Lines next{reinterpret_cast<const char*>(in + kAhead * n),
                                    n * int64_t(sizeof(T)) / kLine};
    load_run(in, n, next, values, [](int64_t, Vector<Acc>) {});
  }

  template <class T>
  void store(T* out, int64_t voxels, bool stream) const {
    store_run<T, Acc>(voxels * channels, stream, out,
                      [&](int64_t i) { return load_vector(values + i); });
  }

  // sums[v] += the products of voxel v and the weights, still to be summed over the lanes.
  void add_products(const Acc* weights, int64_t voxels, Vector<Acc>* sums) const {
    for (int64_t c = 0; c < channels; c += kLanes<Acc>) {
      const Vector<Acc> weight = load_vector(weights + c);
      for (int64_t v = 0; v < voxels; ++v) {
        sums[v] += weight * load_vector(values + v * channels + c);
      }
    }
  }
};

template <class T>
static inline T* start(const Tensor& t, const Block& b) {
  return static_cast<T*>(t.data) + t.offset(b.batch, 0, b.voxel);
}

// Lane v is the sum of voxel v.
template <class Acc>
static inline Vector<Acc> gate_sums(const Voxels<Acc>& e, const Voxels<Acc>& m, const Acc* weights,
                                    int64_t voxels) {
  Vector<Acc> products[kLanes<Acc>] = {};
  e.add_products(weights, voxels, products);
  m.add_products(weights + e.channels, voxels, products);
  return horizontal_sums<1, Acc>(products) + weights[e.channels + m.channels];
}

template <class Acc>
EGCNN_OUT_OF_LINE void voxel_channels_last(const EdgeGate& p, const Block& b, const Acc* weights,
                                           bool stream, const Voxels<Acc>& e,
                                           const Voxels<Acc>& m) {
  constexpr int64_t lanes = kLanes<Acc>;
  with_float_of<Acc>(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from_e = start<T>(p.e, b), *from_m = start<T>(p.m, b);
    T* out = start<T>(p.out, b);
    for (int64_t v = 0; v < b.n; v += lanes) {
      const int64_t voxels = b.n - v < lanes ? b.n - v : lanes;
      e.load(from_e + v * e.channels, voxels);
      m.load(from_m + v * m.channels, voxels);
      const auto factor = 1 + sigmoid<Acc>(gate_sums(e, m, weights, voxels), lowest<Acc>(p.relu));
      for (int64_t i = 0; i < voxels; ++i) {
        Acc* row = e.values + i * e.channels;
        for (int64_t c = 0; c < e.channels; c += lanes) {
          store_vector(row + c, load_vector(row + c) * factor[i]);
        }
      }
      e.store(out + v * e.channels, voxels, stream);
    }
  });
}

// Adds the gradients of the weights of e, those of m and that of the bias to grad_weights.
template <class Acc>
EGCNN_OUT_OF_LINE void voxel_channels_last_backward(const EdgeGateBackward& p, const Block& b,
                                                    const Acc* weights, bool stream_e,
                                                    bool stream_m, const Voxels<Acc>& e,
                                                    const Voxels<Acc>& m, const Voxels<Acc>& grad,
                                                    double* grad_weights) {
  constexpr int64_t lanes = kLanes<Acc>;
  const Acc low = lowest<Acc>(p.relu);
  // This block's sums.
  Acc *const to_e = e.sums(), *const to_m = m.sums();
  for (int64_t c = 0; c < e.channels; ++c) to_e[c] = 0;
  for (int64_t c = 0; c < m.channels; ++c) to_m[c] = 0;
  Vector<Acc> to_bias = {};
  with_float_of<Acc>(p.e.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from_e = start<T>(p.e, b), *from_m = start<T>(p.m, b);
    const T* from_grad = start<T>(p.grad, b);
    T *out_e = start<T>(p.grad_e, b), *out_m = start<T>(p.grad_m, b);
    for (int64_t v = 0; v < b.n; v += lanes) {
      const int64_t voxels = b.n - v < lanes ? b.n - v : lanes;
      e.load(from_e + v * e.channels, voxels);
      m.load(from_m + v * m.channels, voxels);
      grad.load(from_grad + v * e.channels, voxels);
      const auto sum = gate_sums(e, m, weights, voxels), alpha = sigmoid<Acc>(sum, low);
      Vector<Acc> products[lanes] = {};
      for (int64_t c = 0; c < e.channels; c += lanes) {
        for (int64_t i = 0; i < voxels; ++i) {
          const int64_t at = i * e.channels + c;
          products[i] += load_vector(e.values + at) * load_vector(grad.values + at);
        }
      }
      const auto ds = horizontal_sums<1, Acc>(products) * slope<Acc>(sum, alpha, low),
                 factor = 1 + alpha;
      to_bias += ds;
      for (int64_t c = 0; c < e.channels; c += lanes) {
        const auto weight = load_vector(weights + c);
        auto total = load_vector(to_e + c);
        for (int64_t i = 0; i < voxels; ++i) {
          const int64_t at = i * e.channels + c;
          total += ds[i] * load_vector(e.values + at);
          const auto bypass = load_vector(grad.values + at) * factor[i];
          store_vector(grad.values + at, bypass + weight * ds[i]);
        }
        store_vector(to_e + c, total);
      }
      grad.store(out_e + v * e.channels, voxels, stream_e);
      for (int64_t c = 0; c < m.channels; c += lanes) {
        const auto weight = load_vector(weights + e.channels + c);
        auto total = load_vector(to_m + c);
        for (int64_t i = 0; i < voxels; ++i) {
          const int64_t at = i * m.channels + c;
          total += ds[i] * load_vector(m.values + at);
          store_vector(m.values + at, weight * ds[i]);
        }
        store_vector(to_m + c, total);
      }
      m.store(out_m + v * m.channels, voxels, stream_m);
    }
  });
  for (int64_t c = 0; c < e.channels; ++c) *grad_weights++ += to_e[c];
  for (int64_t c = 0; c < m.channels; ++c) *grad_weights++ += to_m[c];
  for (int64_t i = 0; i < lanes; ++i) *grad_weights += to_bias[i];
}

}  // namespace egcnn::EGCNN_ISA
