// Sobel edge targets and the Sobel magnitude with its gradient (section 2.1).
#include "pages.h"
#include "sobel_march.h"
#include "stream.h"

#include <algorithm>

namespace egcnn::EGCNN_ISA {

// Bit r of an element tells whether it lies in region first + r; without regions, bit 0 whether it
// is not 0. Floats stay as they are. Of a constant n the compiler makes vectors without remainder.
template <int64_t n, class T, class In>
static inline void load_block(const SobelEdges& p, const In* in, int64_t first, int64_t regions,
                              T* out) {
  if constexpr (!std::is_integral_v<In>) {
    for (int64_t x = 0; x < n; ++x) out[x] = widen<T>(in[x]);
  } else if (p.region_counts == nullptr) {
    for (int64_t x = 0; x < n; ++x) out[x] = in[x] != 0;
  } else {
    const int64_t* values = p.region_values;
    for (int64_t r = 0; r < first; ++r) values += p.region_counts[r];
    In block[n];
    std::memcpy(block, in, sizeof block);
    T bits[n] = {};
    for (int64_t r = 0; r < regions; ++r) {
      const T bit = T(1 << r);
      for (int64_t k = 0; k < p.region_counts[first + r]; ++k) {
        const In value = In(*values);
        if (int64_t(value) != *values++) continue;
        for (int64_t x = 0; x < n; ++x) bits[x] |= block[x] == value ? bit : T(0);
      }
    }
    std::memcpy(out, bits, sizeof bits);
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
    constexpr int64_t kBlock = 64;
    const int64_t n = rows.width;
    const In* in = static_cast<const In*>(p.labels.data) + start;
    T* row = rows.data;
    if constexpr (std::is_integral_v<T> == std::is_integral_v<In>) {
      for (int64_t i = 0; i < rows.count; ++i, in += n, row += rows.pitch) {
        rows.marks[i] = kMixed;
        if (is_constant(in, n)) {
          load_block<1>(p, in, first, regions, row);
          if (std::is_integral_v<T> || row[0] == 0) rows.marks[i] = uint8_t(row[0]);
          if (rows.marks[i] != 0) std::fill(row + 1, row + n, row[0]);
        } else if (n < kBlock) {
          for (int64_t x = 0; x < n; ++x) load_block<1>(p, in + x, first, regions, row + x);
        } else {
          for (int64_t x = 0; x < n; x += kBlock) {
            // The last block overlaps the one before rather than ending early.
            const int64_t at = x + kBlock <= n ? x : n - kBlock;
            load_block<kBlock>(p, in + at, first, regions, row + at);
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
  const int64_t width = t.width;
  uint8_t* edges = static_cast<uint8_t*>(p.edges.data);
  const bool large = p.size.batch * p.size.channels * p.size.voxels() > kStreamed;
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
              Stream out(edges + ((volume * t.depth + z) * t.height + slab.y0) * width, large);
              march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool still) {
                const int64_t n = rows * t.width;
                if (still) {
                  for (int64_t x = 0; x < n; x += sizeof zeros) {
                    out.put(zeros, n - x < int64_t(sizeof zeros) ? n - x : sizeof zeros);
                  }
                  return;
                }
                const auto emit = [=](int64_t i, int64_t x, auto gz, auto gy, auto gx) {
                  const Bytes bytes = __builtin_convertvector(is_edge(gz, gy, gx), Bytes) & 1;
                  std::memcpy(staged + i * width + x, &bytes, sizeof bytes);
                };
                if constexpr (std::is_integral_v<T>) {
                  if (from_labels) {
                    const T bit = T(1 << r);
                    const auto inside = [=](auto x) { return decltype(x)((x & bit) != 0) & 1; };
                    march.gradient(y, rows, inside, emit);
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

// n elements of a tensor as they lie, channels interleaved or not.
template <class T>
static inline void load_row(Tensor x, int64_t start, int64_t n, T* row) {
  x.voxel_stride = 1;
  load(x, start, n, row);
}

template <class T>
static inline void load_rows(const Tensor& x, int64_t start, const Rows<T>& rows) {
  for (int64_t i = 0; i < rows.count; ++i) {
    load_row(x, start + i * rows.width, rows.width, rows.data + i * rows.pitch);
    rows.marks[i] = kMixed;
  }
}

template <class T>
static void sobel_magnitude(const SobelMagnitude& p, int64_t element) {
  const SobelTiles t = sobel_magnitude_tiles(p);
  const int64_t width = t.width;
  uint8_t* result = static_cast<uint8_t*>(p.out.data);
  const bool large = t.volumes * t.depth * t.height * width * element > kStreamed;
  for_slabs(t, p.resources, [&](const Slab& slab, char* scratch) {
    SobelMarch<T> march(t, slab, scratch);
    const auto start = [&](int64_t z, int64_t y) {
      return ((slab.volume * t.depth + z) * t.height + y) * width;
    };
    march.run(
        [&](int64_t z, int64_t y, const Rows<T>& rows) { load_rows(p.x, start(z, y), rows); },
        [&](int64_t z) {
          Stream out(result + start(z, slab.y0) * element, large);
          march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool) {
            T* squares = march.output;
            march.gradient(
                y, rows, [](auto x) { return x; },
                [=](int64_t i, int64_t x, auto gz, auto gy, auto gx) {
                  Lanes<T>::store(squares + i * width + x, gz * gz + gy * gy + gx * gx);
                });
            for (int64_t x = 0; x < rows * width; ++x) {
              squares[x] = math::sobel_magnitude(squares[x]);
            }
            put_as(p.out.dtype, out, squares, rows * width);
          });
        });
    stream_fence();
  });
}

void sobel_magnitude_launch(const SobelMagnitude& p) {
  if (p.size.empty()) return;
  const int64_t element = float_bytes(p.out.dtype);
  advise_huge(p.out.data, p.size.batch * p.size.channels * p.size.voxels() * element);
  if (p.x.dtype == DType::f64) return sobel_magnitude<double>(p, element);
  sobel_magnitude<float>(p, element);
}

// From the gradient (gz, gy, gx) of n voxels and that of their magnitudes to the one with respect
// to (gz, gy, gx).
template <class T>
EGCNN_OUT_OF_LINE void through_magnitude(const T* __restrict grad, int64_t n, T* __restrict gz,
                                         T* __restrict gy, T* __restrict gx) {
  for (int64_t x = 0; x < n; ++x) {
    const T slope = grad[x] * math::sobel_slope(math::sobel_magnitude(gz[x], gy[x], gx[x]));
    gz[x] *= slope, gy[x] *= slope, gx[x] *= slope;
  }
}

// Rows before, at and after; beyond a border lies the border's own row, in the transpose of a
// difference with its sign turned.
template <class T>
struct Neighbours {
  const T *before, *at, *after;
  T sign_before, sign_after;

  // row(j) is where row j of n lies.
  template <class Row>
  Neighbours(int64_t i, int64_t n, Row&& row)
      : before(row(i > 0 ? i - 1 : 0)), at(row(i)), after(row(i + 1 < n ? i + 1 : i)),
        sign_before(i > 0 ? 1 : -1), sign_after(i + 1 < n ? 1 : -1) {}

  T smooth(int64_t x) const { return math::smooth(before[x], at[x], after[x]); }
  T difference(int64_t x) const { return sign_before * before[x] - sign_after * after[x]; }
};

// One row of the transposed stencil in the plane of q, the gradient with respect to (gz, gy, gx):
// `across` is to be completed along z by the transposed difference, `along` by smoothing. The rows
// `s`, `d` and `b` are scratch.
template <class T>
EGCNN_OUT_OF_LINE void gather_in_plane(Neighbours<T> qz, Neighbours<T> qy, Neighbours<T> qx,
                                       int64_t n, int64_t step, T* __restrict s, T* __restrict d,
                                       T* __restrict b, T* __restrict across,
                                       T* __restrict along) {
  for (int64_t x = 0; x < n; ++x) {
    s[x] = qz.smooth(x), d[x] = qy.difference(x), b[x] = qx.smooth(x);
  }
  for (int64_t x = 0; x < step; ++x) {
    const int64_t last = n - step + x;
    s[x - step] = s[x], s[last + step] = s[last];
    d[x - step] = d[x], d[last + step] = d[last];
    b[x - step] = -b[x], b[last + step] = -b[last];
  }
  for (int64_t x = 0; x < n; ++x) {
    across[x] = math::smooth(s[x - step], s[x], s[x + step]);
    along[x] = math::smooth(d[x - step], d[x], d[x + step]) + b[x - step] - b[x + step];
  }
}

template <class T>
EGCNN_OUT_OF_LINE void gather_across(Neighbours<T> across, Neighbours<T> along, int64_t n,
                                     T* __restrict out) {
  for (int64_t x = 0; x < n; ++x) out[x] = across.difference(x) + along.smooth(x);
}

// The transposed stencil gathers rather than scatters, so that no two threads write one voxel and
// every sum has one order.
template <class T>
static void sobel_magnitude_backward(const SobelMagnitudeBackward& p, int64_t element) {
  const SobelTiles t = sobel_magnitude_backward_tiles(p);
  const int64_t width = t.width, pitch = t.pitch, plane = t.rows() * pitch;
  uint8_t* result = static_cast<uint8_t*>(p.grad_x.data);
  const bool large = t.volumes * t.depth * t.height * width * element > kStreamed;
  for_slabs(t, p.resources, [&](const Slab& slab, char* scratch) {
    const auto start = [&](int64_t z, int64_t y) {
      return ((slab.volume * t.depth + z) * t.height + y) * width;
    };
    // The result needs q one plane and one row further.
    const Slab reach = {slab.volume, std::max<int64_t>(slab.z0 - 1, 0),
                        std::min(slab.z1 + 1, t.depth), slab.y0, slab.y1};
    const int64_t low = std::max<int64_t>(slab.y0 - 1, 0), high = std::min(slab.y1 + 1, t.height);
    SobelMarch<T> march(t, reach, scratch);
    // Rows from `low` on; of `across` and `along`, of plane z % 3.
    T* const q = march.extra + t.left;
    T *const across = q + 3 * plane, *const along = across + 3 * plane;

    const auto find_q = [&](int64_t z) {
      march.for_runs(low, high, [&](int64_t y, int64_t rows, bool) {
        T* const first = q + (y - low) * pitch;
        march.gradient(
            y, rows, [](auto x) { return x; },
            [=](int64_t i, int64_t x, auto gz, auto gy, auto gx) {
              T* const to = first + i * pitch + x;
              Lanes<T>::store(to, gz);
              Lanes<T>::store(to + plane, gy);
              Lanes<T>::store(to + 2 * plane, gx);
            });
        for (int64_t i = 0; i < rows; ++i) {
          T* const row = first + i * pitch;
          load_row(p.grad, start(z, y + i), width, march.output);
          through_magnitude(march.output, width, row, row + plane, row + 2 * plane);
        }
      });
    };
    const auto gather = [&](int64_t z) {
      for (int64_t y = slab.y0; y < slab.y1; ++y) {
        const auto around = [&](int64_t component) {
          return Neighbours<T>(y, t.height, [&](int64_t at) {
            return q + component * plane + (at - low) * pitch;
          });
        };
        T* const s = march.output + t.left;
        const int64_t to = z % 3 * plane + (y - low) * pitch;
        gather_in_plane(around(0), around(1), around(2), width, t.step, s, s + pitch,
                        s + 2 * pitch, across + to, along + to);
      }
    };
    const auto finish = [&](int64_t z) {
      Stream out(result + start(z, slab.y0) * element, large);
      for (int64_t y = slab.y0; y < slab.y1; ++y) {
        const auto around = [&](const T* sums) {
          return Neighbours<T>(z, t.depth, [&](int64_t at) {
            return sums + at % 3 * plane + (y - low) * pitch;
          });
        };
        gather_across(around(across), around(along), width, march.output);
        put_as(p.grad_x.dtype, out, march.output, width);
      }
    };
    march.run([&](int64_t z, int64_t y, const Rows<T>& rows) { load_rows(p.x, start(z, y), rows); },
              [&](int64_t z) {
                find_q(z);
                gather(z);
                if (z > slab.z0) finish(z - 1);
                if (z + 1 == t.depth) finish(z);
              });
    stream_fence();
  });
}

void sobel_magnitude_backward_launch(const SobelMagnitudeBackward& p) {
  if (p.size.empty()) return;
  const int64_t element = float_bytes(p.grad_x.dtype);
  advise_huge(p.grad_x.data, p.size.batch * p.size.channels * p.size.voxels() * element);
  if (p.x.dtype == DType::f64) return sobel_magnitude_backward<double>(p, element);
  sobel_magnitude_backward<float>(p, element);
}

}  // namespace egcnn::EGCNN_ISA
