// Sums over the voxels of a region, of which Eqs. 4 to 6 are made, and their gradient.
#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../math/common.h"
#include "../../ops.h"
#include "../simd/elements.h"
#include "../simd/pages.h"
#include "../simd/stream.h"
#include "run.h"

namespace egcnn::EGCNN_ISA {

// How a sample is cut: blocks, whose sums are kept in double and added up in order, so that the
// result does not depend on the number of threads; and runs of a block, whose channels a thread
// holds at a time.
struct RegionSumsPlan {
  static constexpr int64_t kBlock = 1 << 14;

  int64_t batch, channels, voxels, blocks, run, sums, element;

  explicit RegionSumsPlan(const RegionSums& p)
      : batch(p.size.batch), channels(p.size.channels), voxels(p.size.voxels()),
        blocks(divide_up(voxels, kBlock)), sums(p.sum_count()),
        element(accumulator_bytes(p.logits.dtype)) {
    run = run_voxels(channels);
  }

  size_t scratch_bytes() const { return run_bytes(channels, run, element); }
  size_t partial_bytes() const { return batch * blocks * channels * sums * sizeof(double); }
};

// Calls body(batch, job, first, last, scratch) for the voxels [first, last) of each block; `job`
// counts the blocks of all samples.
template <class Body>
static inline void for_blocks(const RegionSumsPlan& plan, const Resources& resources, char* memory,
                              Body&& body) {
  const int64_t jobs = plan.batch * plan.blocks;
#pragma omp parallel num_threads(resources.threads) if (jobs > 1)
  {
    char* scratch = align_up<char>(memory + omp_get_thread_num() * plan.scratch_bytes());
#pragma omp for schedule(dynamic, 1)
    for (int64_t job = 0; job < jobs; ++job) {
      const int64_t first = job % plan.blocks * plan.kBlock;
      body(job / plan.blocks, job, first, std::min(first + plan.kBlock, plan.voxels), scratch);
    }
    stream_fence();
  }
}

template <class Acc>
static void region_sums(const RegionSums& p) {
  const RegionSumsPlan plan(p);
  double* const partials = static_cast<double*>(p.resources.workspace);
  for_blocks(plan, p.resources, static_cast<char*>(p.resources.workspace) + plan.partial_bytes(),
             [&](int64_t batch, int64_t job, int64_t first, int64_t last, char* scratch) {
               double* const totals = partials + job * plan.channels * plan.sums;
               std::fill_n(totals, plan.channels * plan.sums, 0.0);
               Run<Acc> run(p, plan.run, scratch);
               for (int64_t voxel = first; voxel < last; voxel += plan.run) {
                 run.read(batch, voxel, std::min(plan.run, last - voxel));
                 for (int64_t c = 0; c < plan.channels; ++c) {
                   run.add_sums(c, totals + c * plan.sums);
                 }
               }
             });
  Acc* const out = static_cast<Acc*>(p.sums);
  const int64_t columns = plan.channels * plan.sums;
  for (int64_t batch = 0; batch < plan.batch; ++batch) {
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0;
      for (int64_t block = 0; block < plan.blocks; ++block) {
        sum += partials[(batch * plan.blocks + block) * columns + column];
      }
      out[batch * columns + column] = Acc(sum);
    }
  }
}

size_t region_sums_workspace(const RegionSums& p) {
  const RegionSumsPlan plan(p);
  return plan.partial_bytes() + p.resources.threads * plan.scratch_bytes();
}

void region_sums_launch(const RegionSums& p) {
  with_accumulator(p.logits.dtype, [&](auto acc) { region_sums<decltype(acc)>(p); });
}

template <class Acc>
static void region_sums_backward(const RegionSumsBackward& p) {
  const RegionSumsPlan plan(p);
  const Acc* const grads = static_cast<const Acc*>(p.grad);
  const bool large =
      plan.batch * plan.channels * plan.voxels * float_bytes(p.logits.dtype) > kStreamed;
  for_blocks(plan, p.resources, static_cast<char*>(p.resources.workspace),
             [&](int64_t batch, int64_t, int64_t first, int64_t last, char* scratch) {
               Run<Acc> run(p, plan.run, scratch);
               for (int64_t voxel = first; voxel < last; voxel += plan.run) {
                 run.read(batch, voxel, std::min(plan.run, last - voxel));
                 run.differentiate(grads + batch * plan.channels * plan.sums);
                 run.write(p.grad_logits, batch, voxel, large);
               }
             });
}

size_t region_sums_backward_workspace(const RegionSumsBackward& p) {
  return p.size.empty() ? 0 : p.resources.threads * RegionSumsPlan(p).scratch_bytes();
}

void region_sums_backward_launch(const RegionSumsBackward& p) {
  if (p.size.empty()) return;
  const int64_t bytes = float_bytes(p.logits.dtype) * p.size.batch * p.size.channels;
  advise_huge(p.grad_logits.data, bytes * p.size.voxels());
  with_accumulator(p.logits.dtype, [&](auto acc) { region_sums_backward<decltype(acc)>(p); });
}

}  // namespace egcnn::EGCNN_ISA
