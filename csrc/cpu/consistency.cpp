// The consistency loss (Eqs. 7 and 8). Only edge voxels count and only their 3x3x3 neighbourhoods
// are looked at, so noise and softmax are computed in that band alone. A thread marches along z over
// a strip of rows; each plane goes through these stages, each some planes behind the one before:
//   load       the target as codes
//   find       candidates: voxels whose 3x3x3 neighbourhood is not constant, all edges among them
//   sample     the Gumbel-softmax sample in the band, which is candidates and voxels beside them
//   compare    at each edge: | ‖∇p‖ - ‖∇y‖ |, summed, or its gradient scattered to the neighbourhood
//   finish     from the gradient of the sample to that of the logits; zeros outside the band
// Support "both" first draws the hard sample everywhere and has candidates of it, too.
//
// Each voxel and each sum is computed in the same order however the planes are shared out.
#include "../math/sobel.h"
#include "gumbel_sample.h"
#include "pages.h"
#include "stream.h"
#include "voxel_sets.h"

#include <omp.h>

#include <initializer_list>

namespace egcnn::EGCNN_ISA {

enum class Pass { count, loss, gradient };

static int64_t grad_bytes(const Consistency& p) {
  return p.size.batch * p.size.channels * p.size.voxels() * float_bytes(p.grad_logits.dtype);
}

// --- Sobel along a row ---

constexpr int64_t kBlock = 64;

// A row and those around it along z and y; `from` says by which value a voxel counts.
template <class T, class V, class From>
static inline void smooth_rows(const T* const (&rows)[3][3], int64_t first, From&& from,
                               V* __restrict smooth_zy, V* __restrict smooth_z_diff_y,
                               V* __restrict diff_z_smooth_y) {
  const T *a0 = rows[0][0] + first, *a1 = rows[0][1] + first, *a2 = rows[0][2] + first;
  const T *b0 = rows[1][0] + first, *b1 = rows[1][1] + first, *b2 = rows[1][2] + first;
  const T *c0 = rows[2][0] + first, *c1 = rows[2][1] + first, *c2 = rows[2][2] + first;
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const V before[3] = {from(a0[i]), from(a1[i]), from(a2[i])};
    const V at[3] = {from(b0[i]), from(b1[i]), from(b2[i])};
    const V after[3] = {from(c0[i]), from(c1[i]), from(c2[i])};
    const V s0 = V(before[0] + 2 * at[0] + after[0]), s1 = V(before[1] + 2 * at[1] + after[1]);
    const V s2 = V(before[2] + 2 * at[2] + after[2]);
    const V d0 = V(after[0] - before[0]), d1 = V(after[1] - before[1]);
    const V d2 = V(after[2] - before[2]);
    smooth_zy[i] = V(s0 + 2 * s1 + s2);
    smooth_z_diff_y[i] = V(s2 - s0);
    diff_z_smooth_y[i] = V(d0 + 2 * d1 + d2);
  }
}

// The unscaled gradient (z, y, x) for columns [first, last) of a row; up to a block more are read
// and written. Results lie as columns do, `pitch` apart. Borders replicate.
template <class T, class V, class From>
static inline void sobel_row(const T* const (&rows)[3][3], int64_t first, int64_t last,
                             int64_t width, From&& from, V* columns, V* gradient, int64_t pitch) {
  V* __restrict smooth_zy = columns + 1;
  V* __restrict smooth_z_diff_y = smooth_zy + pitch;
  V* __restrict diff_z_smooth_y = smooth_z_diff_y + pitch;
  const int64_t begin = first > 0 ? first - 1 : 0, end = last < width ? last + 1 : width;
  for (int64_t x = begin; x < end; x += kBlock) {
    smooth_rows(rows, x, from, smooth_zy + x, smooth_z_diff_y + x, diff_z_smooth_y + x);
  }
  for (V* row : {smooth_zy, smooth_z_diff_y, diff_z_smooth_y}) {
    row[-1] = row[0];
    row[width] = row[width - 1];
  }
  V *__restrict gz = gradient, *__restrict gy = gz + pitch, *__restrict gx = gy + pitch;
  for (int64_t start = first; start < last; start += kBlock) {
#pragma omp simd
    for (int64_t x = start; x < start + kBlock; ++x) {
      gz[x] = V(diff_z_smooth_y[x - 1] + 2 * diff_z_smooth_y[x] + diff_z_smooth_y[x + 1]);
      gy[x] = V(smooth_z_diff_y[x - 1] + 2 * smooth_z_diff_y[x] + smooth_z_diff_y[x + 1]);
      gx[x] = V(smooth_zy[x + 1] - smooth_zy[x - 1]);
    }
  }
}

