// The turns of a block's threads: each runs until it waits for others, at a barrier or at a warp
// operation, then the next runnable one has its turn.
#include "state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

Launch state;
char block_begins, block_ends;

namespace {

char barrier_sync[2];

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

// Gives each lane of the group its result. `work` is that of Exchange::work.
void combine(const Group& group, Thread* lanes, WarpWork work) {
  if (group.kind == Exchange::work) {
    void* operands[kWarp];
    for (unsigned i = 0; i < kWarp; ++i) operands[i] = reinterpret_cast<void*>(lanes[i].value);
    return work(operands);
  }
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
      case Exchange::work: break;
    }
    first = false;
  }
  if (group.kind == Exchange::shuffle) return;
  for (unsigned bits = group.mask; bits != 0; bits &= bits - 1) {
    lanes[unsigned(__builtin_ctz(bits))].result = all;
  }
}

uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source, WarpWork work,
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
    combine(group, lanes, work);
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

}  // namespace

void set_runnable(unsigned thread) {
  const unsigned position = state.thread[thread].position;
  state.runnable[position / 64] |= uint64_t(1) << position % 64;
}

void run_thread(unsigned thread, Stack& from) {
  state.current = thread;
  threadIdx = state.thread[thread].index;
  enter(thread);
  resume(from);
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
    give_back(mine);
    if (more) {
      resume(mine);
    } else {
      enter_main();
      switch_stack(mine, state.main);
    }
  }
}

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
  return exchange(kind, mask, value, source, nullptr, site);
}

void warp_work(WarpWork work, void* operands, const Site& site) {
  exchange(Exchange::work, 0xFFFFFFFFu, reinterpret_cast<uint64_t>(operands), 0, work, site);
}

unsigned lane() { return state.current % kWarp; }

void* dynamic_shared(const Site& site) {
  if (state.dynamic_bytes == 0) fail("the launch gave no dynamic shared memory", site);
  return state.dynamic;
}

}  // namespace cuda_on_cpu
