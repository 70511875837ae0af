// The consistency loss (Eqs. 7 and 8). Only edge voxels count and only their 3x3x3 neighbourhoods
// are looked at, so noise and softmax are computed in that band alone. A thread marches along z over
// a strip of rows; each plane goes through these stages, each some planes behind the one before:
//   load       the target as codes
//   find       candidates: voxels whose 3x3x3 neighbourhood is not constant, all edges among them
//   sample     the Gumbel-softmax sample in the band, which is candidates and voxels beside them
//   compare    at each edge: | ‖∇p‖ - ‖∇y‖ |, summed, or its gradient scattered to the neighbourhood
//   finish     from the gradient of the sample to that of the logits
// Backward knows from forward how many edges there are, which scales its gradients, and fills the
// output with zeros between that work. Support "both" first draws the hard sample everywhere and
// has candidates of it, too.
//
// Each voxel and each sum is computed in the same order however the planes are shared out.
#include "edge_terms.h"
#include "gumbel_sample.h"
#include "label_changes.h"
#include "pages.h"
#include "stream.h"
#include "voxel_sets.h"

#include <omp.h>

#include <algorithm>

#include <initializer_list>

namespace egcnn::EGCNN_ISA {

static int64_t grad_bytes(const ConsistencyBackward& p) {
  return p.size.batch * p.size.channels * p.size.voxels() * float_bytes(p.grad_logits.dtype);
}

// --- The march ---

template <class Acc, class Code>
class March {
 public:
  March(const ConsistencyBackward& p, const ConsistencyPlan& plan,
        const ConsistencyWorkspace<Acc, Code>& shared, bool backward, int thread)
      : p_(p), plan_(plan), shared_(shared), own_(shared.scratch(p, plan, backward, thread)),
        backward_(backward), reach_(backward ? 1 : 0), hard_(p.hard || p.support_both),
        height_(p.size.height), width_(p.size.width), depth_(p.size.depth),
        sampler_{p, GumbelKeys(*p.seed), own_.noise, own_.noisy, own_.best, own_.sum, own_.voxel,
                 own_.code},
        terms_(own_.edge_group, own_.edge_row, own_.edge_sample, own_.edge_truth) {}

  // Draws the hard sample of one of all strips' planes everywhere.
  void draw(int64_t plane) {
    enter(plane);
    Group* group = own_.band;
    const int64_t n = (rows_end_ - rows_begin_) * width_;
    for (int64_t i = 0; i < n; i += kGroup) {
      *group++ = {int32_t(i), int32_t(i), uint32_t(first_bits(n - i)) & kWholeGroup};
    }
    *group = {int32_t(n), int32_t(n), 0};
    const int64_t first = (z_of(plane) * height_ + rows_begin_) * width_;
    sampler_.draw(batch_, channel_, plan_.classes, first, own_.band, group, shared_.drawn + first,
                  nullptr, 0);
  }

  // One of all strips' planes; those after the last one come cheaper than others.
  void visit(int64_t plane) {
    const int64_t z = z_of(plane);
    if (z == 0 || plane != last_plane_ + 1) {
      enter(plane);
      begin(z - reach_);
    }
    last_plane_ = plane;
    if (backward_ && !cleared_before(p_)) fill_ = zeros(z);
    sums_ = plane * plan_.classes;
    for (; compared_ <= above_by(z, reach_); ++compared_) {
      need_sample(above_by(compared_, 1));
      compare(compared_);
    }
    if (!backward_) return;
    fill_.rest();
    finish(z);
  }

  // Sets the gradient of one of all strips' planes to 0.
  void clear(int64_t plane) {
    enter(plane);
    zeros(z_of(plane)).rest();
  }

  // Whether that is to be done ahead of everything: a volume's zeros are written between those of
  // others, since regions lie interleaved.
  static bool cleared_before(const ConsistencyBackward& p) {
    return !p.softmax && p.grad_logits.voxel_stride > 1;
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
    sampled_ = from(z - 1);
    found_ = from(z - 2);
    surveyed_ = loaded_ = from(z - 3);
  }

