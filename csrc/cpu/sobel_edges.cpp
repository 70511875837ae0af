// Sobel edge targets and the Sobel magnitude with its gradient (section 2.1).
#include "sobel_plane.h"

#include <omp.h>

namespace egcnn::EGCNN_ISA {

// body(batch, channel, z, scratch) for every plane, shared out among the threads.
template <class Acc, class Body>
static inline void for_planes(const Size& size, const Resources& resources, Body&& body) {
  const int64_t planes = size.batch * size.channels * size.depth;
#pragma omp parallel num_threads(resources.threads)
  {
    Acc* scratch = static_cast<Acc*>(resources.workspace) +
                   omp_get_thread_num() * kSobelRows * (size.width + 2);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < planes; ++job) {
      const int64_t channel = job / size.depth % size.channels;
      body(job / size.depth / size.channels, channel, job % size.depth, scratch);
    }
  }
}

template <class Acc>
static void sobel_edges(const SobelEdges& p) {
  const Size size = p.size;
  const bool from_labels = p.region_counts != nullptr;
  const bool soft = !from_labels && is_float(p.labels.dtype);
  const Acc threshold = Acc(p.threshold);
  uint8_t* edges = static_cast<uint8_t*>(p.edges.data);
  for_planes<Acc>(size, p.resources, [&](int64_t batch, int64_t region, int64_t z, Acc* scratch) {
    int64_t count = 0, first = 0;
    if (from_labels) {
      for (int64_t r = 0; r < region; ++r) first += p.region_counts[r];
      count = p.region_counts[region];
    }
    sobel_plane<Acc>(
        size, z, scratch,
        [&](int64_t zz, int64_t y, Acc* row) {
          const int64_t start = offset(p.labels, batch, from_labels ? 0 : region,
                                       (zz * size.height + y) * size.width);
          if (soft) {
            load(p.labels, start, size.width, row);
          } else {
            load_inside(p.labels, start, size.width, p.region_values + first, count, row);
          }
        },
        [&](int64_t y, const Acc* gz, const Acc* gy, const Acc* gx) {
          uint8_t* out =
              edges + offset(p.edges, batch, region, (z * size.height + y) * size.width);
          for (int64_t x = 0; x < size.width; ++x) {
            out[x * p.edges.voxel_stride] =
                math::sobel_magnitude(gz[x], gy[x], gx[x]) > threshold;
          }
        });
  });
}

void sobel_edges_launch(const SobelEdges& p) {
  if (p.size.empty()) return;
  if (p.labels.dtype == DType::f64) return sobel_edges<double>(p);
  sobel_edges<float>(p);
}

template <class Acc>
static void sobel_magnitude(const SobelMagnitude& p) {
  const Size size = p.size;
  for_planes<Acc>(size, p.resources, [&](int64_t batch, int64_t channel, int64_t z, Acc* scratch) {
    const auto row_start = [&](const Tensor& t, int64_t zz, int64_t y) {
      return offset(t, batch, channel, (zz * size.height + y) * size.width);
    };
    sobel_plane<Acc>(
        size, z, scratch,
        [&](int64_t zz, int64_t y, Acc* row) { load(p.x, row_start(p.x, zz, y), size.width, row); },
        [&](int64_t y, Acc* gz, const Acc* gy, const Acc* gx) {
          for (int64_t x = 0; x < size.width; ++x) {
            gz[x] = math::sobel_magnitude(gz[x], gy[x], gx[x]);
          }
          store(p.out, row_start(p.out, z, y), size.width, gz);
        });
  });
}

void sobel_magnitude_launch(const SobelMagnitude& p) {
  if (p.size.empty()) return;
  if (p.x.dtype == DType::f64) return sobel_magnitude<double>(p);
  sobel_magnitude<float>(p);
}

// The transpose of the difference with replicated borders: before - after, where the neighbour
// beyond a border is the border's own value with its sign turned. (Smoothing is symmetric.)
template <class Acc>
static inline Acc difference_transposed(const Acc* q, int64_t i, int64_t n, int64_t stride) {
  const Acc before = i > 0 ? q[-stride] : -q[0];
  const Acc after = i + 1 < n ? q[stride] : -q[0];
  return before - after;
}

