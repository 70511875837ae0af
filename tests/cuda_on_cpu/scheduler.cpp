#include "cuda_on_cpu/scheduler.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>

#ifdef CUDA_ON_CPU_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUDA_ON_CPU_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifndef __x86_64__
#define CUDA_ON_CPU_UCONTEXT
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The linker script puts the kernels' static __shared__ arrays between these.
extern volatile uint64_t cuda_shared_begin[] __attribute__((weak, visibility("hidden")));
extern volatile uint64_t cuda_shared_end[] __attribute__((weak, visibility("hidden")));

// This file is compiled without instrumentation. It plays the hardware's part, and tells the
// sanitizers through their interfaces what it does.
namespace cuda_on_cpu {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 256 << 10;  // virtual; only pages that are touched use memory
constexpr unsigned char kGarbage = 0xCD;

// --- Stacks ---

struct Stack {
  char* low = nullptr;  // just above the guard page
  size_t bytes = 0;
#ifdef CUDA_ON_CPU_UCONTEXT
  ucontext_t context;
#else
  void* top = nullptr;  // the stack pointer, while suspended
#endif
};

#ifdef CUDA_ON_CPU_UCONTEXT

void prepare(Stack& stack, void (*entry)()) {
  getcontext(&stack.context);
  stack.context.uc_stack.ss_sp = stack.low;
  stack.context.uc_stack.ss_size = stack.bytes;
  stack.context.uc_link = nullptr;
  makecontext(&stack.context, entry, 0);
}

void swap(Stack& from, Stack& to) { swapcontext(&from.context, &to.context); }

#else

// swapcontext makes two system calls each time; this saves just what the calling convention
// requires.
extern "C" void cuda_on_cpu_swap(void** from, void* to);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".hidden cuda_on_cpu_swap\n"
    ".globl cuda_on_cpu_swap\n"
    ".type cuda_on_cpu_swap, @function\n"
    "cuda_on_cpu_swap:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size cuda_on_cpu_swap, .-cuda_on_cpu_swap\n");

void prepare(Stack& stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack.low + stack.bytes);
  *--top = nullptr;  // a null return address ends a debugger's backtrace, and aligns the stack
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack.top = top;
}

void swap(Stack& from, Stack& to) { cuda_on_cpu_swap(&from.top, to.top); }

#endif

void switch_stack(Stack& from, Stack& to) {
#ifdef CUDA_ON_CPU_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.low, to.bytes);
#endif
  swap(from, to);
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void run_threads();

void stack_entry() {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  run_threads();
}

// --- The state of a launch ---

// Lanes that have arrived at one place with one mask and wait for the others that it names.
struct Group {
  Exchange kind;
  unsigned mask;
  unsigned arrived;
  Site site;
  char* sync;
};

struct Warp {
  Group groups[kWarp];
  unsigned count;  // of groups
  unsigned next_sync;
  char syncs[kWarp];
};

struct Thread {
  uint3 index;
  unsigned position;  // in the order in which the block's threads run
  bool exited;
  Stack* stack;       // null before the thread starts
  const Site* waits;  // its last barrier or warp operation
  unsigned mask;      // of a warp operation; 0 for a barrier
  uint64_t value;     // passed to a warp operation
  unsigned source;    // lane that a shuffle reads
  uint64_t result;    // of a warp operation
};

struct Launch {
  void (*kernel)(const void*);
  const void* arguments;
  unsigned threads;  // of a block
  Thread thread[kMaxThreads];
  Warp warp[kMaxThreads / kWarp];
  unsigned order[kMaxThreads];          // the thread at each position
  uint64_t runnable[kMaxThreads / 64];  // a bit for each position
  unsigned alive;
  unsigned current;  // thread
  Stack* stack;      // that it runs on
  Stack main;

  Site barrier_site;
  unsigned barrier_first;  // thread
  unsigned barrier_arrived;
  unsigned barrier_trues;
  unsigned barrier_result;
  unsigned barriers;

  char* dynamic;
  size_t dynamic_bytes;
  char failure[1000];  // a sentence, once the launch has failed
};

std::mutex launch_mutex;  // threadIdx and each __shared__ array exist only once
Launch state;
bool running = false;

enum class Order { forward, reverse, shuffled };
Order chosen_order = Order::forward;
uint64_t chosen_seed = 0;
uint64_t random_state = 0;

// Created on first use. On an idle stack, run_threads waits for a thread to start. (Arrays, because
// ThreadSanitizer would attribute an allocation in a thread's turn to the kernel.)
Stack stacks[kMaxThreads];
unsigned stack_count = 0;
Stack* idle[kMaxThreads];
unsigned idle_count = 0;

// --- ThreadSanitizer: each thread of a block is one of its fibers ---

char barrier_sync[2], block_begins, block_ends;

#ifdef CUDA_ON_CPU_TSAN
constexpr bool kOwnStack = true;  // locals of two threads at one address would look like a race
void* main_fiber;
void* fibers[kMaxThreads];

void enter(unsigned thread) {
  if (!fibers[thread]) fibers[thread] = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fibers[thread], __tsan_switch_to_fiber_no_sync);
}
void enter_main() { __tsan_switch_to_fiber(main_fiber, __tsan_switch_to_fiber_no_sync); }
void acquire(char& sync) { __tsan_acquire(&sync); }
void release(char& sync) { __tsan_release(&sync); }
#else
constexpr bool kOwnStack = false;
void enter(unsigned) {}
void enter_main() {}
void acquire(char&) {}
void release(char&) {}
#endif

