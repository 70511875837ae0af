// What the host decides before a launch: sizes, alignment and the layout of the workspace.
#pragma once

#include <algorithm>

#include "consistency_scatter.cuh"

namespace egcnn::cuda {
namespace {

template <class B>
int64_t tile_count(const Consistency& p) {
  return (p.softmax ? 1 : p.size.channels) * p.size.batch *
         divide_up<int64_t>(p.size.depth, B::kDepth) *
         divide_up<int64_t>(p.size.height, B::kHeight) *
         divide_up<int64_t>(p.size.width, B::kWidth);
}

struct Plan {
  Task task;
  int64_t blocks;  // most blocks per launch: each keeps its soft samples in the workspace
  size_t bytes;    // of workspace
};

inline void check_limits(const Consistency& p) {
  if (p.softmax && p.size.channels > kNoClass) {
    throw std::runtime_error("egcnn: consistency on CUDA takes at most 255 classes");
  }
  if (tile_count<BackwardBox>(p) > INT32_MAX) {
    throw std::runtime_error("egcnn: the volume is too large for consistency");
  }
}

// 2^-bits is the unit of the sums of mismatches: each is at most sqrt(3), so that 32 lanes' floats
// add up without overflow, and in double those of a whole volume.
constexpr int kFloatFractionBits = 26;

inline int fraction_bits(bool is_double, int64_t voxels) {
  int bits = is_double ? 61 : kFloatFractionBits;
  for (int64_t n = voxels; is_double && n > 0; n /= 2) --bits;
  return bits;
}

// Soft samples have room for as many blocks as fill the GPU, or as 256 MB hold.
template <class B>
int64_t most_blocks(const Consistency& p, int64_t soft_bytes) {
  if (p.hard) return tile_count<B>(p);
  return std::clamp<int64_t>((256 << 20) / soft_bytes, 1, 4 * multiprocessors(p.resources.device));
}

inline Plan make_plan(const ConsistencyBackward& p, bool forward) {
  check_limits(p);
  const Size& size = p.size;
  const bool is_double = p.logits.dtype == DType::f64;
  const int64_t element = is_double ? 8 : p.logits.dtype == DType::f32 ? 4 : 2;
  const int64_t accumulate = is_double ? 8 : 4;
  const auto aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  };
  Plan plan{};
  Task& t = plan.task;
  t.p = p;
  t.forward = forward;
  t.classes = p.softmax ? int(size.channels) : 1;
  t.first_code = p.softmax ? 0 : kInside;
  t.voxels = size.voxels();
  t.row_words = divide_up<int64_t>(size.width, 32);
  t.inverse_tau = 1 / p.tau;
  t.target_vectors = p.target.dtype == DType::u8 && p.target.voxel_stride == 1 &&
                     size.width % 16 == 0 && aligned(p.target);
  t.grad_vectors = (p.softmax || p.grad_logits.voxel_stride == 1) && aligned(p.grad_logits) &&
                   size.width * p.grad_logits.voxel_stride * element % 16 == 0;
  const int room = Window::kBytes / int(accumulate) / t.classes;
  t.window_rows = std::clamp(room / Window::pitch(BackwardBox::kWidth), 1, BackwardBox::kCoreRows);
  t.window_width = std::min(BackwardBox::kWidth, room / t.window_rows - Window::pitch(0));
  t.fraction_bits = fraction_bits(is_double, t.voxels);

  const int64_t box = forward ? ForwardBox::kBytes : BackwardBox::kBytes;
  const int64_t soft = t.classes * accumulate * box;
  plan.blocks = forward ? most_blocks<ForwardBox>(p, soft) : most_blocks<BackwardBox>(p, soft);
  const int64_t pairs = size.batch * size.channels, volumes = pairs / t.classes;
  char* const start = static_cast<char*>(p.resources.workspace);
  const auto place = [&](auto*& array, int64_t count, int64_t each) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(start + plan.bytes);
    plan.bytes += (size_t(count * each) + 63) / 64 * 64;
  };
  place(t.totals, forward ? 2 * pairs : 0, sizeof *t.totals);
  place(t.invalid, forward, sizeof *t.invalid);
  place(t.scales, forward ? 0 : pairs, accumulate);
  place(t.candidates, forward ? 0 : volumes * size.depth * size.height * t.row_words,
        sizeof *t.candidates);
  place(t.soft, p.hard ? 0 : plan.blocks, soft);
  return plan;
}

// Launches one block per tile, at most `most` at a time.
template <class... Parameters, class... Arguments>
void launch_tiles(const char* name, const Plan& plan, int64_t tiles, int64_t most,
                  void (*kernel)(Task, unsigned, Parameters...), Arguments... arguments) {
  for (int64_t first = 0; first < tiles; first += most) {
    launch(name, plan.task.p.resources, std::min(most, tiles - first), kThreads, 0, kernel,
           plan.task, unsigned(first), arguments...);
  }
}

}  // namespace
}  // namespace egcnn::cuda