  const Code* truth(int64_t z, int64_t y) const { return truth_[z % kEarlyRing] + position(y); }
  Code* hard_plane(int64_t z) const {
    return p_.support_both ? shared_.drawn + voxel(z) : own_.hard + z % kRing * own_.plane;
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
    load_codes(target, start, n, p_.softmax, plan_.classes, codes);
  }

  // --- Find ---

  // Adds where labels change, row by row of a strip and the rows around.
  void survey(int64_t z, const Code* at, const Code* behind) {
    const int64_t rows = high(kReach) - base_;
    uint64_t *across = set(own_.across, z, base_), *along = set(own_.along, z, base_);
    for (int64_t y = 0; y < rows; ++y, across += plan_.words, along += plan_.words) {
      fill_.some();
      const Code* row = at + y * width_;
      add_changes(row, y + 1 < rows ? row + width_ : row, behind + y * width_, width_,
                  y > 0 ? across - plan_.words : nullptr, across,
                  y + 1 < rows ? across + plan_.words : nullptr, along);
    }
  }

  void find(int64_t z) {
    const int64_t n = (high(kReach) - base_) * plan_.words;
    uint64_t* __restrict found = set(own_.candidate, z, base_);
    const uint64_t *before = set(own_.across, below(z), base_), *at = set(own_.across, z, base_);
    const uint64_t* after = set(own_.across, above_by(z, 1), base_);
    const uint64_t* along_before = set(own_.along, below(z), base_);
    const uint64_t* along = set(own_.along, z, base_);
    for (int64_t i = 0; i < n; ++i) {
      found[i] = before[i] | at[i] | after[i] | along[i] | along_before[i];
    }
    for (int64_t y = base_; y < high(kReach); ++y, found += plan_.words) {
      uint64_t any = 0;
      for (int64_t w = 0; w < plan_.words; ++w) any |= found[w];
      has_candidates(z, y) = any != 0;
      if (any != 0) find_present(z, y);
    }
  }

  // The classes at a row's candidates. Any class near a candidate is that of a candidate near it.
  void find_present(int64_t z, int64_t y) {
    uint64_t* classes = present(z, y);
    for (int64_t i = 0; i < plan_.sets; ++i) classes[i] = 0;
    if (plan_.classes == 1) {
      classes[0] = 1;
      return;
    }
    const auto add = [&](int64_t code) {
      if (code < plan_.classes) classes[code / 64] |= uint64_t(1) << code % 64;
    };
    const uint64_t* found = set(own_.candidate, z, y);
    const Code *codes = truth(z, y), *hard = hard_plane(z) + position(y);
    for (int64_t w = 0; w < plan_.words; ++w) {
      for (uint64_t bits = found[w]; bits != 0; bits &= bits - 1) {
        const int64_t x = w * kWord + lowest_bit(bits);
        add(codes[x]);
        if (p_.support_both) add(hard[x]);
      }
    }
  }

  void need_candidates(int64_t z) {
    for (; found_ <= z; ++found_) {
      for (; surveyed_ <= above_by(found_, 1); ++surveyed_) {
        for (; loaded_ <= above_by(surveyed_, 1); ++loaded_) load(loaded_);
        const int64_t next = above_by(surveyed_, 1);
        for (uint64_t* sets : {own_.across, own_.along}) {
          std::fill_n(set(sets, surveyed_, base_), (high(kReach) - base_) * plan_.words, 0);
        }
        survey(surveyed_, truth_[surveyed_ % kEarlyRing], truth_[next % kEarlyRing]);
        if (p_.support_both) survey(surveyed_, hard_plane(surveyed_), hard_plane(next));
      }
      find(found_);
    }
  }

