// The inputs of the channel gate, block after block. The next block is fetched during the matmuls
// of this one: prefetched, or, if the plan says so, staged in scratch.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>

#include "../../ops.h"
#include "blocks.h"
#include "plan.h"
#include "prefetch.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
class BlockInputs {
 public:
  struct Input {
    const Tensor* tensor;
    int64_t channels;
  };

  BlockInputs(const EdgeGatePlan& plan, const Size& size, Acc* scratch,
              std::initializer_list<Input> inputs)
      : plan_(plan), size_(size), rows_(scratch), next_rows_(scratch + plan.sums / 2),
        transit_(scratch + plan.transit) {
    for (const Input& input : inputs) inputs_[count_++] = input;
  }

  // Returns all rows of a job's block, those of e and then those of m, and queues the next block.
  Acc* load(int64_t job, const Block& block, PrefetchQueue& queue) {
    if (staged_job_ == job) {
      std::swap(rows_, next_rows_);
    } else {
      Acc* to = rows_;
      for (int i = 0; i < count_; ++i) {
        const Input& input = inputs_[i];
        load_block(*input.tensor, input.channels, block, queue, transit_, to, plan_.pitch);
        to += input.channels * plan_.pitch;
      }
    }
    queue_next(job, block, queue);
    return rows_;
  }

  // Completes the prefetches that load() queued; call after the matmuls.
  void finish(PrefetchQueue& queue) const {
    if (staged_job_ >= 0) queue.prefetch_rest();
  }

 private:
  const EdgeGatePlan& plan_;
  const Size& size_;
  Input inputs_[3];
  int count_ = 0;
  Acc *rows_, *next_rows_, *transit_;
  int64_t staged_job_ = -1;  // the job whose rows are in next_rows_

  void queue_next(int64_t job, const Block& block, PrefetchQueue& queue) {
    queue = PrefetchQueue();
    // Stage only whole blocks, since the rows of others need padding.
    const bool stage = plan_.stage_next && block.voxel + block.n + plan_.block <= size_.voxels();
    staged_job_ = stage ? job + 1 : -1;
    Acc* to = next_rows_;
    for (int i = 0; i < count_; ++i) {
      const Input& input = inputs_[i];
      PrefetchQueue::Destination destination;
      if (stage) {
        destination = {reinterpret_cast<char*>(to), plan_.pitch * int64_t(sizeof(Acc))};
      }
      add_next(queue, *input.tensor, input.channels, block, destination);
      to += input.channels * plan_.pitch;
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