// --- The march ---

template <class Acc, class Code>
class March {
 public:
  March(const Consistency& p, const ConsistencyPlan& plan,
        const ConsistencyWorkspace<Acc, Code>& shared, bool backward, int thread)
      : p_(p), plan_(plan), shared_(shared), own_(shared.scratch(p, plan, backward, thread)),
        height_(p.size.height), width_(p.size.width), depth_(p.size.depth),
        sampler_{p, GumbelKeys(*p.seed), own_.noise, own_.noisy, own_.best, own_.sum, own_.code} {}

  // Draws the hard sample of one of all strips' planes everywhere.
  void draw(int64_t plane) {
    enter(plane);
    int32_t* position = own_.band;
    const int64_t n = (rows_end_ - rows_begin_) * width_;
    for (int64_t i = 0; i < n; ++i) position[i] = int32_t(i);
    const int64_t first = (z_of(plane) * height_ + rows_begin_) * width_;
    sampler_.draw(batch_, channel_, plan_.classes, first, position, n, shared_.drawn + first,
                  static_cast<Acc*>(nullptr), 0);
  }

  // One of all strips' planes; those after the last one come cheaper than others.
  void visit(int64_t plane, Pass pass) {
    const int64_t z = z_of(plane);
    const int64_t reach = pass == Pass::gradient ? 1 : 0;
    if (z == 0 || plane != last_plane_ + 1 || pass != pass_) {
      enter(plane);
      begin(z - reach);
    }
    last_plane_ = plane;
    pass_ = pass;
    sums_ = plane * plan_.classes;
    for (; compared_ <= above_by(z, reach); ++compared_) {
      if (pass != Pass::count) need_sample(above_by(compared_, 1));
      need_candidates(above_by(compared_, 1));
      compare(compared_);
    }
    if (pass == Pass::gradient) finish(z);
  }

 private:
  // --- Places ---

  int64_t z_of(int64_t plane) const { return plane % depth_; }
  int64_t above_by(int64_t z, int64_t n) const { return z + n < depth_ ? z + n : depth_ - 1; }
  int64_t low(int64_t reach) const { return rows_begin_ > reach ? rows_begin_ - reach : 0; }
  int64_t high(int64_t reach) const {
    return rows_end_ + reach < height_ ? rows_end_ + reach : height_;
  }
  int64_t position(int64_t y) const { return (y - base_) * width_; }
  int64_t voxel(int64_t z) const { return (z * height_ + base_) * width_; }

  void enter(int64_t plane) {
    const int64_t strip = plane / depth_ % plan_.strips;
    volume_ = plane / depth_ / plan_.strips;
    batch_ = p_.softmax ? volume_ : volume_ / p_.size.channels;
    channel_ = p_.softmax ? 0 : volume_ % p_.size.channels;
    rows_begin_ = strip * plan_.strip;
    rows_end_ = rows_begin_ + plan_.strip < height_ ? rows_begin_ + plan_.strip : height_;
    base_ = low(kReach);
  }

  void begin(int64_t z) {
    const auto from = [](int64_t i) { return i > 0 ? i : 0; };
    compared_ = from(z);
    sampled_ = listed_ = from(z - 1);
    found_ = from(z - 2);
    surveyed_ = loaded_ = from(z - 3);
  }

  const Code* truth(int64_t z, int64_t y) const { return truth_[z % kEarlyRing] + position(y); }
  Code* hard_plane(int64_t z) const {
    return p_.both ? shared_.drawn + voxel(z) : own_.hard + z % kRing * own_.plane;
  }
  Acc* samples(Acc* of, int64_t z) const { return of + z % kRing * plan_.classes * own_.plane; }
  uint64_t* set(uint64_t* sets, int64_t z, int64_t y) const {
    return sets + (z % kEarlyRing * own_.rows + y - base_) * plan_.words;
  }
  uint8_t& has_candidates(int64_t z, int64_t y) const {
    return own_.has_candidates[z % kEarlyRing * own_.rows + y - base_];
  }
  uint64_t* present(int64_t z, int64_t y) const {
    return own_.present + (z % kEarlyRing * own_.rows + y - base_) * plan_.sets;
  }

  // --- Load ---

