// Stands in for CUDA's header of this name where g++ compiles .cu files as C++, so that tests run
// the kernels on a CPU. It declares the part of CUDA that those files use, with the same semantics;
// README.md says how to extend it. CUDA_ON_CPU_ARCHITECTURE, which build.py defines, is the GPU's:
// 75 for sm_75.
//
// It requires of the sources, beyond what CUDA does:
//   - launches by cudaLaunchKernelEx; dynamic shared memory from cuda_on_cpu::dynamic_shared()
//     instead of `extern __shared__`; the functions of cuda_on_cpu/ptx.h instead of inline PTX;
//   - all threads of a block at the same __syncthreads, on the same line, and all lanes that a mask
//     names at the same warp operation;
//   - kernels in anonymous namespaces, with names that end in _kernel, so that their __shared__
//     arrays have AddressSanitizer's redzones and hold garbage at the start of every block.
#pragma once

#include <memory>  // before the macros: it uses __noinline__ as the name of a GNU attribute

#define __CUDA_ARCH__ (10 * CUDA_ON_CPU_ARCHITECTURE)
#define __CUDA_ARCH_LIST__ __CUDA_ARCH__  // the architectures that nvcc compiles for

#include "cuda_on_cpu/arithmetic.h"
#include "cuda_on_cpu/ptx.h"
#include "cuda_on_cpu/runtime.h"
#include "cuda_on_cpu/scheduler.h"
#include "cuda_on_cpu/threads.h"
#include "cuda_on_cpu/vectors.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static  // one block runs at a time
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
