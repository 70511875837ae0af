// The gradient of the consistency loss. Forward has counted the edges, so each edge's weight is
// known, and has kept the candidates. Each block takes a tile and there
//   writes zeros, and is done where there is no candidate,
//   draws the sample in the band around the candidates, as forward drew it,
//   scatters the gradient of each edge's term to its neighbourhood,
//   takes it through the softmax to the logits.
#include "plan.cuh"

namespace egcnn::cuda {
namespace {

// The factor for the gradients of each class.
template <class Acc>
__device__ void make_scales(const Task& t, const Tile& tile, Acc* scales) {
  for (int c = threadIdx.x; c < t.classes; c += kThreads) {
    const double grad = double(*static_cast<const Acc*>(t.p.grad));
    scales[c] = Acc(grad * edge_weight(t, t.p.edges[tile.pair + c]));
  }
}

// Converts the gradients of a voxel's sample to those of its logits. Class c of the sample is at
// `sums + c * pitch`.
template <class T, class Sum>
__device__ void softmax_backward(const Task& t, const Tile& tile, const int64_t* rows,
                                 const uint32_t* keys, const Accumulate<T>* scales,
                                 const Position& at, const Sum* sums, int pitch) {
  using Acc = Accumulate<T>;
  const auto grad = [&](int c) {
    return Acc(sums[c * pitch]) * (1 / Fixed<Acc>::kOne) * scales[c];
  };
  T* out = static_cast<T*>(t.p.grad_logits.data) + tile.grad_offset +
           (rows[at.row] + at.x) * t.p.grad_logits.voxel_stride;
  Logits<T> logits = logits_at<T>(t, tile, rows, at);
  Softmax<Acc> softmax{Acc(t.inverse_tau)};
  if (!t.p.softmax) {
    const Acc q = sigmoid(noisy_region(keys, logits, tile.region) * softmax.inverse_tau);
    *out = narrow<T>(q * softmax.inverse_tau * (grad(0) * (1 - q)));
    return;
  }
  Acc z[4], weights[4], mean = 0;
  for (int first = 0; first < t.classes; first += 4) {
    noisy_classes(t, keys, logits, first, z);
    mean *= softmax.add(z, weights);
    for (int k = 0; k < 4; ++k) {
      if (first + k < t.classes) mean += weights[k] * grad(first + k);
    }
  }
  const Acc inverse_sum = divide(Acc(1), softmax.sum);
  mean *= inverse_sum;
  logits = logits_at<T>(t, tile, rows, at);
  for (int first = 0; first < t.classes; first += 4) {
    if (t.classes > 4) {  // else the weights are still in registers
      noisy_classes(t, keys, logits, first, z);
      softmax.weigh(z, weights);
    }
    for (int k = 0; k < 4 && first + k < t.classes; ++k) {
      const Acc q = weights[k] * inverse_sum;
      *out = narrow<T>(q * softmax.inverse_tau * (grad(first + k) - mean));
      out += t.p.grad_logits.channel_stride;
    }
  }
}

// Writes the gradients of the logits in the band within the window.
template <class T, class B, class Sum>
__device__ __forceinline__ void write_band(const Task& t, const Tile& tile, const Window& window,
                                           const int64_t* rows, const uint32_t* keys,
                                           const Accumulate<T>* scales, const uint4* candidates,
                                           List& list, const Sum* sums) {
  for_each_list<B>(
      list,
      [&](int z, int y) -> uint4 {
        if (y < 0 || y >= B::kHeight || !window.contains(z * B::kHeight + y)) return {};
        const Range inside{window.first_x, window.first_x + window.width - 1};
        return {0, dilate<B>(tile, candidates, z, y).y & bits_inside(inside, 0), 0, 0};
      },
      [&](int count) {
        for (int k = threadIdx.x; k < count; k += kThreads) {
          const Position at = position<B>(list.entries[k]);
          const int row = B::row_z(at.row) * B::kHeight + B::row_y(at.row);
          const Sum* gradients = sums + window.line(row) + at.x;
          softmax_backward<T>(t, tile, rows, keys, scales, at, gradients, window.lines());
        }
      });
}

// Writes zeros to the core.
template <class T, class B>
__device__ void write_zeros(const Task& t, const Tile& tile, const int64_t* rows) {
  constexpr int kPerVector = 16 / sizeof(T), kLanes = B::kWidth / kPerVector;
  const Tensor& grad = t.p.grad_logits;
  // A run is a row of one channel, or with channels_last_3d of all channels. A single region in
  // channels_last_3d has gaps between its voxels.
  const bool interleaved = t.p.softmax && grad.voxel_stride != 1;
  const int runs = B::kCoreRows * (interleaved ? 1 : t.classes);
  const int length = min(tile.x.last + 1, B::kWidth) * (interleaved ? t.classes : 1);
  const int64_t stride = interleaved ? 1 : grad.voxel_stride;
  for (int run = threadIdx.x / kLanes; run < runs; run += kThreads / kLanes) {
    const int c = run / B::kCoreRows, z = run % B::kCoreRows / B::kHeight, y = run % B::kHeight;
    if (z > tile.z.last || y > tile.y.last) continue;
    T* out = static_cast<T*>(grad.data) + tile.grad_offset + c * grad.channel_stride +
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
__global__ void __launch_bounds__(kThreads, BackwardBox::kBlocks)
    backward_kernel(const __grid_constant__ Task t) {
  using B = BackwardBox;
  using Acc = Accumulate<T>;
  using Sum = typename Fixed<Acc>::Type;
  alignas(16) __shared__ uint8_t truth[B::kBytes], hard[B::kBytes];
  __shared__ Sum sums[Window::kBytes / sizeof(Sum)];  // (classes, rows, pitch)
  __shared__ List list;
  __shared__ uint4 candidates[B::kSetRows];
  __shared__ int64_t rows[B::kRows];
  __shared__ Acc scales[kMaxClasses];
  alignas(16) __shared__ uint32_t keys[math::kPhiloxKeys];
  __shared__ Tile tile;
  start_tiles(tile);
  while (next_tile<B>(t, tile)) {
    locate_rows<B>(t, tile, rows);
    // Nothing waits for the candidates until the zeros are on their way.
    const uint4 bits = read_candidates<B>(t, tile);
    __syncthreads();
    write_zeros<T, B>(t, tile, rows);
    if (threadIdx.x < B::kSetRows) candidates[threadIdx.x] = bits;
    if (!__syncthreads_or((bits.x | bits.y | bits.z) != 0)) continue;

    const auto samples = Samples<Acc>::template of<B>(t, hard);
    make_keys(t, keys);
    make_scales(t, tile, scales);
    load_target<B>(t, tile, rows, truth);
    draw<T, B>(t, tile, rows, keys, candidates, list, samples);
    for (int first_row = 0; first_row < B::kCoreRows; first_row += t.window_rows) {
      for (int first_x = 0; first_x < B::kWidth; first_x += t.window_width) {
        const Window window{first_row, min(t.window_rows, B::kCoreRows - first_row), first_x,
                            t.window_width};
        scatter_edges<B>(t, tile, window, truth, samples, candidates, list, sums);
        write_band<T, B>(t, tile, window, rows, keys, scales, candidates, list, sums);
      }
    }
  }
}

Plan plan_of(const ConsistencyBackward& p) {
  Plan plan;
  with_float(p.logits.dtype, [&](auto* type) {
    plan = make_plan<BackwardBox>(p, backward_kernel<std::remove_pointer_t<decltype(type)>>);
  });
  return plan;
}

}  // namespace

size_t consistency_backward_workspace(const ConsistencyBackward& p) {
  return p.size.empty() ? 0 : plan_of(p).bytes;
}

void consistency_backward_launch(const ConsistencyBackward& p) {
  if (p.size.empty()) return;
  const Plan plan = plan_of(p);
  launch("consistency_backward", p.resources, plan.blocks, kThreads, 0, plan.kernel, plan.task);
}

}  // namespace egcnn::cuda