  void load(int64_t z) {
    const Tensor& target = p_.target;
    const int64_t start = offset(target, batch_, channel_, voxel(z));
    const int64_t n = (high(kReach) - base_) * width_;
    const Code*& truth = truth_[z % kEarlyRing];
    // Bytes stay where they are, unless vectors would read beyond the tensor.
    const int64_t all = plan_.volumes * p_.size.voxels();
    if (sizeof(Code) == 1 && target.dtype == DType::u8 && target.voxel_stride == 1 &&
        start + n + kSlack <= all) {
      truth = static_cast<const Code*>(target.data) + start;
      return;
    }
    Code* codes = own_.truth + z % kEarlyRing * own_.plane;
    truth = codes;
    with_type(target.dtype, [&](auto* type) {
      const auto* in = static_cast<decltype(type)>(target.data) + start;
      const int64_t stride = target.voxel_stride;
      const uint64_t none = uint64_t(plan_.classes);
      const auto convert = [&](int64_t step) {
        if (p_.softmax) {
          for (int64_t i = 0; i < n; ++i) {
            const uint64_t value = uint64_t(widen<int64_t>(in[i * step]));
            codes[i] = Code(value < none ? value : none);
          }
        } else {
          for (int64_t i = 0; i < n; ++i) codes[i] = widen<int64_t>(in[i * step]) != 0;
        }
      };
      stride == 1 ? convert(1) : convert(stride);
    });
  }

  // --- Find ---

  // Where labels change in a plane, and from it to the next.
  template <class Row>
  void survey(int64_t z, Row&& row, bool also) {
    const int64_t words = plan_.words, from = low(kReach), to = high(kReach);
    if (!also) {
      uint64_t *a = set(own_.across, z, from), *b = set(own_.along, z, from);
      for (int64_t i = 0; i < (to - from) * words; ++i) a[i] = b[i] = 0;
    }
    for (int64_t y = from; y < to; ++y) {
      const Code *at = row(z, y), *below_it = row(z, y + 1 < to ? y + 1 : y);
      const Code* behind = row(above_by(z, 1), y);
      uint64_t *across = set(own_.across, z, y), *along = set(own_.along, z, y);
      uint64_t carry = 0;
      for (int64_t w = 0; w < words; ++w) {
        const int64_t x = w * kWord;
        const uint64_t inside = first_bits(width_ - x);
        const uint64_t dx = differing(at + x, at + x + 1) & first_bits(width_ - 1 - x);
        const uint64_t dy = differing(at + x, below_it + x) & inside;
        const uint64_t dz = differing(at + x, behind + x) & inside;
        if ((dx | dy | dz | carry) == 0) continue;
        along[w] |= dz;
        const uint64_t wide = dx | dx << 1 | carry;
        carry = dx >> 63;
        across[w] |= wide | dy;
        if (y > from) across[w - words] |= wide;
        if (y + 1 < to) across[w + words] |= wide | dy;
      }
    }
  }

  void find(int64_t z) {
    const int64_t words = plan_.words;
    for (int64_t y = low(kReach); y < high(kReach); ++y) {
      uint64_t* found = set(own_.candidate, z, y);
      const uint64_t *before = set(own_.across, below(z), y), *at = set(own_.across, z, y);
      const uint64_t *after = set(own_.across, above_by(z, 1), y);
      const uint64_t *along_before = set(own_.along, below(z), y), *along = set(own_.along, z, y);
      uint64_t any = 0;
      for (int64_t w = 0; w < words; ++w) {
        found[w] = before[w] | at[w] | after[w] | along[w] | along_before[w];
        any |= found[w];
      }
      has_candidates(z, y) = any != 0;
      find_present(z, y);
    }
  }

  // The classes at a row's candidates. Any class near a candidate is that of a candidate near it.
  void find_present(int64_t z, int64_t y) {
    uint64_t* classes = present(z, y);
    if (plan_.classes == 1) {
      classes[0] = has_candidates(z, y);
      return;
    }
    for (int64_t i = 0; i < plan_.sets; ++i) classes[i] = 0;
    if (!has_candidates(z, y)) return;
    const auto add = [&](int64_t code) {
      if (code < plan_.classes) classes[code / 64] |= uint64_t(1) << code % 64;
    };
    const uint64_t* found = set(own_.candidate, z, y);
    const Code *codes = truth(z, y), *hard = hard_plane(z) + position(y);
    for (int64_t w = 0; w < plan_.words; ++w) {
      for (uint64_t bits = found[w]; bits != 0; bits &= bits - 1) {
        const int64_t x = w * kWord + lowest_bit(bits);
        add(codes[x]);
        if (p_.both) add(hard[x]);
      }
    }
  }