  // Where the gradient of a strip's plane is to be 0 before the band's is put in.
  ZeroFill zeros(int64_t z) const {
    const Tensor& out = p_.grad_logits;
    const int64_t element = float_bytes(out.dtype), rows = rows_end_ - rows_begin_;
    const bool interleaved = out.voxel_stride > 1;
    if (interleaved && channel_ > 0) return ZeroFill();  // done with the first
    const int64_t first = (z * height_ + rows_begin_) * width_;
    return ZeroFill(static_cast<uint8_t*>(out.data) +
                        offset(out, batch_, channel_, first) * element,
                    rows * width_ * out.voxel_stride * element, interleaved ? 1 : plan_.classes,
                    out.channel_stride * element, rows, grad_bytes(p_) > kStreamed);
  }

  // --- Sample ---

  void need_sample(int64_t z) {
    for (; sampled_ <= z; ++sampled_) {
      need_candidates(above_by(sampled_, 1));
      list_band(sampled_);
      sample(sampled_);
    }
  }

  // Where the groups of row y's band start.
  int32_t* band_row(int64_t z) const { return own_.band_row + z % kRing * (own_.rows + 1); }
  Group* band(int64_t z) const { return own_.band + z % kRing * own_.groups; }
  const Group* band(int64_t z, int64_t y) const { return band(z) + band_row(z)[y - base_]; }

  void list_band(int64_t z) {
    const int64_t words = plan_.words, planes[3] = {below(z), z, above_by(z, 1)};
    Group *const list = band(z), *group = list;
    int32_t *start = band_row(z), n = 0;
    uint64_t* around = own_.around;
    uint8_t* any = own_.any_of_three - base_;
    for (int64_t y = low(3); y < high(3); ++y) {
      any[y] = 0;
      for (const int64_t plane : planes) any[y] |= has_candidates(plane, y);
    }
    for (int64_t y = low(2); y < high(2); ++y) {
      start[y - base_] = int32_t(group - list);
      if ((any[below(y)] | any[y] | any[above(y, height_)]) == 0) continue;
      const uint64_t* sets[9];
      int count = 0;
      for (const int64_t plane : planes) {
        for (const int64_t row : {below(y), y, above(y, height_)}) {
          if (has_candidates(plane, row)) sets[count++] = set(own_.candidate, plane, row);
        }
      }
      for (int64_t w = 0; w < words; ++w) {
        around[w] = 0;
        for (int i = 0; i < count; ++i) around[w] |= sets[i][w];
      }
      for (int64_t w = 0; w < words; ++w) {
        for_groups(widened(around, w, words, width_), w * kWord, [&](int64_t x, uint32_t bits) {
          const int32_t first = int32_t(position(y) + x);
          *group++ = {first, n, bits};
          n += __builtin_popcount(bits);
        });
      }
    }
    start[high(2) - base_] = int32_t(group - list);
    *group = {0, n, 0};
  }

  void sample(int64_t z) {
    const bool soft = backward_ || !p_.hard;
    if (p_.support_both && !soft) return;
    const Group *group = band(z), *end = band(z, high(2));
    sampler_.draw(batch_, channel_, plan_.classes, voxel(z), group, end,
                  p_.support_both ? nullptr : hard_plane(z), soft ? samples(own_.soft, z) : nullptr,
                  own_.plane);
    // From here on groups are written whole: what is beyond a row's end comes right with the next.
    for (int64_t c = 0; c < plan_.classes; ++c) {
      if (!p_.hard) {
        const Acc* listed = samples(own_.soft, z) + c * own_.plane;
        Acc* dense = samples(own_.dense, z) + c * own_.plane;
        for (const Group* g = group; g < end; ++g) {
          expand(listed + g->index, g->bits, dense + g->first);
        }
      }
      if (backward_) {
        Acc* grad = samples(own_.grad, z) + c * own_.plane;
        for (const Group* g = group; g < end; ++g) {
          for (int64_t k = 0; k < kGroup; ++k) grad[g->first + k] = 0;
        }
      }
    }
  }

  // --- Compare ---

