// The interface of the kernels: plain structs of pointers, sizes and strides, and launch functions
// that take them. No PyTorch, no Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "math/common.h"

namespace egcnn {

// A dense (B, C, D, H, W) tensor, contiguous or channels_last_3d. Strides count elements.
struct Tensor {
  void* data;
  DType dtype;
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t voxel_stride;

  EGCNN_DEVICE int64_t offset(int64_t batch, int64_t channel, int64_t voxel) const {
    return batch * batch_stride + channel * channel_stride + voxel * voxel_stride;
  }
};

struct Size {
  int64_t batch, channels, depth, height, width;
  EGCNN_DEVICE int64_t voxels() const { return depth * height * width; }
  bool empty() const { return batch == 0 || channels == 0 || voxels() == 0; }
};

// Where a kernel runs, and scratch memory of `workspace(params)` bytes.
struct Resources {
  void* workspace;
  int threads;   // CPU
  int device;    // CUDA: the current device. Restoring another one could create a context on it.
  void* stream;  // CUDA
};

// --- Parameters of the operators. Backward extends forward and leaves its outputs unset. ---

// Section 2.1. With region_counts, `labels` is a label map and region r consists of the next
// region_counts[r] entries of region_values; without, each channel of `labels` is a region.
struct SobelEdges {
  Tensor labels;
  Tensor edges;  // u8
  Size size;     // of edges
  const int64_t* region_values;
  const int64_t* region_counts;  // null if the channels of labels are regions
  double threshold;
  Resources resources;
};

struct SobelMagnitude {
  Tensor x;
  Tensor out;
  Size size;
  Resources resources;
};

struct SobelMagnitudeBackward : SobelMagnitude {
  Tensor grad;
  Tensor grad_x;
};

// Eqs. 1 and 2. Weights, bias and their gradients are contiguous, in the accumulation type: double
// if e is f64, else float.
struct EdgeGate {
  Tensor e;
  Tensor m;
  const void* weight_e;  // (gates, size.channels)
  const void* weight_m;  // (gates, main_channels)
  const void* bias;      // (gates)
  Tensor out;
  Size size;  // of e
  int64_t main_channels;
  int64_t gates;  // size.channels or 1
  bool relu;
  bool tf32;  // whether f32 operands may be rounded to TF32; the CPU never does
  Resources resources;
};

struct EdgeGateBackward : EdgeGate {
  Tensor grad;
  Tensor grad_e;
  Tensor grad_m;
  void* grad_weight_e;
  void* grad_weight_m;
  void* grad_bias;
};

// The same with e and grad_e at another resolution, between which and that of m lies a trilinear
// interpolation. `size` is that of the output: the channels of e, the volume of m.
struct EdgeGateUpsampled : EdgeGate {
  Size coarse;  // of e
};

struct EdgeGateUpsampledBackward : EdgeGateBackward {
  Size coarse;  // of e and grad_e
};

// Eqs. 7 and 8. `loss` and `grad` point to one number of the accumulation type.
struct Consistency {
  Tensor logits;
  // One channel of class indices with softmax, else one channel per region.
  Tensor target;
  // CPU: if not null, `target` is a label map instead, with regions or classes as in SobelEdges.
  const int64_t* region_values;
  const int64_t* region_counts;
  Size size;  // of logits
  const int64_t* seed;
  bool seed_per_sample;  // CPU: each sample has a seed, and draws as if it were alone in its batch
  double tau;
  bool hard;
  bool softmax;       // exclusive classes, at most kMaxClasses; else independent regions
  bool support_both;  // count edges of the truth or the hard sample; else of the truth only
  // Outputs of forward, inputs of backward: the number of edges (B, C) and, only on CUDA, one bit a
  // voxel for where there may be one (volumes, D, H, W / 32 rounded up).
  int64_t* edges;
  uint32_t* candidates;
  void* loss;
  Resources resources;
};

struct ConsistencyBackward : Consistency {
  const void* grad;
  Tensor grad_logits;
};

// The sums over voxels that Eqs. 4 to 6 are made of: of each sample and channel, with p the
// probability and y the truth, of p y, p^2 and y; with `entropy` also of -y log p and of
// -(1 - y) log(1 - p).
struct RegionSums {
  Tensor logits;
  Tensor target;  // u8: 1 inside the region, 0 outside, any other value does not count
  Size size;      // of logits
  bool softmax;   // exclusive classes, without `entropy`; else independent regions
  bool entropy;
  void* sums;  // (B, C, sum_count()), of the accumulation type
  Resources resources;

  static EGCNN_DEVICE constexpr int64_t sum_count(bool entropy) { return entropy ? 5 : 3; }
  int64_t sum_count() const { return sum_count(entropy); }
};

struct RegionSumsBackward : RegionSums {
  const void* grad;  // like sums
  Tensor grad_logits;
};

// All sums of the total loss (Eq. 3) at once: those of the logits over the regions and of the edge
// logits, with the cross entropies, over the regions' edges, and the consistency loss, whose target
// says what the regions are. `regions` and `edges` have no target of their own.
struct LossSums {
  Consistency consistency;
  RegionSums regions;
  RegionSums edges;  // of as many channels, or of one, for the edges of any region
  double threshold;  // Sobel magnitude above which a voxel is an edge of the edge logits
  Resources resources;
};

struct LossSumsBackward : LossSums {
  const void* grad_consistency;
  const void* grad_regions;
  const void* grad_edges;
  Tensor grad_logits;
  Tensor grad_edge_logits;
};

// A byte holds a class, or marks a voxel without one.
constexpr int64_t kMaxClasses = 255;

// GroupNorm (Wu and He, 2018) and ReLU. Weight, bias, their gradients, mean and reciprocal standard
// deviation are contiguous, in the accumulation type. All volumes have one memory format.
struct GroupNormReLU {
  Tensor x;
  const void* weight;  // (size.channels)
  const void* bias;    // (size.channels)
  void* mean;          // (B, groups), output of forward and input of backward, as rstd
  void* rstd;
  Tensor out;
  Size size;
  int64_t groups;
  double eps;  // forward
  Resources resources;
};

struct GroupNormReLUBackward : GroupNormReLU {
  Tensor grad;
  Tensor grad_x;
  void* grad_weight;
  void* grad_bias;
};

// --- Kernels ---

// One operator on one device type, null where the device has none. `workspace` takes the same
// parameters, whose pointers may be null.
template <class Params>
struct Kernel {
  size_t (*workspace)(const Params&);
  void (*launch)(const Params&);
};

struct Kernels {
  const char* name;  // the CPU's instruction set, or "cuda"
#define EGCNN_OPERATOR(name, Params) Kernel<Params> name;
#include "operators.inc"
#undef EGCNN_OPERATOR
};

namespace cpu {
// One for each instruction set that this machine supports, newest first. The first is used, the
// others are tested.
const std::vector<Kernels>& kernels();
}  // namespace cpu

namespace cuda {
const Kernels& kernels();

// Why this machine's driver or current device cannot run this build's code; "" if they can.
const char* device_status();
}  // namespace cuda

}  // namespace egcnn
