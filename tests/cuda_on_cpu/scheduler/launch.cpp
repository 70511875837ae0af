// Launches: the blocks of a grid and the threads of each, in the chosen order, over garbage.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>

#include "state.h"

// The linker script puts the kernels' static __shared__ arrays between these.
extern volatile uint64_t cuda_shared_begin[] __attribute__((weak, visibility("hidden")));
extern volatile uint64_t cuda_shared_end[] __attribute__((weak, visibility("hidden")));

namespace cuda_on_cpu {

#ifdef CUDA_ON_CPU_TSAN
void *main_fiber, *fibers[kMaxThreads];
#endif

namespace {

constexpr unsigned char kGarbage = 0xCD;

std::mutex launch_mutex;  // threadIdx and each __shared__ array exist only once

enum class Order { forward, reverse, shuffled };
Order chosen_order = Order::forward;
uint64_t chosen_seed = 0;
uint64_t random_state = 0;

uint64_t random_number() {  // splitmix64
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

void read_environment() {
  const char* value = std::getenv("CUDA_ON_CPU_ORDER");
  if (!value) return;
  const std::string order = value;
  if (order == "forward") {
    cuda_on_cpu_set_order(0, 0);
  } else if (order == "reverse") {
    cuda_on_cpu_set_order(1, 0);
  } else if (order.rfind("shuffled:", 0) == 0) {
    cuda_on_cpu_set_order(2, std::strtoull(value + 9, nullptr, 10));
  } else {
    throw std::runtime_error("CUDA_ON_CPU_ORDER is " + order +
                             "; expected forward, reverse or shuffled:SEED");
  }
}

void begin_block() {
  // Plain stores, because AddressSanitizer would not let memset cross the redzones.
  for (volatile uint64_t* word = cuda_shared_begin; word < cuda_shared_end; ++word) {
    *word = 0x0101010101010101u * kGarbage;
  }
  std::memset(state.dynamic, kGarbage, state.dynamic_bytes);
  for (unsigned i = 0; i < state.threads; ++i) {
    state.order[i] = chosen_order == Order::reverse ? state.threads - 1 - i : i;
  }
  if (chosen_order == Order::shuffled) {
    for (unsigned i = state.threads; i > 1; --i) {
      std::swap(state.order[i - 1], state.order[random_number() % i]);
    }
  }
  std::fill(std::begin(state.runnable), std::end(state.runnable), 0);
  for (unsigned i = 0; i < state.threads; ++i) {
    Thread& thread = state.thread[state.order[i]];
    thread.position = i;
    thread.exited = false;
    thread.stack = nullptr;
    set_runnable(state.order[i]);
  }
  for (unsigned w = 0; w < (state.threads + kWarp - 1) / kWarp; ++w) state.warp[w].count = 0;
  state.alive = state.threads;
  state.barrier_arrived = 0;
}

void run_block() {
  begin_block();
  release(block_begins);
  run_thread(state.order[0], state.main);
  acquire(block_ends);
}

// A shuffled order visits every stride-th block; the stride is coprime to their number, so that
// each is visited once.
void run_blocks(dim3 grid) {
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  random_state = chosen_seed;
  uint64_t stride = chosen_order == Order::reverse ? blocks - 1 : 1;
  uint64_t next = chosen_order == Order::reverse ? blocks - 1 : 0;
  if (chosen_order == Order::shuffled) {
    next = random_number() % blocks;
    do {
      stride = random_number() % blocks + 1;
    } while (std::gcd(stride, blocks) != 1);
  }
  for (uint64_t i = 0; i < blocks && state.failure[0] == 0; ++i) {
    blockIdx = {unsigned(next % grid.x), unsigned(next / grid.x % grid.y),
                unsigned(next / grid.x / grid.y)};
    run_block();
    next = (next + stride) % blocks;
  }
}

// Drops the threads of a launch that failed and reuses their stacks.
void abandon_threads() {
  reset_stacks();
#ifdef CUDA_ON_CPU_TSAN
  for (void*& fiber : fibers) {
    if (!fiber) continue;
    __tsan_switch_to_fiber(fiber, 0);  // orders its work before the host's next
    __tsan_switch_to_fiber(main_fiber, 0);
    __tsan_destroy_fiber(fiber);
    fiber = nullptr;
  }
#endif
}

}  // namespace

void launch(dim3 grid, dim3 block, size_t dynamic_bytes, void (*kernel)(const void*),
            const void* arguments) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  static const bool read = (read_environment(), true);
  (void)read;
  gridDim = grid;
  blockDim = block;
  state.kernel = kernel;
  state.arguments = arguments;
  state.threads = block.x * block.y * block.z;
  for (unsigned t = 0; t < state.threads; ++t) {
    state.thread[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  }
  const std::unique_ptr<char[]> dynamic(new char[dynamic_bytes]);
  state.dynamic = dynamic.get();
  state.dynamic_bytes = dynamic_bytes;
  state.failure[0] = 0;
  thread_local const Stack main = host_stack();
  state.main = main;
#ifdef CUDA_ON_CPU_TSAN
  main_fiber = __tsan_get_current_fiber();
#endif
  state.running = true;
  run_blocks(grid);
  state.running = false;
  if (state.failure[0] != 0) {
    abandon_threads();
    throw std::runtime_error(state.failure);
  }
}

}  // namespace cuda_on_cpu

void cuda_on_cpu_set_order(int order, uint64_t seed) {
  cuda_on_cpu::chosen_order = cuda_on_cpu::Order(order);
  cuda_on_cpu::chosen_seed = seed;
}
