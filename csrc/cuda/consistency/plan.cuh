// The launch plan: sizes, alignment and the layout of the workspace.
#pragma once

#include <algorithm>
#include <numeric>

#include "scatter.cuh"

namespace egcnn::cuda {
namespace {

template <class B>
int64_t tile_count(const Consistency& p) {
  return (p.softmax ? 1 : p.size.channels) * p.size.batch * divide_up(p.size.depth, B::kDepth) *
         divide_up(p.size.height, B::kHeight) * divide_up(p.size.width, B::kWidth);
}

struct Plan {
  void (*kernel)(Task);
  Task task;
  int64_t blocks;
  size_t bytes;  // of workspace
};

inline void check_limits(const Consistency& p) {
  if (tile_count<BackwardBox>(p) > INT32_MAX) {
    throw std::runtime_error("egcnn: the volume is too large for consistency");
  }
}

// The unit of the sums of mismatches is 2^-bits: a mismatch is at most sqrt(3), so the sum over 32
// lanes in float, and over a volume in double, does not overflow.
constexpr int kFloatFractionBits = 26;

inline int fraction_bits(bool is_double, int64_t voxels) {
  int bits = is_double ? 61 : kFloatFractionBits;
  for (int64_t n = voxels; is_double && n > 0; n /= 2) --bits;
  return bits;
}

// Blocks go from tile to tile only where they keep soft samples: then there are as many as fill the
// GPU, or have room in 256 MB.
inline int64_t block_count(const Consistency& p, void (*kernel)(Task), int64_t tiles,
                           int64_t soft_bytes) {
  if (p.hard) return tiles;
  const int64_t most = std::min(resident_blocks(p.resources.device, kernel, kThreads), tiles);
  return std::clamp<int64_t>((256 << 20) / soft_bytes, 1, most);
}

// Tiles with much work are close together, and so are empty ones. Steps of about the golden ratio,
// coprime to the number of rows, keep both in flight at all times.
inline unsigned mixing_stride(unsigned rows) {
  unsigned stride = unsigned(0.618 * rows) + 1;
  while (std::gcd(stride, rows) != 1) ++stride;
  return stride;
}

template <class B>
Plan make_plan(const ConsistencyBackward& p, void (*kernel)(Task)) {
  check_limits(p);
  const Size& size = p.size;
  const int64_t element = float_bytes(p.logits.dtype);
  const int64_t accumulator = accumulator_bytes(p.logits.dtype);
  const auto aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  };
  Plan plan{};
  plan.kernel = kernel;
  Task& t = plan.task;
  t.p = p;
  t.classes = p.softmax ? int(size.channels) : 1;
  t.first_code = p.softmax ? 0 : kInside;
  t.voxels = size.voxels();
  t.row_words = divide_up(size.width, 32);
  t.inverse_tau = 1 / p.tau;
  t.target_vectors = p.target.dtype == DType::u8 && p.target.voxel_stride == 1 &&
                     size.width % 16 == 0 && aligned(p.target);
  t.grad_vectors = (p.softmax || p.grad_logits.voxel_stride == 1) && aligned(p.grad_logits) &&
                   size.width * p.grad_logits.voxel_stride * element % 16 == 0;
  const int room = Window::kBytes / int(accumulator) / t.classes;
  t.window_rows = std::clamp(room / Window::pitch(BackwardBox::kWidth), 1, BackwardBox::kCoreRows);
  t.window_width = std::min(BackwardBox::kWidth, room / t.window_rows - Window::pitch(0));
  t.fraction_bits = fraction_bits(p.logits.dtype == DType::f64, t.voxels);

  constexpr bool kForward = std::is_same_v<B, ForwardBox>;
  t.tiles = unsigned(tile_count<B>(p));
  t.tile_rows = unsigned(t.tiles / divide_up(size.width, B::kWidth));
  t.stride = kForward ? 1 : mixing_stride(t.tile_rows);
  const int64_t pairs = size.batch * size.channels, soft = t.classes * accumulator * B::kBytes;
  plan.blocks = block_count(p, kernel, t.tiles, soft);
  char* const start = static_cast<char*>(p.resources.workspace);
  const auto place = [&](auto*& array, int64_t count, int64_t each) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(start + plan.bytes);
    plan.bytes += (size_t(count * each) + 63) / 64 * 64;
  };
  place(t.totals, kForward ? 2 * pairs : 0, sizeof *t.totals);
  place(t.invalid, kForward, sizeof *t.invalid);
  place(t.soft, p.hard ? 0 : plan.blocks, soft);
  return plan;
}

}  // namespace
}  // namespace egcnn::cuda