  void compare(int64_t z) {
    list_rows(z);
    for (int64_t c = 0; c < plan_.classes; ++c) {
      const int32_t *begin = own_.class_rows + c * own_.rows, *end = begin + own_.class_count[c];
      sum_ = 0, count_ = 0;
      int64_t next = 0;
      for (const int32_t* y = begin; y < end; ++y) {
        next = next > below(*y) ? next : below(*y);
        for (; next <= above(*y, height_); ++next) put_together(c, z, next);
      }
      for (const int32_t* y = begin; y < end; ++y) {
        const uint64_t* candidates = set(own_.candidate, z, *y);
        for (int64_t w = 0; w < plan_.words; ++w) {
          if (candidates[w] != 0) compare_word(c, z, *y, w, candidates[w]);
        }
      }
      flush(c, z);
      if (backward_) continue;
      shared_.sums[sums_ + c] = sum_;
      shared_.counts[sums_ + c] = count_;
    }
  }

  // Lists for each class the rows that may have edges of it: it is at a candidate around.
  void list_rows(int64_t z) {
    for (int64_t c = 0; c < plan_.classes; ++c) own_.class_count[c] = 0;
    for (int64_t y = low(reach_); y < high(reach_); ++y) {
      if (!has_candidates(z, y)) continue;
      for (int64_t i = 0; i < plan_.sets; ++i) {
        uint64_t bits = 0;
        for (int64_t zz = below(z); zz <= above_by(z, 1); ++zz) {
          for (int64_t yy = below(y); yy <= above(y, height_); ++yy) {
            if (has_candidates(zz, yy)) bits |= present(zz, yy)[i];
          }
        }
        for (; bits != 0; bits &= bits - 1) {
          const int64_t c = i * 64 + lowest_bit(bits);
          own_.class_rows[c * own_.rows + own_.class_count[c]++] = int32_t(y);
        }
      }
    }
  }

  int64_t row(int64_t y) const { return (y - base_) * own_.row + kWord; }

  void put_together(int64_t c, int64_t z, int64_t y) {
    const auto put = [&](auto&& of, auto&& from, auto* smooth, auto* differ) {
      put_together_z(of(below(z)), of(z), of(above_by(z, 1)), width_, from,
                     smooth + row(y), differ + row(y));
    };
    const auto codes = [&](auto&& of, Code code, int8_t* smooth, int8_t* differ) {
      put(of, [code](Code at) { return int8_t(at == code); }, smooth, differ);
    };
    // Outside and inside have the same magnitude, and bytes other than 0 are inside.
    codes([&](int64_t zz) { return truth(zz, y); }, Code(p_.softmax ? c : 0), own_.truth_smooth,
          own_.truth_differ);
    if (hard_) {
      codes([&](int64_t zz) { return hard_plane(zz) + position(y); }, Code(p_.softmax ? c : 1),
            own_.hard_smooth, own_.hard_differ);
    }
    if (!p_.hard) {
      put([&](int64_t zz) { return samples(own_.dense, zz) + c * own_.plane + position(y); },
          [](Acc at) { return at; }, own_.soft_smooth, own_.soft_differ);
    }
  }

  // Lists the edges among those of a word's voxels that are candidates.
  void compare_word(int64_t c, int64_t z, int64_t y, int64_t word, uint64_t candidates) {
    const int64_t x = word * kWord;
    const int64_t at = row(y) + x, before = row(below(y)) + x, after = row(above(y, height_)) + x;
    static constexpr uint8_t kNone[kWord] = {};
    uint8_t any[kWord];
    OfWord<int8_t> truth, hard;
    sobel_word(own_.truth_smooth, own_.truth_differ, before, at, after, truth);
    for (int64_t i = 0; i < kWord; ++i) {
      any[i] = uint8_t(truth[0][i] | truth[1][i] | truth[2][i]);
    }
    if (hard_) sobel_word(own_.hard_smooth, own_.hard_differ, before, at, after, hard);
    if (p_.support_both) {
      for (int64_t i = 0; i < kWord; ++i) any[i] |= uint8_t(hard[0][i] | hard[1][i] | hard[2][i]);
    }
    const uint64_t edges = candidates & differing(any, kNone);
    if (edges == 0) return;
    count_ += __builtin_popcountll(edges);
    if (!terms_.room_for_word()) flush(c, z);
    if (p_.hard) {
      terms_.add(y, x, edges, truth, hard);
    } else {
      OfWord<Acc> soft;
      sobel_word(own_.soft_smooth, own_.soft_differ, before, at, after, soft);
      terms_.add(y, x, edges, truth, soft);
    }
  }

