// Sobel edge targets (section 2.1).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../math/common.h"
#include "../../math/sobel.h"
#include "../../ops.h"
#include "../simd/bits.h"
#include "../simd/elements.h"
#include "../simd/isa.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "../simd/vectors.h"
#include "bit_stream.h"
#include "bits.h"
#include "march.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// The label values of all regions, one region after the other.
static inline const int64_t* values_from(const SobelEdges& p, int64_t region) {
  const int64_t* values = p.region_values;
  for (int64_t r = 0; r < region; ++r) values += p.region_counts[r];
  return values;
}

// Sets bit r of an element if it is in region first + r; without regions, bit 0 if it is not 0.
// Floats are kept. With a constant n the compiler emits vectors without a remainder loop.
template <int64_t n, class T, class In>
static inline void load_values(const SobelEdges& p, const In* in, int64_t first, int64_t regions,
                               T* out) {
  if constexpr (!std::is_integral_v<In>) {
    for (int64_t x = 0; x < n; ++x) out[x] = widen<T>(in[x]);
  } else if (p.region_counts == nullptr) {
    for (int64_t x = 0; x < n; ++x) out[x] = in[x] != 0;
  } else {
    const int64_t* values = values_from(p, first);
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

// Whether all n elements of a row have the same bits.
template <class In>
static inline bool is_constant(const In* in, int64_t n) {
  using Bits = UInt<sizeof(In)>;
  constexpr int64_t lanes = kLanes<Bits>;
  const Bits* bits = reinterpret_cast<const Bits*>(in);
  if (n < lanes) return std::memcmp(in, in + 1, (n - 1) * sizeof(In)) == 0;
  Vector<Bits> differences = load_vector(bits) ^ bits[0];
  if (!is_zero(differences)) return false;
  for (int64_t x = lanes; x + lanes <= n; x += lanes) {
    differences |= load_vector(bits + x) ^ bits[0];
  }
  differences |= load_vector(bits + n - lanes) ^ bits[0];
  return is_zero(differences);
}

// Loads rows of region bits, or of unchanged floats, and their marks.
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
          load_values<1>(p, in, first, regions, row);
          if (std::is_integral_v<T> || row[0] == 0) rows.marks[i] = uint8_t(row[0]);
          if (rows.marks[i] != 0) std::fill(row + 1, row + n, row[0]);
        } else if (n < kBlock) {
          for (int64_t x = 0; x < n; ++x) load_values<1>(p, in + x, first, regions, row + x);
        } else {
          for (int64_t x = 0; x < n; x += kBlock) {
            // The last block overlaps the one before, so that all have the same length.
            const int64_t at = x + kBlock <= n ? x : n - kBlock;
            load_values<kBlock>(p, in + at, first, regions, row + at);
          }
        }
      }
    }
  });
}

// Calls body(first, regions) for every kSobelRegions regions of a volume.
template <class Body>
static inline void for_regions(const SobelEdges& p, Body&& body) {
  const int64_t all = p.region_counts != nullptr ? p.size.channels : 1;
  for (int64_t first = 0; first < all; first += kSobelRegions) {
    body(first, std::min(kSobelRegions, all - first));
  }
}

// The output rows of plane z of a slab.
static inline uint8_t* edges_at(const SobelEdges& p, const SobelPlan& plan, const Slab& slab,
                                int64_t region, int64_t z) {
  const int64_t regions = p.region_counts != nullptr ? p.size.channels : 1;
  return static_cast<uint8_t*>(p.edges.data) +
         plan.start(slab.volume * regions + region, z, slab.y0);
}

static inline bool is_large(const SobelEdges& p) {
  return p.size.batch * p.size.channels * p.size.voxels() > kStreamed;
}

