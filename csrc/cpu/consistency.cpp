// The consistency loss (Eqs. 7 and 8). Only edge voxels count and only their 3x3x3 neighbourhoods
// are looked at, so noise and softmax are computed in that band alone. One sample at a time:
//   mark      edges of the truth (support "both": and of the hard sample, drawn everywhere)
//   band      voxels with an edge in their neighbourhood
//   sample    soft and hard Gumbel-softmax sample in the band
//   compare   at each edge: | ‖∇p‖ - ‖∇y‖ |
// Backward repeats these and then, with the counts known,
//   scatter   the gradient of each edge's term to its neighbourhood
//   finish    through the softmax to the logits
#include "../math/gumbel.h"
#include "sobel_plane.h"
#include "workspaces.h"

#include <omp.h>

namespace egcnn::EGCNN_ISA {

template <class Acc>
struct Sample {
  const Consistency& p;
  int64_t batch;
  ConsistencyWorkspace<Acc> ws;

  int64_t width() const { return p.size.width; }
  int64_t rows() const { return p.size.depth * p.size.height; }
  int64_t voxels() const { return p.size.voxels(); }
  int64_t channels() const { return p.size.channels; }
};

// The three gradient components at a voxel, unscaled, of value(voxel).
template <class Acc, class Value>
static inline void gradient_at(const Size& s, int64_t z, int64_t y, int64_t x, Value&& value,
                               Acc g[3]) {
  const Acc smooth[3] = {1, 2, 1}, differ[3] = {-1, 0, 1};
  const int64_t zs[3] = {below(z), z, above(z, s.depth)};
  const int64_t ys[3] = {below(y), y, above(y, s.height)};
  const int64_t xs[3] = {below(x), x, above(x, s.width)};
  g[0] = g[1] = g[2] = 0;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      for (int k = 0; k < 3; ++k) {
        const Acc v = value((zs[i] * s.height + ys[j]) * s.width + xs[k]);
        g[0] += differ[i] * smooth[j] * smooth[k] * v;
        g[1] += smooth[i] * differ[j] * smooth[k] * v;
        g[2] += smooth[i] * smooth[j] * differ[k] * v;
      }
    }
  }
}

// Writes ws.edges from a gradient: load(c, voxel, row) fetches a row that starts at `voxel`,
// edge(squared gradient, what was there) is the new value.
template <class Acc, class Load, class Edge>
static inline void mark(const Sample<Acc>& s, Load&& load, Edge&& edge) {
  const Size size = s.p.size;
#pragma omp for schedule(static)
  for (int64_t job = 0; job < size.channels * size.depth; ++job) {
    const int64_t c = job / size.depth, z = job % size.depth;
    sobel_plane<Acc>(
        size, z, s.ws.scratch(omp_get_thread_num()),
        [&](int64_t zz, int64_t y, Acc* row) { load(c, (zz * size.height + y) * size.width, row); },
        [&](int64_t y, const Acc* gz, const Acc* gy, const Acc* gx) {
          uint16_t* out = s.ws.edges + (job * size.height + y) * size.width;
          for (int64_t x = 0; x < size.width; ++x) {
            // Whole numbers, at most 3 * 16^2.
            out[x] = edge(uint16_t(int(gz[x] * gz[x] + gy[x] * gy[x] + gx[x] * gx[x])), out[x]);
          }
        });
  }
}

// Edges of the truth, each with its squared gradient.
template <class Acc>
static void mark_truth(const Sample<Acc>& s) {
  const Tensor& target = s.p.target;
  mark(
      s,
      [&](int64_t c, int64_t voxel, Acc* row) {
        const int64_t start = offset(target, s.batch, s.p.softmax ? 0 : c, voxel);
        load_inside(target, start, s.width(), &c, s.p.softmax ? 1 : 0, row);
      },
      [](uint16_t squared, uint16_t) { return squared; });
}