  void need_candidates(int64_t z) {
    for (; found_ <= z; ++found_) {
      for (; surveyed_ <= above_by(found_, 1); ++surveyed_) {
        for (; loaded_ <= above_by(surveyed_, 1); ++loaded_) load(loaded_);
        survey(surveyed_, [&](int64_t zz, int64_t y) { return truth(zz, y); }, false);
        if (p_.both) {
          survey(surveyed_,
                 [&](int64_t zz, int64_t y) { return hard_plane(zz) + position(y); }, true);
        }
      }
      find(found_);
    }
  }

  // --- Sample ---

  void need_sample(int64_t z) {
    for (; sampled_ <= z; ++sampled_) {
      // A plane ahead, for the logits to arrive meanwhile.
      for (; listed_ <= above_by(sampled_, 1); ++listed_) {
        need_candidates(above_by(listed_, 1));
        list_band(listed_);
      }
      sample(sampled_);
    }
  }

  // Row y's band is listed from band_row(z)[y - base_] to that of the next row.
  int32_t* band(int64_t z) const { return own_.band + z % kRing * own_.plane; }
  int32_t* band_row(int64_t z) const { return own_.band_row + z % kRing * (own_.rows + 1); }

  void list_band(int64_t z) {
    const int64_t words = plan_.words, planes[3] = {below(z), z, above_by(z, 1)};
    int32_t *list = band(z), *start = band_row(z), n = 0;
    uint64_t* around = own_.around;
    uint8_t* any = own_.any_of_three - base_;
    for (int64_t y = low(3); y < high(3); ++y) {
      any[y] = 0;
      for (const int64_t plane : planes) any[y] |= has_candidates(plane, y);
    }
    for (int64_t y = low(2); y < high(2); ++y) {
      start[y - base_] = n;
      const int64_t rows[3] = {below(y), y, above(y, height_)};
      if ((any[rows[0]] | any[rows[1]] | any[rows[2]]) == 0) continue;
      for (int64_t w = 0; w < words; ++w) {
        around[w] = 0;
        for (const int64_t plane : planes) {
          for (const int64_t row : rows) around[w] |= set(own_.candidate, plane, row)[w];
        }
      }
      for (int64_t w = 0; w < words; ++w) {
        for_lanes(widened(around, w, words, width_), w * kWord, [&](int64_t x, uint32_t bits) {
          const int32_t first = int32_t(position(y) + x);
          fetch(z, first);
          compress_range(first, bits, list + n);
          n += __builtin_popcount(bits);
        });
      }
    }
    start[high(2) - base_] = n;
  }

  // Has the logits of kLanes voxels on their way from memory by the time that they are sampled.
  void fetch(int64_t z, int64_t first) const {
    const char* logits = static_cast<const char*>(p_.logits.data);
    for (int64_t c = 0; c < plan_.classes; ++c) {
      __builtin_prefetch(logits + offset(p_.logits, batch_, channel_ + c, voxel(z) + first) *
                                      float_bytes(p_.logits.dtype));
    }
  }

  void sample(int64_t z) {
    const int64_t n = band_row(z)[high(2) - base_];
    const bool soft = pass_ == Pass::gradient || !p_.hard;
    if (p_.both && !soft) return;
    sampler_.draw(batch_, channel_, plan_.classes, voxel(z), band(z), n,
                  p_.both ? nullptr : hard_plane(z), soft ? samples(own_.soft, z) : nullptr,
                  own_.plane);
    const int32_t* list = band(z);
    for (int64_t c = 0; c < plan_.classes; ++c) {
      if (!p_.hard) {
        const Acc* listed = samples(own_.soft, z) + c * own_.plane;
        Acc* dense = samples(own_.dense, z) + c * own_.plane;
        for (int64_t i = 0; i < n; ++i) dense[list[i]] = listed[i];
      }
      if (pass_ == Pass::gradient) {
        Acc* grad = samples(own_.grad, z) + c * own_.plane;
        for (int64_t i = 0; i < n; ++i) grad[list[i]] = 0;
      }
    }
  }

  // --- Compare ---

  void compare(int64_t z) {
    const int64_t reach = pass_ == Pass::gradient ? 1 : 0;
    const int64_t from = low(reach), to = high(reach), sets = plan_.sets;
    for (int64_t y = from; y < to; ++y) {
      uint64_t* near = own_.near + (y - from) * sets;
      for (int64_t i = 0; i < sets; ++i) near[i] = 0;
      if (!has_candidates(z, y)) continue;
      for (int64_t zz = below(z); zz <= above_by(z, 1); ++zz) {
        for (int64_t yy = below(y); yy <= above(y, height_); ++yy) {
          for (int64_t i = 0; i < sets; ++i) near[i] |= present(zz, yy)[i];
        }
      }
    }
    for (int64_t c = 0; c < plan_.classes; ++c) {
      sum_ = 0, count_ = 0, edges_ = 0;
      for (int64_t y = from; y < to; ++y) {
        if (own_.near[(y - from) * sets + c / 64] >> c % 64 & 1) compare_row(c, z, y);
      }
      flush(c, z);
      if (pass_ == Pass::gradient) continue;
      shared_.sums[sums_ + c] = sum_;
      shared_.counts[sums_ + c] = count_;
    }
  }

