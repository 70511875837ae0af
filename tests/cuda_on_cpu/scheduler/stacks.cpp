// The stacks of the threads, and the switch from one to another.
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "state.h"

#ifdef CUDA_ON_CPU_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // virtual; only pages that are touched use memory

// Created on first use. On an idle stack, run_threads waits for a thread to start. (Arrays, because
// ThreadSanitizer would attribute an allocation in a thread's turn to the kernel.)
Stack stacks[kMaxThreads];
unsigned stack_count = 0;
Stack* idle[kMaxThreads];
unsigned idle_count = 0;

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

void stack_entry() {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  run_threads();
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

}  // namespace

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

Stack* idle_stack() {
  if (idle_count != 0 && !kOwnStack) return idle[--idle_count];
  Stack& stack = stacks[kOwnStack ? state.current : stack_count++];
  if (!stack.low) allocate(stack);
  return &stack;
}

void give_back(Stack& stack) {
  if (!kOwnStack) idle[idle_count++] = &stack;
}

void reset_stacks() {
  idle_count = 0;
  for (Stack& stack : stacks) {
    if (!stack.low) continue;
#ifdef CUDA_ON_CPU_ASAN
    __asan_unpoison_memory_region(stack.low, stack.bytes);
#endif
    prepare(stack, stack_entry);
    give_back(stack);
  }
}

Stack host_stack() {
  Stack stack;
#ifdef CUDA_ON_CPU_ASAN
  void* low;
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &low, &stack.bytes);
  pthread_attr_destroy(&attributes);
  stack.low = static_cast<char*>(low);
#endif
  return stack;
}

}  // namespace cuda_on_cpu