// Edges of the hard sample, beside those of the truth.
template <class Acc>
static void mark_sample(const Sample<Acc>& s) {
  mark(
      s,
      [&](int64_t c, int64_t voxel, Acc* row) {
        const uint8_t* hard = s.ws.hard + c * s.voxels() + voxel;
        for (int64_t x = 0; x < s.width(); ++x) row[x] = hard[x];
      },
      [](uint16_t squared, uint16_t truth) {
        return squared != 0 && truth == 0 ? kHardOnly : truth;
      });
}

template <class Acc>
static void band(const Sample<Acc>& s) {
  const Size size = s.p.size;
  const int64_t w = size.width;
#pragma omp for schedule(static)
  for (int64_t z = 0; z < size.depth; ++z) {
    // Edges of any region in the nine rows around, padded by one voxel on each side.
    uint8_t* any = reinterpret_cast<uint8_t*>(s.ws.scratch(omp_get_thread_num())) + 1;
    for (int64_t y = 0; y < size.height; ++y) {
      for (int64_t x = -1; x <= w; ++x) any[x] = 0;
      for (int64_t c = 0; c < size.channels; ++c) {
        for (int64_t zz = below(z); zz <= above(z, size.depth); ++zz) {
          for (int64_t yy = below(y); yy <= above(y, size.height); ++yy) {
            const uint16_t* e = s.ws.edges + c * s.voxels() + (zz * size.height + yy) * w;
            for (int64_t x = 0; x < w; ++x) any[x] |= e[x] != 0;
          }
        }
      }
      uint8_t* out = s.ws.band + (z * size.height + y) * w;
      for (int64_t x = 0; x < w; ++x) out[x] = any[x - 1] | any[x] | any[x + 1];
    }
  }
}

template <class Acc>
static void sample(const Sample<Acc>& s, bool everywhere) {
  const Consistency& p = s.p;
  const int64_t w = s.width(), channels = s.channels();
  const uint64_t seed = uint64_t(*p.seed);
  const Acc inverse_tau = Acc(1 / p.tau);
#pragma omp for schedule(dynamic, 64)
  for (int64_t row = 0; row < s.rows(); ++row) {
    const int64_t start = row * w;
    const uint8_t* inside = s.ws.band + start;
    if (!everywhere) {
      bool none = true;
      for (int64_t x = 0; x < w && none; ++x) none = !inside[x];
      if (none) continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      load(p.logits, offset(p.logits, s.batch, c, start), w, s.ws.soft + c * s.voxels() + start);
    }
    for (int64_t x = 0; x < w; ++x) {
      if (!everywhere && !inside[x]) continue;
      Acc* soft = s.ws.soft + start + x;
      uint8_t* hard = s.ws.hard + start + x;
      const uint64_t index = uint64_t(s.batch) * s.voxels() + start + x;
      math::Words words{};
      int64_t best = 0;
      for (int64_t c = 0; c < channels; ++c) {
        if (c % 4 == 0) words = math::philox(seed, index, uint32_t(c / 4));
        const Acc u = math::uniform<Acc>(words.word[c % 4]);
        Acc& z = soft[c * s.voxels()];
        z += p.softmax ? math::gumbel(u) : math::logistic(u);
        if (!p.softmax) {
          hard[c * s.voxels()] = z > 0;
          z = math::sigmoid(z * inverse_tau);
        } else if (z > soft[best * s.voxels()]) {
          best = c;
        }
      }
      if (!p.softmax) continue;
      const Acc highest = soft[best * s.voxels()];
      Acc sum = 0;
      for (int64_t c = 0; c < channels; ++c) {
        Acc& z = soft[c * s.voxels()];
        z = math::exp((z - highest) * inverse_tau);
        sum += z;
      }
      for (int64_t c = 0; c < channels; ++c) {
        soft[c * s.voxels()] /= sum;
        hard[c * s.voxels()] = c == best;
      }
    }
  }
}