  // Runs of words that have candidates.
  void compare_row(int64_t c, int64_t z, int64_t y) {
    const uint64_t* found = set(own_.candidate, z, y);
    for (int64_t first = 0; first < plan_.words; ++first) {
      if (found[first] == 0) continue;
      int64_t last = first + 1;
      while (last < plan_.words && found[last] != 0) ++last;
      compare_words(c, z, y, first, last, found);
      first = last;
    }
  }

  void compare_words(int64_t c, int64_t z, int64_t y, int64_t first_word, int64_t last_word,
                     const uint64_t* found) {
    const int64_t zs[3] = {below(z), z, above_by(z, 1)};
    const int64_t ys[3] = {below(y), y, above(y, height_)};
    const int64_t first = first_word * kWord;
    const int64_t last = last_word * kWord < width_ ? last_word * kWord : width_;
    const int64_t row = own_.row;
    const auto sobel_codes = [&](auto&& row_of, Code code, int8_t* gradient) {
      const Code* rows[3][3];
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) rows[i][j] = row_of(zs[i], ys[j]);
      }
      sobel_row(rows, first, last, width_, [code](Code at) { return int8_t(at == code); },
                own_.byte_columns, gradient, row);
    };
    const auto sobel_hard = [&] {
      sobel_codes([&](int64_t zz, int64_t yy) { return hard_plane(zz) + position(yy); },
                  Code(p_.softmax ? c : 1), own_.hard_gradient);
    };
    const int8_t *truth_gradient = own_.truth_gradient, *hard_gradient = own_.hard_gradient;
    const bool hard = p_.hard && pass_ != Pass::count;

    // Outside and inside have the same magnitude, and bytes other than 0 are inside.
    sobel_codes([&](int64_t zz, int64_t yy) { return truth(zz, yy); }, Code(p_.softmax ? c : 0),
                own_.truth_gradient);
    if (p_.both) sobel_hard();
    uint8_t* any = own_.any;
    const auto mark = [&](const int8_t* g, uint8_t keep) {
#pragma omp simd
      for (int64_t x = first; x < last_word * kWord; ++x) {
        any[x] = uint8_t((any[x] & keep) | g[x] | g[row + x] | g[2 * row + x]);
      }
    };
    mark(truth_gradient, 0);
    if (p_.both) mark(hard_gradient, 0xFF);
    static constexpr uint8_t kNone[kWord] = {};
    int64_t count = 0;
    for (int64_t w = first_word; w < last_word; ++w) {
      count += __builtin_popcountll(differing(any + w * kWord, kNone) & found[w]);
    }
    count_ += count;
    if (count == 0 || pass_ == Pass::count) return;

    if (hard && !p_.both) sobel_hard();
    if (!hard) {
      const Acc* rows[3][3];
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
          rows[i][j] = samples(own_.dense, zs[i]) + c * own_.plane + position(ys[j]);
        }
      }
      sobel_row(rows, first, last, width_, [](Acc at) { return at; }, own_.columns,
                own_.soft_gradient, row);
    }
    if (edges_ + count + kLanes > own_.edges) flush(c, z);
    for (int64_t w = first_word; w < last_word; ++w) {
      for_lanes(differing(any + w * kWord, kNone) & found[w], w * kWord,
                [&](int64_t x, uint32_t bits) {
                  if (hard) {
                    list_edges(y, x, bits, truth_gradient + x, hard_gradient + x);
                  } else {
                    list_edges(y, x, bits, truth_gradient + x, own_.soft_gradient + x);
                  }
                });
    }
  }

  // Of the kLanes voxels from x on.
  template <class V>
  void list_edges(int64_t y, int64_t x, uint32_t bits, const int8_t* truth, const V* sample) {
    for (int k = 0; k < 3; ++k) {
      compress(truth + k * own_.row, bits, own_.edge_truth + k * own_.edges + edges_);
      compress(sample + k * own_.row, bits, own_.edge_gradient + k * own_.edges + edges_);
    }
    const int64_t n = __builtin_popcount(bits);
    if (pass_ == Pass::gradient) {
      compress_range(int32_t(x), bits, own_.edge_x + edges_);
      for (int64_t i = 0; i < n; ++i) own_.edge_y[edges_ + i] = int32_t(y);
    }
    edges_ += n;
  }

  // Ends the comparison of the edges that are listed.
  void flush(int64_t c, int64_t z) {
    const int64_t n = edges_;
    edges_ = 0;
    if (n == 0) return;
    Acc *gz = own_.edge_gradient, *gy = gz + own_.edges, *gx = gy + own_.edges;
    const Acc *tz = own_.edge_truth, *ty = tz + own_.edges, *tx = ty + own_.edges;
    if (pass_ == Pass::loss) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; ++i) {
        const Acc mismatch = math::sobel_magnitude(gz[i], gy[i], gx[i]) -
                             math::sobel_magnitude(tz[i], ty[i], tx[i]);
        sum += double(mismatch < 0 ? -mismatch : mismatch);
      }
      sum_ += sum;
      return;
    }
    const Acc scale = shared_.scales[volume_ * plan_.classes + c];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const Acc magnitude = math::sobel_magnitude(gz[i], gy[i], gx[i]);
      const Acc mismatch = magnitude - math::sobel_magnitude(tz[i], ty[i], tx[i]);
      const Acc sign = Acc(mismatch > 0) - Acc(mismatch < 0);
      const Acc slope = scale * sign * math::sobel_slope(magnitude);
      gz[i] *= slope;
      gy[i] *= slope;
      gx[i] *= slope;
    }
    scatter(c, z, n);
  }

  // Adds the gradients of the listed edges' terms to the voxels around. Edges of a row that are
  // within fourteen voxels go together: what they add fills a vector.
  void scatter(int64_t c, int64_t z, int64_t n) {
    const int64_t planes[3] = {below(z), z, above_by(z, 1)};
    for (int64_t i = 0; i < n;) {
      const int64_t y = own_.edge_y[i], x = own_.edge_x[i];
      Acc q[3][kLanes + 2] = {};  // of voxels x - 2 and on
      int64_t last = x;
      for (; i < n && own_.edge_y[i] == y && own_.edge_x[i] < x + kLanes - 2; ++i) {
        last = own_.edge_x[i];
        for (int k = 0; k < 3; ++k) q[k][last - x + 2] = own_.edge_gradient[k * own_.edges + i];
      }
      Acc of_z[kLanes], of_y[kLanes], of_x[kLanes];  // of voxels x - 1 and on
      for (int64_t k = 0; k < kLanes; ++k) {
        of_z[k] = math::smooth(q[0][k], q[0][k + 1], q[0][k + 2]);
        of_y[k] = math::smooth(q[1][k], q[1][k + 1], q[1][k + 2]);
        of_x[k] = q[2][k] - q[2][k + 2];
      }
      for (Acc* of : {of_z, of_y, of_x}) {  // what is beyond a border belongs to it
        if (x == 0) of[1] += of[0], of[0] = 0;
        if (last == width_ - 1) of[last - x + 1] += of[last - x + 2], of[last - x + 2] = 0;
      }
      for (int j = 0; j < 3; ++j) {
        const int64_t at = position(j == 0 ? below(y) : j == 1 ? y : above(y, height_)) + x - 1;
        const Acc smooth = j == 1 ? 2 : 1, differ = Acc(j - 1);
        Acc* out[3];
        for (int k = 0; k < 3; ++k) out[k] = samples(own_.grad, planes[k]) + c * own_.plane + at;
        Acc in_plane[kLanes], through[kLanes];
        for (int64_t k = 0; k < kLanes; ++k) {
          in_plane[k] = differ * of_y[k] + smooth * of_x[k];
          through[k] = smooth * of_z[k];
        }
        for (int64_t k = 0; k < kLanes; ++k) out[0][k] += in_plane[k] - through[k];
        for (int64_t k = 0; k < kLanes; ++k) out[1][k] += 2 * in_plane[k];
        for (int64_t k = 0; k < kLanes; ++k) out[2][k] += in_plane[k] + through[k];
      }
    }
  }

  // --- Finish ---

  void finish(int64_t z) {
    const int32_t *list = band(z), *start = band_row(z);
    const int64_t first = start[rows_begin_ - base_], last = start[rows_end_ - base_];
    const int64_t classes = plan_.classes, plane = own_.plane;
    const Acc inverse_tau = Acc(1 / p_.tau);
    Acc *soft = samples(own_.soft, z), *grad = samples(own_.grad, z);
    Acc *mean = own_.best, *g = own_.noisy;
    for (int64_t i = first; i < last; i += kVoxels) {
      const int64_t n = last - i < kVoxels ? last - i : kVoxels;
      for (int64_t k = 0; k < n; ++k) mean[k] = 0;
      for (int64_t c = 0; c < classes; ++c) {
        Acc* gathered = g + c * kVoxels;
        const Acc* q = soft + c * plane + i;
        for (int64_t k = 0; k < n; ++k) gathered[k] = grad[c * plane + list[i + k]];
        for (int64_t k = 0; k < n; ++k) mean[k] += q[k] * gathered[k];
      }
      for (int64_t c = 0; c < classes; ++c) {
        const Acc* gathered = g + c * kVoxels;
        Acc* q = soft + c * plane + i;
        if (p_.softmax) {
          for (int64_t k = 0; k < n; ++k) q[k] *= inverse_tau * (gathered[k] - mean[k]);
        } else {
          for (int64_t k = 0; k < n; ++k) q[k] *= inverse_tau * gathered[k] * (1 - q[k]);
        }
      }
    }
    with_float(p_.grad_logits.dtype, [&](auto* type) {
      write(z, static_cast<decltype(type)>(p_.grad_logits.data));
    });
  }

  // Rows of zeros with the band's gradients put in.
  template <class T>
  void write(int64_t z, T* out) {
    const Tensor& tensor = p_.grad_logits;
    const int32_t *list = band(z), *start = band_row(z) - base_;
    const Acc* values = samples(own_.soft, z);
    const bool interleaved = tensor.voxel_stride > 1;
    const int64_t classes = plan_.classes, plane = own_.plane, stride = tensor.voxel_stride;
    out += offset(tensor, batch_, channel_, voxel(z));
    if (interleaved && !p_.softmax) {  // the zeros are there
      for (int64_t i = start[rows_begin_]; i < start[rows_end_]; ++i) {
        out[list[i] * stride] = narrow(values[i], out);
      }
      return;
    }
    // Several rows of all channels, or a channel after the other.
    const int64_t together = interleaved ? classes : 1;
    T* line = reinterpret_cast<T*>(own_.out);
    for (int64_t i = 0; i < width_ * together; ++i) line[i] = narrow(Acc(0), out);
    for (int64_t group = 0; group < classes; group += together) {
      Stream stream(out + group * tensor.channel_stride + position(rows_begin_) * stride,
                    grad_bytes(p_) > kStreamed);
      for (int64_t y = rows_begin_; y < rows_end_; ++y) {
        const auto each = [&](auto&& put) {
          for (int64_t c = 0; c < together; ++c) {
            for (int64_t i = start[y]; i < start[y + 1]; ++i) {
              put(line[(list[i] - position(y)) * together + c], values[(group + c) * plane + i]);
            }
          }
        };
        each([&](T& at, Acc value) { at = narrow(value, out); });
        stream.put(line, width_ * together * int64_t(sizeof(T)));
        each([&](T& at, Acc) { at = narrow(Acc(0), out); });
      }
    }
  }

  const Consistency& p_;
  const ConsistencyPlan& plan_;
  const ConsistencyWorkspace<Acc, Code>& shared_;
  const ConsistencyScratch<Acc, Code> own_;
  const int64_t height_, width_, depth_;
  GumbelSampler<Acc, Code> sampler_;
  Pass pass_ = Pass::count;

  // The strip, and the next plane of each stage.
  int64_t last_plane_ = -2;
  int64_t volume_, batch_, channel_, rows_begin_, rows_end_, base_;
  int64_t loaded_, surveyed_, found_, listed_, sampled_, compared_;
  const Code* truth_[kEarlyRing];

  // What is compared at present: where its sums go, the edges that wait.
  int64_t sums_, count_, edges_;
  double sum_;
};