// --- Failure ---

// Appends to the sentence. Allocates nothing: the thread never returns to free it.
__attribute__((format(printf, 1, 2))) void say(const char* format, ...) {
  const size_t length = std::strlen(state.failure);
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(state.failure + length, sizeof state.failure - length, format, arguments);
  va_end(arguments);
}

void say_site(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  say("%s in %s (%s:%d)", site.call, site.function, slash ? slash + 1 : site.file, site.line);
}

void say_thread(unsigned thread) {
  const uint3 index = state.thread[thread].index;
  say("thread (%u, %u, %u)", index.x, index.y, index.z);
}

// Begins the sentence about `thread` at `site`. Finish with say(), then call give_up_launch.
void begin_failure(unsigned thread, const Site& site) {
  enter_main();
  say("cuda_on_cpu: ");
  say_site(site);
  say(", block (%u, %u, %u), ", blockIdx.x, blockIdx.y, blockIdx.z);
  say_thread(thread);
  say(": ");
}

[[noreturn]] void give_up_launch() {
  switch_stack(*state.stack, state.main);
  std::abort();  // never resumed
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0) &&
         (a.call == b.call || std::strcmp(a.call, b.call) == 0);
}

// Deadlock: every thread of the block has left or waits.
[[noreturn]] void fail_waiting() {
  // Report a warp operation first: it says more than the barrier where the rest may wait.
  for (unsigned t = 0; t < state.threads; ++t) {
    const Thread& waiting = state.thread[t];
    if (waiting.exited || waiting.mask == 0) continue;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned other = t / kWarp * kWarp + lane;
      const bool there = other < state.threads;
      const Thread& absent = state.thread[there ? other : t];
      if (!(waiting.mask >> lane & 1)) continue;
      if (there && !absent.exited && absent.mask == waiting.mask &&
          same(*absent.waits, *waiting.waits)) {
        continue;
      }
      begin_failure(t, *waiting.waits);
      say("the mask names lane %u, which ", lane);
      if (!there) {
        say("the block does not have");
      } else if (absent.exited) {
        say("has left the kernel");
      } else {
        say("waits in ");
        say_site(*absent.waits);
        if (absent.mask != 0) say(" with mask 0x%08x", absent.mask);
      }
      give_up_launch();
    }
  }
  unsigned left = 0;
  while (!state.thread[left].exited) ++left;
  begin_failure(state.barrier_first, state.barrier_site);
  say_thread(left);
  say(" has left the kernel without coming here");
  give_up_launch();
}

// --- Turns ---