  // Ends the comparison of the edges that are listed.
  void flush(int64_t c, int64_t z) {
    if (!backward_) {
      sum_ += terms_.sum();
    } else {
      terms_.differentiate(shared_.scales[volume_ * plan_.classes + c]);
      const int64_t planes[3] = {below(z), z, above_by(z, 1)};
      terms_.scatter(width_, [&](int i, int j, int64_t y) {
        const int64_t row = j == 0 ? below(y) : j == 1 ? y : above(y, height_);
        return samples(own_.grad, planes[i]) + c * own_.plane + position(row);
      });
    }
    terms_.clear();
  }

  // --- Finish ---

  void finish(int64_t z) {
    const int64_t classes = plan_.classes, plane = own_.plane;
    const Acc inverse_tau = Acc(1 / p_.tau);
    Acc *soft = samples(own_.soft, z), *grad = samples(own_.grad, z);
    Acc *mean = own_.best, *listed = own_.noisy;
    const auto differentiate = [&](const Group* group, const Group* next, int64_t n) {
      const int32_t i = group->index;
      for (int64_t k = 0; k < n; ++k) mean[k] = 0;
      for (int64_t c = 0; c < classes; ++c) {
        Acc* gathered = listed + c * kVoxels;
        const Acc* q = soft + c * plane + i;
        for (const Group* g = group; g < next; ++g) {
          compress(grad + c * plane + g->first, g->bits, gathered + g->index - i);
        }
        for (int64_t k = 0; k < n; ++k) mean[k] += q[k] * gathered[k];
      }
      for (int64_t c = 0; c < classes; ++c) {
        const Acc* gathered = listed + c * kVoxels;
        Acc* q = soft + c * plane + i;
        if (p_.softmax) {
          for (int64_t k = 0; k < n; ++k) q[k] *= inverse_tau * (gathered[k] - mean[k]);
        } else {
          for (int64_t k = 0; k < n; ++k) q[k] *= inverse_tau * gathered[k] * (1 - q[k]);
        }
      }
    };
    for_some(band(z, rows_begin_), band(z, rows_end_), differentiate);
    // Zeros are everywhere by now.
    with_float(p_.grad_logits.dtype, [&](auto* type) {
      const Tensor& out = p_.grad_logits;
      for (int64_t c = 0; c < classes; ++c) {
        auto* at = static_cast<decltype(type)>(out.data) +
                   offset(out, batch_, channel_ + c, voxel(z));
        const Acc* values = soft + c * plane;
        for (const Group *g = band(z, rows_begin_), *end = band(z, rows_end_); g < end; ++g) {
          if (out.voxel_stride == 1) {
            place(values + g->index, g->bits, at + g->first);
          } else {
            const Acc* value = values + g->index;
            for (uint32_t bits = g->bits; bits != 0; bits &= bits - 1) {
              at[(g->first + lowest_bit(bits)) * out.voxel_stride] = narrow(*value++, type);
            }
          }
        }
      }
    });
  }

  const ConsistencyBackward& p_;
  const ConsistencyPlan& plan_;
  const ConsistencyWorkspace<Acc, Code>& shared_;
  const ConsistencyScratch<Acc, Code> own_;
  const bool backward_;
  const int64_t reach_;  // rows and planes around, whose edges count here, too
  const bool hard_;      // whether the hard sample's gradients are looked at
  const int64_t height_, width_, depth_;
  GumbelSampler<Acc, Code> sampler_;
  EdgeTerms<Acc> terms_;

  // The strip, and the next plane of each stage.
  int64_t last_plane_ = -2;
  int64_t volume_, batch_, channel_, rows_begin_, rows_end_, base_;
  int64_t loaded_, surveyed_, found_, sampled_, compared_;
  ZeroFill fill_;
  const Code* truth_[kEarlyRing];