// --- Sharing out ---

// The next plane for a thread, -1 when there is none: each goes through its share in order, then
// through half of what the most loaded has left.
template <class Workspace>
static int64_t take(const Workspace& ws, int threads, int thread) {
  constexpr int64_t kWorthSharing = 8;
  int64_t plane = -1;
#pragma omp critical(egcnn_consistency)
  {
    int64_t &next = ws.next[thread], &end = ws.end[thread];
    if (next == end) {
      int most = thread;
      for (int i = 0; i < threads; ++i) {
        if (ws.end[i] - ws.next[i] > ws.end[most] - ws.next[most]) most = i;
      }
      if (ws.end[most] - ws.next[most] >= kWorthSharing) {
        end = ws.end[most];
        next = ws.end[most] = (ws.next[most] + end) / 2;
      }
    }
    if (next < end) plane = next++;
  }
  return plane;
}

// All over a volume's planes, in order.
template <class Acc, class Code>
static int64_t edges_of(const ConsistencyPlan& plan, const ConsistencyWorkspace<Acc, Code>& ws,
                        int64_t volume, int64_t c, double* mismatch) {
  const int64_t planes = plan.planes / plan.volumes;
  int64_t edges = 0;
  *mismatch = 0;
  for (int64_t i = volume * planes; i < (volume + 1) * planes; ++i) {
    edges += ws.counts[i * plan.classes + c];
    *mismatch += ws.sums[i * plan.classes + c];
  }
  return edges;
}