void set_runnable(unsigned thread) {
  const unsigned position = state.thread[thread].position;
  state.runnable[position / 64] |= uint64_t(1) << position % 64;
}

// Suspends the current thread and makes the next runnable one current, if there is one. (The last
// to arrive at a barrier is not suspended: it continues first, then the others in turn.)
bool give_up_turn() {
  const unsigned position = state.thread[state.current].position;
  state.runnable[position / 64] &= ~(uint64_t(1) << position % 64);
  const unsigned words = (state.threads + 63) / 64;
  unsigned word = position / 64;
  uint64_t bits = state.runnable[word] & ~uint64_t(0) << position % 64;
  for (unsigned looked = 0; bits == 0; ++looked) {
    if (looked == words) return false;
    word = word + 1 == words ? 0 : word + 1;
    bits = state.runnable[word];
  }
  state.current = state.order[word * 64 + unsigned(__builtin_ctzll(bits))];
  threadIdx = state.thread[state.current].index;
  enter(state.current);
  return true;
}

void allocate(Stack& stack) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);  // an overflow ends the process here
  stack.low = static_cast<char*>(memory) + page;
  stack.bytes = kStackBytes;
  prepare(stack, stack_entry);
}

Stack* idle_stack() {
  if (idle_count != 0 && !kOwnStack) return idle[--idle_count];
  Stack& stack = stacks[kOwnStack ? state.current : stack_count++];
  if (!stack.low) allocate(stack);
  return &stack;
}

// Resumes or starts the current thread.
void resume(Stack& from) {
  Stack*& to = state.thread[state.current].stack;
  if (!to) to = idle_stack();
  state.stack = to;
  switch_stack(from, *to);
}

void wait() {
  Stack& mine = *state.stack;
  if (!give_up_turn()) fail_waiting();
  resume(mine);
}

// Runs the current thread from start to end, then the next, as long as that has not started yet.
// So threads that never wait cost no switch.
void run_threads() {
  for (;;) {
    Thread& thread = state.thread[state.current];
    Stack& mine = *state.stack;
    thread.stack = &mine;
    acquire(block_begins);
    state.kernel(state.arguments);
    release(block_ends);
    thread.exited = true;
    --state.alive;
    const bool more = give_up_turn();
    if (!more && state.alive != 0) fail_waiting();
    if (more && !kOwnStack && !state.thread[state.current].stack) continue;
    if (!kOwnStack) idle[idle_count++] = &mine;
    if (more) {
      resume(mine);
    } else {
      enter_main();
      switch_stack(mine, state.main);
    }
  }
}

// --- Warp operations ---

void combine(const Group& group, Thread* lanes) {
  uint64_t all = 0;
  bool first = true;
  for (unsigned bits = group.mask; bits != 0; bits &= bits - 1) {
    const unsigned lane = unsigned(__builtin_ctz(bits));
    const uint64_t value = lanes[lane].value;
    switch (group.kind) {
      case Exchange::shuffle: lanes[lane].result = lanes[lanes[lane].source].value; continue;
      case Exchange::ballot: all |= value << lane; break;
      case Exchange::add: all += value; break;
      case Exchange::min: all = first || int64_t(value) < int64_t(all) ? value : all; break;
      case Exchange::max: all = first || int64_t(value) > int64_t(all) ? value : all; break;
      case Exchange::bit_and: all = first ? value : all & value; break;
      case Exchange::bit_or: all |= value; break;
      case Exchange::bit_xor: all ^= value; break;
    }
    first = false;
  }
  if (group.kind == Exchange::shuffle) return;
  for (unsigned bits = group.mask; bits != 0; bits &= bits - 1) {
    lanes[unsigned(__builtin_ctz(bits))].result = all;
  }
}

// --- Blocks ---

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
    state.runnable[i / 64] |= uint64_t(1) << i % 64;
  }
  for (unsigned w = 0; w < (state.threads + kWarp - 1) / kWarp; ++w) state.warp[w].count = 0;
  state.alive = state.threads;
  state.barrier_arrived = 0;
}

