// The Sobel magnitude and its gradient (section 2.1).
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../math/sobel.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "../simd/vector_math.h"
#include "../simd/vectors.h"
#include "gather.h"
#include "march.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// Loads n elements in memory order, channels interleaved or not.
template <class T>
static inline void load_row(const Tensor& x, int64_t start, int64_t n, T* row) {
  load(x.dtype, x.data, start, 1, n, row);
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
  const SobelPlan plan = sobel_magnitude_plan(p);
  const int64_t width = plan.width;
  uint8_t* result = static_cast<uint8_t*>(p.out.data);
  const bool large = plan.volumes * plan.depth * plan.height * width * element > kStreamed;
  for_slabs(plan, p.resources, [&](const Slab& slab, char* scratch) {
    SobelMarch<T> march(plan, slab, scratch);
    const auto start = [&](int64_t z, int64_t y) { return plan.start(slab.volume, z, y); };
    march.run([&](int64_t z, int64_t y, const Rows<T>& rows) { load_rows(p.x, start(z, y), rows); },
              [&](int64_t z) {
                ByteStream out(result + start(z, slab.y0) * element, large);
                const int64_t next_z = std::min(z + 2, plan.depth - 1);
                march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool) {
                  T* const staged = march.output;
                  // Prefetch the next plane.
                  const char* const next =
                      static_cast<const char*>(p.x.data) + start(next_z, y) * element;
                  march.gradient(
                      y, rows, [](auto x) { return x; },
                      [=](int64_t i, int64_t x, auto gz, auto gy, auto gx) {
                        __builtin_prefetch(next + (i * width + x) * element, 0, 2);
                        store_vector(staged + i * width + x,
                                     magnitudes<T>(gz * gz + gy * gy + gx * gx));
                      });
                  out.put_as(p.out.dtype, staged, rows * width);
                });
              });
    stream_fence();
  });
}

size_t sobel_magnitude_workspace(const SobelMagnitude& p) {
  return p.size.empty() ? 0 : p.resources.threads * sobel_magnitude_plan(p).bytes();
}

void sobel_magnitude_launch(const SobelMagnitude& p) {
  if (p.size.empty()) return;
  const int64_t element = float_bytes(p.out.dtype);
  advise_huge(p.out.data, p.size.batch * p.size.channels * p.size.voxels() * element);
  with_accumulator(p.x.dtype, [&](auto acc) { sobel_magnitude<decltype(acc)>(p, element); });
}

// math::sobel_slope of magnitudes, from the sums of the squares.
template <class T>
static inline Vector<T> slopes(Vector<T> squared) {
  if constexpr (kInverseRoot<T>) {
    return inverse_root(squared * (1.0f / 256)) * (1.0f / 256);
  } else {
    const Vector<T> magnitude = magnitudes<T>(squared), zero = {};
    return magnitude > zero ? T(1.0 / 256) / magnitude : zero;
  }
}

template <class T>
static void sobel_magnitude_backward(const SobelMagnitudeBackward& p, int64_t element) {
  const SobelPlan plan = sobel_magnitude_backward_plan(p);
  const int64_t width = plan.width, pitch = plan.pitch, grad_element = float_bytes(p.grad.dtype);
  uint8_t* result = static_cast<uint8_t*>(p.grad_x.data);
  const bool large = plan.volumes * plan.depth * plan.height * width * element > kStreamed;
  for_slabs(plan, p.resources, [&](const Slab& slab, char* scratch) {
    const auto start = [&](int64_t z, int64_t y) { return plan.start(slab.volume, z, y); };
    // The result needs q of one more plane and row on each side.
    const Slab reach = {slab.volume, std::max<int64_t>(slab.z0 - 1, 0),
                        std::min(slab.z1 + 1, plan.depth), slab.y0, slab.y1};
    const int64_t low = std::max<int64_t>(slab.y0 - 1, 0);
    const int64_t high = std::min(slab.y1 + 1, plan.height);
    SobelMarch<T> march(plan, reach, scratch);
    const SobelGather<T> gather(plan, low, march.extra);
    T* const staged = march.output;

    const auto compute_q = [&](int64_t z) {
      march.for_runs(low, high, [&](int64_t y, int64_t rows, bool) {
        load_row(p.grad, start(z, y), rows * width, staged);
        T* const q = gather.q(y);
        const int64_t plane = gather.plane();
        // Prefetch the next planes.
        const char* const next_x = static_cast<const char*>(p.x.data) +
                                   start(std::min(z + 2, plan.depth - 1), y) * element;
        const char* const next_grad = static_cast<const char*>(p.grad.data) +
                                      start(std::min(z + 1, plan.depth - 1), y) * grad_element;
        march.gradient(
            y, rows, [](auto x) { return x; },
            [=](int64_t i, int64_t x, auto gz, auto gy, auto gx) {
              __builtin_prefetch(next_x + (i * width + x) * element, 0, 2);
              __builtin_prefetch(next_grad + (i * width + x) * grad_element, 0, 2);
              const auto slope =
                  slopes<T>(gz * gz + gy * gy + gx * gx) * load_vector(staged + i * width + x);
              T* const to = q + i * pitch + x;
              store_vector(to, gz * slope);
              store_vector(to + plane, gy * slope);
              store_vector(to + 2 * plane, gx * slope);
            });
        for (int64_t i = 0; i < rows; ++i) gather.close(y + i);
      });
    };
    // Calls body(y, rows), which fills `staged` with rows of plane z.
    const auto put = [&](int64_t z, auto&& body) {
      const bool complete = z >= slab.z0;
      ByteStream out(result + start(complete ? z : slab.z0, slab.y0) * element, large);
      march.for_runs(slab.y0, slab.y1, [&](int64_t y, int64_t rows, bool) {
        body(y, rows);
        if (complete) out.put_as(p.grad_x.dtype, staged, rows * width);
      });
    };
    march.run([&](int64_t z, int64_t y, const Rows<T>& rows) { load_rows(p.x, start(z, y), rows); },
              [&](int64_t z) {
                compute_q(z);
                put(z - 1, [&](int64_t y, int64_t rows) { gather.add(y, rows, z == 0, staged); });
                if (z + 1 < plan.depth) return;
                put(z, [&](int64_t y, int64_t rows) { gather.finish(y, rows, staged); });
              });
    stream_fence();
  });
}

size_t sobel_magnitude_backward_workspace(const SobelMagnitudeBackward& p) {
  return p.size.empty() ? 0 : p.resources.threads * sobel_magnitude_backward_plan(p).bytes();
}

void sobel_magnitude_backward_launch(const SobelMagnitudeBackward& p) {
  if (p.size.empty()) return;
  const int64_t element = float_bytes(p.grad_x.dtype);
  advise_huge(p.grad_x.data, p.size.batch * p.size.channels * p.size.voxels() * element);
  with_accumulator(p.x.dtype,
                   [&](auto acc) { sobel_magnitude_backward<decltype(acc)>(p, element); });
}

}  // namespace egcnn::EGCNN_ISA