  // What is compared at present, and where its sums go.
  int64_t sums_, count_;
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

// The loss and the numbers of edges, from sums over planes, in order.
template <class Acc, class Code>
static void add_up(const ConsistencyBackward& p, const ConsistencyPlan& plan,
                   const ConsistencyWorkspace<Acc, Code>& ws) {
  const int64_t pairs = plan.volumes * plan.classes, planes = plan.planes / plan.volumes;
  double total = 0;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t first = i / plan.classes * planes;
    int64_t edges = 0;
    double mismatch = 0;
    for (int64_t plane = first; plane < first + planes; ++plane) {
      edges += ws.counts[plane * plan.classes + i % plan.classes];
      mismatch += ws.sums[plane * plan.classes + i % plan.classes];
    }
    p.edges[i] = edges;
    if (edges > 0) total += mismatch / double(edges);
  }
  *static_cast<Acc*>(p.loss) = Acc(total / double(pairs));
}

template <class Acc, class Code>
static void run(const ConsistencyBackward& p, bool backward) {
  const ConsistencyPlan plan(p);
  const ConsistencyWorkspace<Acc, Code> ws(p, plan, backward);
  const int64_t pairs = plan.volumes * plan.classes, planes = plan.planes / plan.volumes;
  if (backward) {
    const double grad = double(*static_cast<const Acc*>(p.grad));
    for (int64_t i = 0; i < pairs; ++i) {
      ws.scales[i] = p.edges[i] > 0 ? Acc(grad / (double(pairs) * double(p.edges[i]))) : Acc(0);
    }
  }
#pragma omp parallel num_threads(p.resources.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    March<Acc, Code> march(p, plan, ws, backward, thread);
    if (backward && march.cleared_before(p)) {
#pragma omp for schedule(static)
      for (int64_t plane = 0; plane < plan.planes; ++plane) march.clear(plane);
    }
    for (int64_t volume = 0; volume < plan.volumes; volume += plan.together) {
      const int64_t first = volume * planes, last = (volume + plan.together) * planes;
      if (p.support_both) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t plane = first; plane < last; ++plane) march.draw(plane);
      }
      share(last - first, threads, thread, &ws.next[thread], &ws.end[thread]);
      ws.next[thread] += first, ws.end[thread] += first;
      stream_fence();
#pragma omp barrier
      for (int64_t plane; (plane = take(ws, threads, thread)) >= 0;) march.visit(plane);
      stream_fence();
#pragma omp barrier
    }
  }
  if (!backward) add_up(p, plan, ws);
}

static void run(const ConsistencyBackward& p, bool backward) {
  const bool wide = ConsistencyPlan(p).wide;
  if (p.logits.dtype == DType::f64) {
    wide ? run<double, uint32_t>(p, backward) : run<double, uint8_t>(p, backward);
  } else {
    wide ? run<float, uint32_t>(p, backward) : run<float, uint8_t>(p, backward);
  }
}

size_t consistency_workspace(const Consistency& p) {
  return p.logits.dtype == DType::f64 ? consistency_bytes<double>(p, false)
                                      : consistency_bytes<float>(p, false);
}

size_t consistency_backward_workspace(const ConsistencyBackward& p) {
  return p.logits.dtype == DType::f64 ? consistency_bytes<double>(p, true)
                                      : consistency_bytes<float>(p, true);
}

void consistency_launch(const Consistency& p) {
  if (!p.size.empty()) return run({p, nullptr, {}}, false);
  std::fill_n(p.edges, p.size.batch * p.size.channels, 0);
  if (p.logits.dtype == DType::f64) {
    *static_cast<double*>(p.loss) = 0;
  } else {
    *static_cast<float*>(p.loss) = 0;
  }
}

void consistency_backward_launch(const ConsistencyBackward& p) {
  if (p.size.empty()) return;
  advise_huge(p.grad_logits.data, grad_bytes(p));
  run(p, true);
}

}  // namespace egcnn::EGCNN_ISA