void run_block() {
  begin_block();
  release(block_begins);
  state.current = state.order[0];
  threadIdx = state.thread[state.current].index;
  enter(state.current);
  resume(state.main);
  acquire(block_ends);
}

#ifdef CUDA_ON_CPU_ASAN
Stack host_stack() {
  Stack stack;
  void* low;
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &low, &stack.bytes);
  pthread_attr_destroy(&attributes);
  stack.low = static_cast<char*>(low);
  return stack;
}
#endif

// Drops the threads of a launch that failed and reuses their stacks.
void abandon_threads() {
  idle_count = 0;
  for (Stack& stack : stacks) {
    if (!stack.low) continue;
#ifdef CUDA_ON_CPU_ASAN
    __asan_unpoison_memory_region(stack.low, stack.bytes);
#endif
    prepare(stack, stack_entry);
    if (!kOwnStack) idle[idle_count++] = &stack;
  }
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

unsigned block_barrier(bool predicate, const Site& site) {
  if (state.barrier_arrived == 0) {
    state.barrier_site = site;
    state.barrier_first = state.current;
    state.barrier_trues = 0;
  } else if (!same(site, state.barrier_site)) {
    begin_failure(state.current, site);
    say_thread(state.barrier_first);
    say(" waits for it in ");
    say_site(state.barrier_site);
    give_up_launch();
  }
  char& sync = barrier_sync[state.barriers % 2];
  release(sync);
  state.barrier_trues += predicate;
  if (++state.barrier_arrived == state.threads) {
    state.barrier_arrived = 0;
    state.barrier_result = state.barrier_trues;
    ++state.barriers;
    for (unsigned t = 0; t < state.threads; ++t) set_runnable(t);
  } else {
    Thread& thread = state.thread[state.current];
    thread.waits = &site;
    thread.mask = 0;
    wait();
  }
  acquire(sync);
  return state.barrier_result;
}

uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source,
                       const Site& site) {
  const unsigned lane = state.current % kWarp;
  Warp& warp = state.warp[state.current / kWarp];
  Thread* lanes = state.thread + (state.current - lane);
  Thread& thread = lanes[lane];
  if (!(mask >> lane & 1)) fail("the mask does not name the caller", site);
  if (kind == Exchange::shuffle && !(mask >> source & 1)) {
    fail("it reads from a lane that the mask does not name", site);
  }
  thread.value = value;
  thread.source = source;
  unsigned i = 0;
  while (i < warp.count && !(warp.groups[i].mask == mask && same(warp.groups[i].site, site))) ++i;
  if (i == warp.count) {
    warp.groups[warp.count++] = {kind, mask, 0, site, &warp.syncs[warp.next_sync++ % kWarp]};
  }
  Group& group = warp.groups[i];
  char& sync = *group.sync;
  release(sync);
  group.arrived |= 1u << lane;
  if (group.arrived == mask) {
    combine(group, lanes);
    const unsigned first = state.current - lane;
    for (unsigned bits = mask; bits != 0; bits &= bits - 1) {
      set_runnable(first + unsigned(__builtin_ctz(bits)));
    }
    group = warp.groups[--warp.count];
  } else {
    thread.waits = &site;
    thread.mask = mask;
    wait();
  }
  acquire(sync);
  return thread.result;
}

unsigned lane() { return state.current % kWarp; }

void* dynamic_shared(const Site& site) {
  if (state.dynamic_bytes == 0) fail("the launch gave no dynamic shared memory", site);
  return state.dynamic;
}

void fail(const char* sentence, const Site& site) {
  if (!running) throw std::runtime_error(std::string("cuda_on_cpu: outside a kernel, ") + sentence);
  begin_failure(state.current, site);
  say("%s", sentence);
  give_up_launch();
}

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
#ifdef CUDA_ON_CPU_ASAN
  thread_local const Stack main = host_stack();
  state.main = main;
#endif
#ifdef CUDA_ON_CPU_TSAN
  main_fiber = __tsan_get_current_fiber();
#endif
  running = true;
  // A shuffled order visits every stride-th block; the stride is coprime to their number, so that
  // each is visited once.
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
  running = false;
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