template <class Acc, class Code>
static void run(const Consistency& p, bool backward) {
  const ConsistencyPlan plan(p);
  const ConsistencyWorkspace<Acc, Code> ws(p, plan);
  const double pairs = double(p.size.batch * p.size.channels);
  const int64_t planes = plan.planes / plan.volumes;
#pragma omp parallel num_threads(p.resources.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    March<Acc, Code> march(p, plan, ws, backward, thread);
    // Where a sample is drawn everywhere there is room for one volume's.
    const int64_t step = p.both ? 1 : plan.volumes;
    for (int64_t volume = 0; volume < plan.volumes; volume += step) {
      const int64_t first = volume * planes, last = (volume + step) * planes;
      const auto visit = [&](Pass pass) {
        share(last - first, threads, thread, &ws.next[thread], &ws.end[thread]);
        ws.next[thread] += first, ws.end[thread] += first;
#pragma omp barrier
        for (int64_t plane; (plane = take(ws, threads, thread)) >= 0;) march.visit(plane, pass);
#pragma omp barrier
      };
      if (p.both) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t plane = first; plane < last; ++plane) march.draw(plane);
      }
      visit(backward ? Pass::count : Pass::loss);
      if (!backward) continue;
#pragma omp single
      for (int64_t i = volume * plan.classes; i < (volume + step) * plan.classes; ++i) {
        double mismatch;
        const int64_t edges = edges_of(plan, ws, i / plan.classes, i % plan.classes, &mismatch);
        const double grad = double(*static_cast<const Acc*>(p.grad));
        ws.scales[i] = edges > 0 ? Acc(grad / (pairs * double(edges))) : Acc(0);
      }
      visit(Pass::gradient);
    }
    stream_fence();
  }
  if (backward) return;
  double total = 0;
  for (int64_t i = 0; i < plan.volumes * plan.classes; ++i) {
    double mismatch;
    const int64_t edges = edges_of(plan, ws, i / plan.classes, i % plan.classes, &mismatch);
    if (edges > 0) total += mismatch / double(edges);
  }
  *static_cast<Acc*>(p.loss) = Acc(total / pairs);
}

