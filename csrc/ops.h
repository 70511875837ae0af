// The bridge: all that the layers share. Plain structs of pointers, sizes and strides, and the
// launch functions that take them. No PyTorch, no Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace egcnn {

// A bool tensor travels as u8: torch stores 0 or 1.
enum class DType : int { f64, f32, f16, bf16, u8, i8, i16, i32, i64 };

// A dense (B, C, D, H, W) tensor, contiguous or channels_last_3d. Strides count elements.
struct Tensor {
  void* data;
  DType dtype;
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t voxel_stride;
};

struct Size {
  int64_t batch, channels, depth, height, width;
  int64_t voxels() const { return depth * height * width; }
  bool empty() const { return batch == 0 || channels == 0 || voxels() == 0; }
};

// Section 2.1. With region_counts, `labels` is a label map and region r is made of the next
// region_counts[r] entries of region_values; without, each channel of `labels` is a region.
struct SobelEdges {
  Tensor labels;
  Tensor edges;  // u8
  Size size;     // of edges
  const int64_t* region_values;
  const int64_t* region_counts;  // null for ready-made regions
  double threshold;
  void* workspace;
  int threads;
};

struct SobelMagnitude {
  Tensor x;
  Tensor out;
  Size size;
  void* workspace;
  int threads;
};

struct SobelMagnitudeBackward {
  Tensor grad;
  Tensor x;
  Tensor grad_x;
  Size size;
  void* workspace;
  int threads;
};

// Eqs. 1 and 2. Weights, bias and their gradients are contiguous, in the accumulation type:
// double where e is f64, else float.
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
  void* workspace;
  int threads;
};

struct EdgeGateBackward {
  Tensor grad;
  Tensor e;
  Tensor m;
  const void* weight_e;
  const void* weight_m;
  const void* bias;
  Tensor grad_e;
  Tensor grad_m;
  void* grad_weight_e;
  void* grad_weight_m;
  void* grad_bias;
  Size size;
  int64_t main_channels;
  int64_t gates;
  bool relu;
  void* workspace;
  int threads;
};

// Eqs. 7 and 8. `seed` and `loss` (`grad` in backward) point to one int64 and to one number of the
// accumulation type.
struct Consistency {
  Tensor logits;
  Tensor target;  // softmax: one channel of class indices; else one channel per region
  Size size;      // of logits
  const int64_t* seed;
  double tau;
  bool hard;
  bool softmax;
  bool both;  // support: edges of the truth or of the hard sample
  void* loss;         // forward
  const void* grad;   // backward
  Tensor grad_logits;  // backward
  void* workspace;
  int threads;
};

namespace cpu {

// Bytes of workspace; large enough for either accumulation type.
size_t sobel_edges_workspace(int64_t width, int threads);
size_t sobel_magnitude_backward_workspace(int64_t depth, int64_t height, int64_t width,
                                          int threads);
size_t edge_gate_workspace(int64_t edge_channels, int64_t main_channels, int64_t gates,
                           int threads);
size_t edge_gate_backward_workspace(int64_t edge_channels, int64_t main_channels, int64_t gates,
                                    int threads);
size_t consistency_workspace(int64_t channels, int64_t depth, int64_t height, int64_t width,
                             int threads);

void sobel_edges_launch(const SobelEdges&);
void sobel_magnitude_launch(const SobelMagnitude&);
void sobel_magnitude_backward_launch(const SobelMagnitudeBackward&);
void edge_gate_launch(const EdgeGate&);
void edge_gate_backward_launch(const EdgeGateBackward&);
void consistency_launch(const Consistency&);
void consistency_backward_launch(const Consistency&);

// The instruction set that the launches above were dispatched to on this machine.
const char* instruction_set();

}  // namespace cpu

namespace cuda {

// Whether this machine's driver and current device run this build's code: "" or the reason why not.
const char* device_status();

}  // namespace cuda
}  // namespace egcnn