// visit(x, y, gradient of the sample, its magnitude, mismatch) at every edge of one plane.
template <class Acc, class Visit>
static inline void compare(const Sample<Acc>& s, int64_t c, int64_t z, Visit&& visit) {
  const Size& size = s.p.size;
  const uint16_t* edges = s.ws.edges + c * s.voxels();
  const Acc* soft = s.ws.soft + c * s.voxels();
  const uint8_t* hard = s.ws.hard + c * s.voxels();
  for (int64_t y = 0; y < size.height; ++y) {
    for (int64_t x = 0; x < size.width; ++x) {
      const uint16_t edge = edges[(z * size.height + y) * size.width + x];
      if (edge == 0) continue;
      Acc g[3];
      if (s.p.hard) {
        gradient_at(size, z, y, x, [&](int64_t v) { return Acc(hard[v]); }, g);
      } else {
        gradient_at(size, z, y, x, [&](int64_t v) { return soft[v]; }, g);
      }
      const Acc magnitude = math::sobel_magnitude(g[0], g[1], g[2]);
      const Acc truth = edge == kHardOnly ? Acc(0) : math::sqrt(Acc(edge)) * Acc(1.0 / 16);
      visit(x, y, g, magnitude, magnitude - truth);
    }
  }
}

// Everything up to the comparison, for one sample; called by all threads of a team.
template <class Acc>
static void prepare(const Sample<Acc>& s) {
  mark_truth(s);
  if (s.p.both) {
    sample(s, true);
    mark_sample(s);
  }
  band(s);
  if (!s.p.both) sample(s, false);
}

// Sum of mismatches and count of edges of every plane, each written by one thread.
template <class Acc>
static void sum_planes(const Sample<Acc>& s) {
  const int64_t depth = s.p.size.depth;
#pragma omp for schedule(dynamic, 1)
  for (int64_t job = 0; job < s.channels() * depth; ++job) {
    double sum = 0;
    int64_t count = 0;
    compare(s, job / depth, job % depth,
            [&](int64_t, int64_t, const Acc*, Acc, Acc mismatch) {
              sum += mismatch < 0 ? -mismatch : mismatch;
              ++count;
            });
    s.ws.sums[job] = sum;
    s.ws.counts[job] = count;
  }
}

// Edges of one region, over all planes.
template <class Acc>
static int64_t edge_count(const Sample<Acc>& s, int64_t c) {
  int64_t count = 0;
  for (int64_t z = 0; z < s.p.size.depth; ++z) count += s.ws.counts[c * s.p.size.depth + z];
  return count;
}

template <class Acc>
static void consistency(const Consistency& p) {
  const ConsistencyWorkspace<Acc> ws(p.size, p.resources.workspace);
  double total = 0;
#pragma omp parallel num_threads(p.resources.threads)
  for (int64_t batch = 0; batch < p.size.batch; ++batch) {
    const Sample<Acc> s{p, batch, ws};
    prepare(s);
    sum_planes(s);
#pragma omp single
    for (int64_t c = 0; c < p.size.channels; ++c) {
      double sum = 0;
      for (int64_t z = 0; z < p.size.depth; ++z) sum += ws.sums[c * p.size.depth + z];
      const int64_t count = edge_count(s, c);
      if (count > 0) total += sum / double(count);
    }
  }
  const double pairs = double(p.size.batch * p.size.channels);
  *static_cast<Acc*>(p.loss) = p.size.empty() ? Acc(0) : Acc(total / pairs);
}