static void run(const Consistency& p, bool backward) {
  const bool wide = ConsistencyPlan(p).wide;
  if (p.logits.dtype == DType::f64) {
    wide ? run<double, uint32_t>(p, backward) : run<double, uint8_t>(p, backward);
  } else {
    wide ? run<float, uint32_t>(p, backward) : run<float, uint8_t>(p, backward);
  }
}

void consistency_launch(const Consistency& p) {
  if (!p.size.empty()) return run(p, false);
  if (p.logits.dtype == DType::f64) {
    *static_cast<double*>(p.loss) = 0;
  } else {
    *static_cast<float*>(p.loss) = 0;
  }
}

void consistency_backward_launch(const Consistency& p) {
  if (p.size.empty()) return;
  const int64_t bytes = grad_bytes(p);
  advise_huge(p.grad_logits.data, bytes);
  // Interleaved regions are volumes of their own: only the band is written when their turn comes.
  if (!p.softmax && p.grad_logits.voxel_stride > 1) {
    constexpr int64_t kPiece = 1 << 16;
    static constexpr uint8_t kZeros[1024] = {};
    const int64_t pieces = (bytes + kPiece - 1) / kPiece;
#pragma omp parallel num_threads(p.resources.threads)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < pieces; ++i) {
        const int64_t first = i * kPiece;
        Stream stream(static_cast<uint8_t*>(p.grad_logits.data) + first, bytes > kStreamed);
        for (int64_t n = bytes - first < kPiece ? bytes - first : kPiece; n > 0;) {
          const int64_t some = n < int64_t(sizeof kZeros) ? n : int64_t(sizeof kZeros);
          stream.put(kZeros, some);
          n -= some;
        }
      }
      stream_fence();
    }
  }
  run(p, true);
}

}  // namespace egcnn::EGCNN_ISA
