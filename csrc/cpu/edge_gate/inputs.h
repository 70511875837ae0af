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
#include "upsampled.h"

namespace egcnn::EGCNN_ISA {

template <class Acc>
class BlockInputs {
 public:
  struct Input {
    const Tensor* tensor;
    int64_t channels;
    Upsampled<Acc>* upsampled = nullptr;  // instead of the tensor
  };

  BlockInputs(const EdgeGatePlan& plan, Acc* scratch, std::initializer_list<Input> inputs)
      : plan_(plan), rows_(scratch), next_rows_(scratch + plan.sums / 2),
        transit_(scratch + plan.transit) {
    for (const Input& input : inputs) inputs_[count_++] = input;
  }

  // Returns all rows of a block, those of e and then those of m, and queues the next block.
  Acc* load(const Block& block, PrefetchQueue& queue) {
    const bool staged = staged_ && staged_batch_ == block.batch && staged_voxel_ == block.voxel;
    if (staged) std::swap(rows_, next_rows_);
    Acc* to = rows_;
    for (int i = 0; i < count_; ++i) {
      const Input& input = inputs_[i];
      if (input.upsampled) {
        input.upsampled->load(block, to, plan_.pitch);
      } else if (!staged) {
        load_block(*input.tensor, input.channels, block, queue, transit_, to, plan_.pitch);
      }
      to += input.channels * plan_.pitch;
    }
    queue_next(block, queue);
    return rows_;
  }

  // Completes the prefetches that load() queued; call after the matmuls.
  void finish(PrefetchQueue& queue) const {
    if (staged_) queue.prefetch_rest();
  }

 private:
  const EdgeGatePlan& plan_;
  Input inputs_[3];
  int count_ = 0;
  Acc *rows_, *next_rows_, *transit_;
  // Whether next_rows_ holds the rows of a block, and of which.
  bool staged_ = false;
  int64_t staged_batch_ = 0, staged_voxel_ = 0;

  void queue_next(const Block& block, PrefetchQueue& queue) {
    queue = PrefetchQueue();
    staged_batch_ = block.batch, staged_voxel_ = block.voxel + block.n;
    // Stage only whole blocks, since the rows of others need padding.
    staged_ = plan_.stage_next && staged_voxel_ + plan_.block <= block.end;
    Acc* to = next_rows_;
    for (int i = 0; i < count_; ++i) {
      const Input& input = inputs_[i];
      PrefetchQueue::Destination destination;
      if (staged_) {
        destination = {reinterpret_cast<char*>(to), plan_.pitch * int64_t(sizeof(Acc))};
      }
      if (!input.upsampled) add_next(queue, *input.tensor, input.channels, block, destination);
      to += input.channels * plan_.pitch;
    }
  }
};

}  // namespace egcnn::EGCNN_ISA