// Adds the gradients of the terms around planes [first, last) to those planes' voxels, edges in
// order of position: each voxel sums in one order whatever the number of threads.
template <class Acc>
static void scatter(const Sample<Acc>& s, int64_t c, int64_t first, int64_t last, Acc scale) {
  const Size& size = s.p.size;
  Acc* out = s.ws.grad + c * s.voxels();
  const Acc smooth[3] = {1, 2, 1}, differ[3] = {-1, 0, 1};
  for (int64_t z = below(first); z <= above(last - 1, size.depth); ++z) {
    compare(s, c, z, [&](int64_t x, int64_t y, const Acc* g, Acc magnitude, Acc mismatch) {
      const Acc sign = Acc(mismatch > 0) - Acc(mismatch < 0);
      const Acc slope = scale * sign * math::sobel_slope(magnitude);
      if (slope == 0) return;
      const int64_t zs[3] = {below(z), z, above(z, size.depth)};
      const int64_t ys[3] = {below(y), y, above(y, size.height)};
      const int64_t xs[3] = {below(x), x, above(x, size.width)};
      for (int i = 0; i < 3; ++i) {
        if (zs[i] < first || zs[i] >= last) continue;
        for (int j = 0; j < 3; ++j) {
          for (int k = 0; k < 3; ++k) {
            out[(zs[i] * size.height + ys[j]) * size.width + xs[k]] +=
                slope * (g[0] * differ[i] * smooth[j] * smooth[k] +
                         g[1] * smooth[i] * differ[j] * smooth[k] +
                         g[2] * smooth[i] * smooth[j] * differ[k]);
          }
        }
      }
    });
  }
}

// From the gradient of the sample to that of the logits; zero outside the band.
template <class Acc>
static void finish(const Sample<Acc>& s) {
  const Consistency& p = s.p;
  const int64_t w = s.width(), channels = s.channels(), voxels = s.voxels();
  const Acc inverse_tau = Acc(1 / p.tau);
#pragma omp for schedule(static)
  for (int64_t row = 0; row < s.rows(); ++row) {
    const int64_t start = row * w;
    Acc *grad = s.ws.grad + start, *soft = s.ws.soft + start;
    for (int64_t x = 0; x < w; ++x) {
      if (!s.ws.band[start + x]) continue;
      Acc mean = 0;
      if (p.softmax) {
        for (int64_t c = 0; c < channels; ++c) mean += soft[c * voxels + x] * grad[c * voxels + x];
      }
      for (int64_t c = 0; c < channels; ++c) {
        const Acc q = soft[c * voxels + x];
        Acc& g = grad[c * voxels + x];
        g = q * inverse_tau * (p.softmax ? g - mean : g * (1 - q));
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      store(p.grad_logits, offset(p.grad_logits, s.batch, c, start), w, grad + c * voxels);
    }
  }
}

template <class Acc>
static void consistency_backward(const Consistency& p) {
  const ConsistencyWorkspace<Acc> ws(p.size, p.resources.workspace);
  const Size& size = p.size;
  const double grad = double(*static_cast<const Acc*>(p.grad));
  const int64_t slabs = size.depth < 64 ? size.depth : 64;
#pragma omp parallel num_threads(p.resources.threads)
  for (int64_t batch = 0; batch < size.batch; ++batch) {
    const Sample<Acc> s{p, batch, ws};
    prepare(s);
    sum_planes(s);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < size.channels * s.rows(); ++i) {
      for (int64_t x = 0; x < size.width; ++x) ws.grad[i * size.width + x] = 0;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t job = 0; job < size.channels * slabs; ++job) {
      const int64_t c = job / slabs, count = edge_count(s, c);
      if (count == 0) continue;
      int64_t first, last;
      share(size.depth, slabs, job % slabs, &first, &last);
      scatter(s, c, first, last, Acc(grad / double(size.batch * size.channels * count)));
    }
    finish(s);
  }
}

void consistency_launch(const Consistency& p) {
  if (p.logits.dtype == DType::f64) return consistency<double>(p);
  consistency<float>(p);
}

void consistency_backward_launch(const Consistency& p) {
  if (p.size.empty()) return;
  if (p.logits.dtype == DType::f64) return consistency_backward<double>(p);
  consistency_backward<float>(p);
}

}  // namespace egcnn::EGCNN_ISA
