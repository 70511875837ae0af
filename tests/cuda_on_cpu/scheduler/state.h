// What the scheduler's parts share: the state of the launch that runs, and what each part does for
// the others. The scheduler is compiled without instrumentation. It plays the hardware's part, and
// tells the sanitizers through their interfaces what it does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_on_cpu/scheduler.h"

#ifdef CUDA_ON_CPU_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifndef __x86_64__
#define CUDA_ON_CPU_UCONTEXT
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarp = 32;

// --- Stacks (stacks.cpp) ---

struct Stack {
  char* low = nullptr;  // just above the guard page
  size_t bytes = 0;
#ifdef CUDA_ON_CPU_UCONTEXT
  ucontext_t context;
#else
  void* top = nullptr;  // the stack pointer, while suspended
#endif
};

// Suspends the caller on the stack `from` and goes on where `to` was suspended.
void switch_stack(Stack& from, Stack& to);

// An idle stack for the current thread; run_threads() starts on it.
Stack* idle_stack();
void give_back(Stack& stack);

// Makes every stack idle, whatever was suspended there.
void reset_stacks();

// The stack of the thread that launches, for AddressSanitizer.
Stack host_stack();

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
  bool running;
  char failure[1000];  // a sentence, once the launch has failed
};

extern Launch state;

// --- Turns (turns.cpp) ---

void set_runnable(unsigned thread);

// Makes a thread current and goes on with it, or starts it.
void run_thread(unsigned thread, Stack& from);

// Runs threads that have not started yet; the bottom of every stack.
void run_threads();

// --- Failures (failures.cpp) ---

bool same(const Site& a, const Site& b);

// Appends to the sentence. Allocates nothing: the thread never returns to free it.
__attribute__((format(printf, 1, 2))) void say(const char* format, ...);
void say_site(const Site& site);
void say_thread(unsigned thread);

// Begins the sentence about `thread` at `site`. Finish with say(), then call give_up_launch.
void begin_failure(unsigned thread, const Site& site);
[[noreturn]] void give_up_launch();

// Deadlock: every thread of the block has left or waits.
[[noreturn]] void fail_waiting();

// --- ThreadSanitizer: each thread of a block is one of its fibers ---

extern char block_begins, block_ends;

#ifdef CUDA_ON_CPU_TSAN
constexpr bool kOwnStack = true;  // locals of two threads at one address would look like a race
extern void *main_fiber, *fibers[kMaxThreads];

inline void enter(unsigned thread) {
  if (!fibers[thread]) fibers[thread] = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fibers[thread], __tsan_switch_to_fiber_no_sync);
}
inline void enter_main() { __tsan_switch_to_fiber(main_fiber, __tsan_switch_to_fiber_no_sync); }
inline void acquire(char& sync) { __tsan_acquire(&sync); }
inline void release(char& sync) { __tsan_release(&sync); }
#else
constexpr bool kOwnStack = false;
inline void enter(unsigned) {}
inline void enter_main() {}
inline void acquire(char&) {}
inline void release(char&) {}
#endif

}  // namespace cuda_on_cpu