// is_edge(gz, gy, gx) is nonzero in the lanes of edges.
template <class T, class IsEdge>
static void find_edges(const SobelEdges& p, const SobelPlan& plan, const Slab& slab, char* scratch,
                       IsEdge is_edge) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>)));
  const int64_t width = plan.width;
  for_regions(p, [&](int64_t first, int64_t regions) {
    SobelMarch<T> march(plan, slab, scratch);
    uint8_t* staged = reinterpret_cast<uint8_t*>(march.output);
    march.run(
        [&](int64_t z, int64_t y, const Rows<T>& rows) {
          load_regions(p, plan.start(slab.volume, z, y), first, regions, rows);
        },
        [&](int64_t z) {
          for (int64_t r = 0; r < regions; ++r) {
            ByteStream out(edges_at(p, plan, slab, first + r, z), is_large(p));
            march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool constant) {
              const int64_t n = rows * width;
              if (constant) return out.put_zeros(n);
              const auto emit = [=](int64_t i, int64_t x, auto gz, auto gy, auto gx) {
                const Bytes bytes = __builtin_convertvector(is_edge(gz, gy, gx), Bytes) & 1;
                std::memcpy(staged + i * width + x, &bytes, sizeof bytes);
              };
              if constexpr (std::is_integral_v<T>) {
                if (p.region_counts != nullptr) {
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
  });
}

// The mark of a row that has one word per region.
static inline uint8_t mark_of_word(const uint64_t* word, int64_t regions, int64_t stride) {
  uint8_t mark = 0;
  for (int64_t r = 0; r < regions; ++r, word += stride) {
    if (*word + 1 > 1) return kMixed;
    mark |= (*word & 1) << r;
  }
  return mark;
}

// Packs rows into bits, marks them, and returns whether all values are binary. Floats that are all
// 0 and 1 count as binary.
template <class In>
static bool pack_rows(const SobelEdges& p, int64_t start, int64_t rows, int64_t first,
                      const BitMarch& march, uint8_t* marks, uint64_t* words) {
  using U = UInt<sizeof(In)>;
  const int64_t width = p.size.width, regions = march.regions();
  const int64_t count = march.words(), stride = march.region_stride();
  const U* const data = static_cast<const U*>(p.labels.data);
  const U* const end = data + p.size.batch * p.labels.batch_stride;
  const In one = narrow(1.0f, static_cast<In*>(nullptr));
  U one_bits;
  std::memcpy(&one_bits, &one, sizeof one);
  const int64_t* const values = p.region_counts != nullptr ? values_from(p, first) : nullptr;
  const U* row = data + start;
  for (int64_t i = 0; i < rows; ++i, row += width, words += count) {
    // A single word is as fast to pack as to compare.
    if (count > 1 && is_constant(row, width)) {
      uint8_t inside = row[0] != 0;
      if constexpr (std::is_integral_v<In>) {
        load_values<1>(p, reinterpret_cast<const In*>(row), first, regions, &inside);
      } else if (row[0] != 0 && row[0] != one_bits) {
        return false;
      }
      for (int64_t r = 0; r < regions; ++r) {
        std::fill_n(words + r * stride, count, inside >> r & 1 ? ~uint64_t(0) : 0);
      }
      marks[i] = inside;
      continue;
    }
    uint64_t other = 0;
    pack_row(row, end, width, count, [&](int64_t k, const U* block, auto finish) {
      if constexpr (std::is_integral_v<In>) {
        if (p.region_counts != nullptr) {
          const int64_t* value = values;
          for (int64_t r = 0; r < regions; ++r) {
            uint64_t bits = 0;
            for (const int64_t* last = value + p.region_counts[first + r]; value < last; ++value) {
              if (int64_t(In(*value)) == *value) bits |= ~differing(block, U(*value));
            }
            words[r * stride + k] = finish(bits);
          }
          return;
        }
      }
      const uint64_t bits = differing(block, U(0));
      if constexpr (!std::is_integral_v<In>) other |= bits & differing(block, one_bits);
      words[k] = finish(bits);
    });
    if (other != 0) return false;
    marks[i] = count > 1 ? kMixed : mark_of_word(words, regions, stride);
  }
  return true;
}

// Edges (threshold 0) of binary regions; returns false if the regions turn out not to be binary.
static bool find_binary_edges(const SobelEdges& p, const SobelPlan& plan, const Slab& slab,
                              char* scratch) {
  // Prefetch the next plane if a byte is read for each byte written; larger elements would keep too
  // many lines in flight.
  const bool bytes = p.labels.dtype == DType::u8 || p.labels.dtype == DType::i8;
  bool binary = true;
  for_regions(p, [&](int64_t first, int64_t regions) {
    BitMarch march(plan, slab, regions, scratch);
    binary &= march.run(
        [&](int64_t z, int64_t y, int64_t rows, uint8_t* marks, uint64_t* words) {
          bool packed = false;
          with_type(p.labels.dtype, [&](auto* type) {
            packed = pack_rows<std::remove_pointer_t<decltype(type)>>(
                p, plan.start(slab.volume, z, y), rows, first, march, marks, words);
          });
          return packed;
        },
        [&](int64_t z) {
          const int64_t next_z = std::min(z + 2, plan.depth - 1);
          const char* const next =
              static_cast<const char*>(p.labels.data) + plan.start(slab.volume, next_z, slab.y0);
          for (int64_t r = 0; r < regions; ++r) {
            BitStream out(edges_at(p, plan, slab, first + r, z), is_large(p),
                          bytes && r == 0 ? next : nullptr);
            march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool constant) {
              if (constant) return out.put_zeros(rows * plan.width);
              march.put(r, y, rows, out);
            });
          }
        });
  });
  return binary;
}

template <class T, class IsEdge>
static void sobel_edges(const SobelEdges& p, IsEdge is_edge) {
  const SobelPlan plan = sobel_edges_plan(p);
  for_slabs(plan, p.resources, [&](const Slab& slab, char* scratch) {
    const bool done = plan.regions > 0 && find_binary_edges(p, plan, slab, scratch);
    stream_fence();
    if (done) return;
    find_edges<T>(p, plan, slab, scratch, is_edge);
    stream_fence();
  });
}

template <class T>
static void soft_sobel_edges(const SobelEdges& p) {
  const T threshold = T(p.threshold);
  sobel_edges<T>(p, [=](auto gz, auto gy, auto gx) {
    return magnitudes<T>(gz * gz + gy * gy + gx * gx) > threshold;
  });
}

size_t sobel_edges_workspace(const SobelEdges& p) {
  return p.size.empty() ? 0 : p.resources.threads * sobel_edges_plan(p).bytes();
}

void sobel_edges_launch(const SobelEdges& p) {
  if (p.size.empty()) return;
  advise_huge(p.edges.data, p.size.batch * p.size.channels * p.size.voxels());
  if (is_float(p.labels.dtype)) {
    return with_accumulator(p.labels.dtype, [&](auto acc) { soft_sobel_edges<decltype(acc)>(p); });
  }
  if (p.threshold == 0) {
    // Modulo 256 is exact, since no gradient component exceeds 16.
    return sobel_edges<uint8_t>(p, [](auto gz, auto gy, auto gx) { return (gz | gy | gx) != 0; });
  }
  // Unsigned, so that differences and the unread lanes behind a row may wrap around; squares are
  // right modulo 2^16.
  const uint16_t most = uint16_t(math::sobel_largest_below(float(p.threshold)));
  sobel_edges<uint16_t>(
      p, [=](auto gz, auto gy, auto gx) { return gz * gz + gy * gy + gx * gx > most; });
}

}  // namespace egcnn::EGCNN_ISA