// Two stages for each channel: the gradient with respect to (gz, gy, gx) at every voxel, then the
// transposed stencil gathers it, so that no two threads write one voxel and the sum has one order.
template <class Acc>
static void sobel_magnitude_backward(const SobelMagnitudeBackward& p) {
  const Size size = p.size;
  const int64_t d = size.depth, h = size.height, w = size.width, voxels = size.voxels();
  Acc* volumes = static_cast<Acc*>(p.resources.workspace);
  Acc *qz = volumes, *qy = qz + voxels, *qx = qy + voxels;
  Acc* scratches = qx + voxels;
#pragma omp parallel num_threads(p.resources.threads)
  {
    Acc* scratch = scratches + omp_get_thread_num() * (kSobelRows + 1) * (w + 2);
    Acc* grad = scratch + kSobelRows * (w + 2);
    for (int64_t job = 0; job < size.batch * size.channels; ++job) {
      const int64_t channel = job % size.channels, batch = job / size.channels;
#pragma omp for schedule(static)
      for (int64_t z = 0; z < d; ++z) {
        sobel_plane<Acc>(
            size, z, scratch,
            [&](int64_t zz, int64_t y, Acc* row) {
              load(p.x, offset(p.x, batch, channel, (zz * h + y) * w), w, row);
            },
            [&](int64_t y, const Acc* gz, const Acc* gy, const Acc* gx) {
              const int64_t row = (z * h + y) * w;
              load(p.grad, offset(p.grad, batch, channel, row), w, grad);
              for (int64_t x = 0; x < w; ++x) {
                const Acc magnitude = math::sobel_magnitude(gz[x], gy[x], gx[x]);
                const Acc slope = grad[x] * math::sobel_slope(magnitude);
                qz[row + x] = slope * gz[x];
                qy[row + x] = slope * gy[x];
                qx[row + x] = slope * gx[x];
              }
            });
      }
#pragma omp for schedule(static)
      for (int64_t z = 0; z < d; ++z) {
        const int64_t zs[3] = {below(z), z, above(z, d)};
        for (int64_t y = 0; y < h; ++y) {
          const int64_t ys[3] = {below(y), y, above(y, h)};
          const Acc weight[3] = {1, 2, 1};
          // Both are completed along x below: `smooth` by smoothing, `differ` by difference.
          Acc *smooth = scratch + 1, *differ = scratch + (w + 2) + 1;
          for (int64_t x = 0; x < w; ++x) smooth[x] = differ[x] = 0;
          for (int i = 0; i < 3; ++i) {
            const int64_t across_y = (z * h + ys[i]) * w, across_z = (zs[i] * h + y) * w;
            for (int64_t x = 0; x < w; ++x) {
              smooth[x] += weight[i] * difference_transposed(qz + across_y + x, z, d, h * w) +
                           weight[i] * difference_transposed(qy + across_z + x, y, h, w);
            }
            for (int j = 0; j < 3; ++j) {
              const Acc* q = qx + (zs[i] * h + ys[j]) * w;
              for (int64_t x = 0; x < w; ++x) differ[x] += weight[i] * weight[j] * q[x];
            }
          }
          smooth[-1] = smooth[0], smooth[w] = smooth[w - 1];
          differ[-1] = -differ[0], differ[w] = -differ[w - 1];
          for (int64_t x = 0; x < w; ++x) {
            grad[x] = math::smooth(smooth[x - 1], smooth[x], smooth[x + 1]) + differ[x - 1] -
                      differ[x + 1];
          }
          store(p.grad_x, offset(p.grad_x, batch, channel, (z * h + y) * w), w, grad);
        }
      }
    }
  }
}

void sobel_magnitude_backward_launch(const SobelMagnitudeBackward& p) {
  if (p.size.empty()) return;
  if (p.x.dtype == DType::f64) return sobel_magnitude_backward<double>(p);
  sobel_magnitude_backward<float>(p);
}

}  // namespace egcnn::EGCNN_ISA
