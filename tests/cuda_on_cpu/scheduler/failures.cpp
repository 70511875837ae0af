// How a launch ends that does what a GPU does not allow: in a sentence with the kernel, the block,
// the thread and the place.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "state.h"

namespace cuda_on_cpu {

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0) &&
         (a.call == b.call || std::strcmp(a.call, b.call) == 0);
}

void say(const char* format, ...) {
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

void begin_failure(unsigned thread, const Site& site) {
  enter_main();
  say("cuda_on_cpu: ");
  say_site(site);
  say(", block (%u, %u, %u), ", blockIdx.x, blockIdx.y, blockIdx.z);
  say_thread(thread);
  say(": ");
}

void give_up_launch() {
  switch_stack(*state.stack, state.main);
  std::abort();  // never resumed
}

void fail_waiting() {
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

void fail(const char* sentence, const Site& site) {
  if (!state.running) {
    throw std::runtime_error(std::string("cuda_on_cpu: outside a kernel, ") + sentence);
  }
  begin_failure(state.current, site);
  say("%s", sentence);
  give_up_launch();
}

}  // namespace cuda_on_cpu
