// How CUDA threads run on a CPU: each is a fiber, the threads of a block take turns at barriers and
// warp operations, and blocks run one after the other. Every operation that waits is passed the
// source location of its call, so that an error message can name a thread that never arrives.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vectors.h"

namespace cuda_on_cpu {

// The source location of a call. As a default argument, `here()` gives the caller's.
struct Site {
  const char* call;
  const char* function;
  const char* file;
  int line;
};

constexpr Site here(const char* call, const char* function = __builtin_FUNCTION(),
                    const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {call, function, file, line};
}

// Waits for all threads of the block; returns how many of them came with a true predicate.
unsigned block_barrier(bool predicate, const Site& site);

// Waits for all lanes in `mask` to come to the same place with the same mask. A shuffle returns
// the value of lane `source`; the others combine the values of all lanes.
enum class Exchange { shuffle, ballot, add, min, max, bit_and, bit_or, bit_xor, work };
uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source,
                       const Site& site);

// Waits for all 32 lanes of the warp to come to the same place, then calls `work` once, with what
// each lane brings: its operands, which also take its results.
using WarpWork = void (*)(void* const* operands);
void warp_work(WarpWork work, void* operands, const Site& site);

// The calling thread's place in its warp, 0 to 31.
unsigned lane();

// The launch's dynamic shared memory, of exactly the requested size.
void* dynamic_shared(const Site& site = here("dynamic_shared"));

// Ends the launch: cudaLaunchKernelEx throws std::runtime_error with this message.
[[noreturn]] void fail(const char* sentence, const Site& site);

// Runs `kernel(arguments)` once for every thread of every block.
void launch(dim3 grid, dim3 block, size_t dynamic_bytes, void (*kernel)(const void*),
            const void* arguments);

}  // namespace cuda_on_cpu

extern "C" {
// The order in which blocks, and the threads of a block, run: forward (0), reverse (1) or shuffled
// by the seed (2). The environment variable CUDA_ON_CPU_ORDER=forward|reverse|shuffled:SEED sets
// it too.
__attribute__((visibility("default"))) void cuda_on_cpu_set_order(int order, uint64_t seed);
}

// Constant to kernels; the scheduler sets them whenever it resumes a thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
