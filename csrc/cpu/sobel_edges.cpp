// Sobel edge targets and the Sobel magnitude with its gradient (section 2.1).
#include "pages.h"
#include "sobel_march.h"
#include "sobel_plane.h"
#include "stream.h"

#include <algorithm>

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

// Elements that are loaded at a time: of a number that the compiler knows, it makes vectors without
// a remainder.
constexpr int64_t kLoadBlock = 64;

// Bit r of an element tells whether it lies in region first + r; without regions, bit 0 whether it
// is not 0. Floats stay as they are.
template <class T, class In>
static inline void load_block(const SobelEdges& p, const In* in, int64_t n, int64_t first,
                              int64_t regions, T* __restrict out) {
  if constexpr (!std::is_integral_v<In>) {
    for (int64_t x = 0; x < n; ++x) out[x] = widen<T>(in[x]);
  } else if (p.region_counts == nullptr) {
    for (int64_t x = 0; x < n; ++x) out[x] = in[x] != 0;
  } else {
    const int64_t* values = p.region_values;
    for (int64_t r = 0; r < first; ++r) values += p.region_counts[r];
    T bits[kLoadBlock] = {};
    for (int64_t r = 0; r < regions; ++r) {
      const T bit = T(1 << r);
      for (int64_t k = 0; k < p.region_counts[first + r]; ++k) {
        const In value = In(*values);
        if (int64_t(value) == *values++) {
          for (int64_t x = 0; x < n; ++x) bits[x] |= in[x] == value ? bit : T(0);
        }
      }
    }
    for (int64_t x = 0; x < n; ++x) out[x] = bits[x];
  }
}

// Whether all of a row's n elements have the same bits.
template <class In>
static inline bool is_constant(const In* in, int64_t n) {
  using Bits = UInt<sizeof(In)>;
  using L = Lanes<Bits>;
  const Bits* bits = reinterpret_cast<const Bits*>(in);
  if (n < L::count) return std::memcmp(in, in + 1, (n - 1) * sizeof(In)) == 0;
  typename L::type differences = L::load(bits) ^ bits[0];
  if (!L::is_zero(differences)) return false;
  for (int64_t x = L::count; x + L::count <= n; x += L::count) {
    differences |= L::load(bits + x) ^ bits[0];
  }
  differences |= L::load(bits + n - L::count) ^ bits[0];
  return L::is_zero(differences);
}

// Rows of region bits, or of floats as they are, and their marks.
template <class T>
EGCNN_OUT_OF_LINE void load_regions(const SobelEdges& p, int64_t start, int64_t first,
                                    int64_t regions, const Rows<T>& rows) {
  with_type(p.labels.dtype, [&](auto* type) {
    using In = std::remove_pointer_t<decltype(type)>;
    const int64_t n = rows.width;
    const In* in = static_cast<const In*>(p.labels.data) + start;
    T* row = rows.data;
    if constexpr (std::is_integral_v<T> == std::is_integral_v<In>) {
      for (int64_t i = 0; i < rows.count; ++i, in += n, row += rows.pitch) {
        rows.marks[i] = kMixed;
        if (is_constant(in, n)) {
          load_block(p, in, 1, first, regions, row);
          if (std::is_integral_v<T> || row[0] == 0) rows.marks[i] = uint8_t(row[0]);
          if (rows.marks[i] != 0) std::fill(row + 1, row + n, row[0]);
        } else if (n < kLoadBlock) {
          load_block(p, in, n, first, regions, row);
        } else {
          for (int64_t x = 0; x < n; x += kLoadBlock) {
            // The last block overlaps the one before rather than ending early.
            const int64_t at = x + kLoadBlock <= n ? x : n - kLoadBlock;
            load_block(p, in + at, kLoadBlock, first, regions, row + at);
          }
        }
      }
    }
  });
}

// is_edge(gz, gy, gx) is not 0 in the lanes of edges.
template <class T, class IsEdge>
static void sobel_edges(const SobelEdges& p, IsEdge is_edge) {
  using L = Lanes<T>;
  typedef uint8_t Bytes __attribute__((vector_size(L::count)));
  const SobelTiles t = sobel_edges_tiles(p);
  const bool from_labels = p.region_counts != nullptr;
  const int64_t all_regions = from_labels ? p.size.channels : 1;
  uint8_t* edges = static_cast<uint8_t*>(p.edges.data);
  static const uint8_t zeros[4096] = {};
  for_slabs(t, p.resources, [&](const Slab& slab, char* scratch) {
    for (int64_t first = 0; first < all_regions; first += 8) {
      const int64_t regions = all_regions - first < 8 ? all_regions - first : 8;
      SobelMarch<T> march(t, slab, scratch);
      uint8_t* staged = reinterpret_cast<uint8_t*>(march.output);
      march.run(
          [&](int64_t z, int64_t y, const Rows<T>& rows) {
            load_regions(p, ((slab.volume * t.depth + z) * t.height + y) * t.width, first, regions,
                         rows);
          },
          [&](int64_t z) {
            for (int64_t r = 0; r < regions; ++r) {
              const int64_t volume = slab.volume * all_regions + first + r;
              Stream out(edges + ((volume * t.depth + z) * t.height + slab.y0) * t.width);
              march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool still) {
                const int64_t n = rows * t.width;
                if (still) {
                  for (int64_t x = 0; x < n; x += sizeof zeros) {
                    out.put(zeros, n - x < int64_t(sizeof zeros) ? n - x : sizeof zeros);
                  }
                  return;
                }
                const auto emit = [=](int64_t place, auto gz, auto gy, auto gx) {
                  const Bytes bytes = __builtin_convertvector(is_edge(gz, gy, gx), Bytes) & 1;
                  std::memcpy(staged + place, &bytes, sizeof bytes);
                };
                if constexpr (std::is_integral_v<T>) {
                  if (from_labels) {
                    const T bit = T(1 << r);
                    march.gradient(y, rows, [=](auto x) { return decltype(x)((x & bit) != 0) & 1; }, emit);
                    return out.put(staged, n);
                  }
                }
                march.gradient(y, rows, [](auto x) { return x; }, emit);
                out.put(staged, n);
              });
            }
          });
    }
    stream_fence();
  });
}

template <class T>
static void soft_sobel_edges(const SobelEdges& p) {
  const T threshold = T(p.threshold);
  sobel_edges<T>(p, [=](auto gz, auto gy, auto gx) {
    auto magnitude = gz * gz + gy * gy + gx * gx;
    for (size_t i = 0; i < sizeof magnitude / sizeof(T); ++i) {
      magnitude[i] = math::sobel_magnitude(T(magnitude[i]));
    }
    return magnitude > threshold;
  });
}

void sobel_edges_launch(const SobelEdges& p) {
  if (p.size.empty()) return;
  advise_huge(p.edges.data, p.size.batch * p.size.channels * p.size.voxels());
  if (p.labels.dtype == DType::f64) return soft_sobel_edges<double>(p);
  if (is_float(p.labels.dtype)) return soft_sobel_edges<float>(p);
  if (p.threshold == 0) {
    // Exact modulo 256: no gradient component exceeds 16.
    return sobel_edges<uint8_t>(p, [](auto gz, auto gy, auto gx) { return (gz | gy | gx) != 0; });
  }
  // Whole numbers, at most 3 * 16^2: the largest whose root is not above the threshold.
  int16_t most = 0;
  while (most < 768 && !(math::sobel_magnitude(float(most + 1)) > float(p.threshold))) ++most;
  sobel_edges<int16_t>(
      p, [=](auto gz, auto gy, auto gx) { return gz * gz + gy * gy + gx * gx > most; });
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
