// Kernels for test_stand_in.py, which calls the functions below through ctypes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <class... Parameters, class... Arguments>
cudaError_t launch(dim3 grid, dim3 block, size_t shared, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// --- Order and indices ---

__global__ void order_kernel(int* order, int* next) {
  const int thread = int((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
  const int block = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  const int threads = int(blockDim.x * blockDim.y * blockDim.z);
  order[atomicAdd(next, 1)] = block * threads + thread;
}

// --- Barriers ---

// Hands each value on to the next thread, `rounds` times.
__global__ void rotate_kernel(int* values, int rounds) {
  __shared__ int shared[1024];
  const unsigned t = threadIdx.x;
  int value = values[t];
  for (int i = 0; i < rounds; ++i) {
    shared[t] = value;
    __syncthreads();
    value = shared[(t + 1) % blockDim.x];
    __syncthreads();
  }
  values[t] = value;
}

__global__ void barrier_votes_kernel(const int* predicates, int* counts, int* any, int* all) {
  const unsigned t = threadIdx.x;
  counts[t] = __syncthreads_count(predicates[t]);
  any[t] = __syncthreads_or(predicates[t]);
  all[t] = __syncthreads_and(predicates[t]);
}

// --- Warps ---

template <class T>
__global__ void shuffle_kernel(int kind, int width, const int* by, const T* in, T* out) {
  const unsigned t = threadIdx.x, all = 0xFFFFFFFF;
  switch (kind) {
    case 0: out[t] = __shfl_sync(all, in[t], by[t], width); break;
    case 1: out[t] = __shfl_up_sync(all, in[t], unsigned(by[t]), width); break;
    case 2: out[t] = __shfl_down_sync(all, in[t], unsigned(by[t]), width); break;
    default: out[t] = __shfl_xor_sync(all, in[t], by[t], width); break;
  }
}

template <class T>
void shuffle(int kind, int width, const int* by, const void* in, void* out) {
  launch(1, 64, 0, shuffle_kernel<T>, kind, width, by, static_cast<const T*>(in),
         static_cast<T*>(out));
}

// Two groups of lanes at places of their own, again and again, then all together.
__global__ void votes_kernel(unsigned mask, const int* values, unsigned* out) {
  const unsigned t = threadIdx.x;
  unsigned* mine = out + t * 8;
  if (mask >> t & 1) {
    mine[0] = __ballot_sync(mask, values[t] & 1);
    mine[1] = unsigned(__any_sync(mask, values[t] & 1));
    mine[2] = unsigned(__all_sync(mask, values[t] & 1));
  } else {
    for (int i = 0; i < 3; ++i) mine[i] = __reduce_add_sync(~mask, unsigned(values[t] + i));
  }
  __syncwarp();
  mine[3] = unsigned(__reduce_min_sync(0xFFFFFFFF, values[t]));
  mine[4] = unsigned(__reduce_max_sync(0xFFFFFFFF, values[t]));
  mine[5] = __reduce_and_sync(0xFFFFFFFF, unsigned(values[t]));
  mine[6] = __reduce_or_sync(0xFFFFFFFF, unsigned(values[t]));
  mine[7] = __reduce_xor_sync(0xFFFFFFFF, unsigned(values[t]));
}

// --- Memory ---

__global__ void atomics_kernel(const int* values, int n, int* out, unsigned long long* wide) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  atomicAdd(out, values[i]);
  atomicMin(out + 1, values[i]);
  atomicMax(out + 2, values[i]);
  atomicOr(out + 3, values[i]);
  if (atomicCAS(out + 4, 0, 1) == 0) atomicExch(out + 5, 7);
  atomicAdd(wide, (unsigned long long)(values[i]) << 32);
}

__global__ void garbage_kernel(unsigned* out) {
  __shared__ unsigned fixed[4];
  unsigned* dynamic = static_cast<unsigned*>(cuda_on_cpu::dynamic_shared());
  if (threadIdx.x == 0) {
    out[2 * blockIdx.x] = fixed[3];
    out[2 * blockIdx.x + 1] = dynamic[3];
    fixed[3] = dynamic[3] = 1;
  }
}

__global__ void fill_kernel(float* out, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = 1;
}

// --- What a kernel must not do ---

__global__ void wrong_kernel(int mistake, unsigned* memory) {
  const unsigned t = threadIdx.x;
  switch (mistake) {
    case 0:  // some threads leave
      if (t < 32) __syncthreads();
      break;
    case 1:  // at different places
      if (t < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case 2: __ballot_sync(0x0000FFFF, 1); break;  // called by the others too
    case 3:                                       // the others are elsewhere
      if (t % 32 < 16) {
        __syncwarp();
      } else {
        __syncwarp(0xFFFF0000);
        __syncthreads();
      }
      break;
    case 4:  // lane 31 has left
      if (t % 32 < 31) memory[t] = __shfl_xor_sync(0xFFFFFFFF, t, 1);
      break;
    case 5:  // reads from a lane that takes no part
      if (t % 32 < 16) memory[t] = __shfl_sync(0x0000FFFF, t, 20);
      break;
    case 6: memory[t] = __ldg(reinterpret_cast<const uint4*>(memory + t)).x; break;
    default: memory[t] = *static_cast<unsigned*>(cuda_on_cpu::dynamic_shared()); break;
  }
}

// --- Arithmetic, one element per thread ---

__global__ void bits_kernel(int function, const unsigned* a, const unsigned* b, const unsigned* c,
                            unsigned* out, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const unsigned x = a[i], y = b[i], z = c[i];
  switch (function) {
    case 0: out[i] = unsigned(__popc(x)); break;
    case 1: out[i] = unsigned(__ffs(int(x))); break;
    case 2: out[i] = unsigned(__clz(int(x))); break;
    case 3: out[i] = __brev(x); break;
    case 4: out[i] = __byte_perm(x, y, z); break;
    case 5: out[i] = __funnelshift_l(x, y, z); break;
    case 6: out[i] = __funnelshift_r(x, y, z); break;
    case 7: out[i] = __umulhi(x, y); break;
    case 8: out[i] = __vadd4(x, y); break;
    case 9: out[i] = __vsub4(x, y); break;
    case 10: out[i] = __vabsdiffu4(x, y); break;
    case 11: out[i] = __vmaxu4(x, y); break;
    case 12: out[i] = __vminu4(x, y); break;
    case 13: out[i] = __vcmpeq4(x, y); break;
    case 14: out[i] = __vcmpne4(x, y); break;
    case 15: out[i] = __vcmpgtu4(x, y); break;
    case 16: out[i] = __vcmpgeu4(x, y); break;
    case 17: out[i] = __vseteq4(x, y); break;
    case 18: out[i] = __vsetne4(x, y); break;
    case 19: out[i] = __vsetgtu4(x, y); break;
    case 20: out[i] = __vavgu4(x, y); break;
    case 21: out[i] = __vhaddu4(x, y); break;
    case 22: out[i] = __vsadu4(x, y); break;
    case 23: out[i] = __dp4a(x, y, z); break;
    default: out[i] = unsigned(__dp4a(int(x), int(y), int(z))); break;
  }
}

__global__ void from_16_bits_kernel(const unsigned short* bits, float* half, float* bfloat, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  half[i] = __half2float(__ushort_as_half(bits[i]));
  bfloat[i] = __bfloat162float(__ushort_as_bfloat16(bits[i]));
}

__global__ void to_16_bits_kernel(const float* values, unsigned short* half, unsigned short* bfloat,
                                  int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  half[i] = __half_as_ushort(__float2half_rn(values[i]));
  bfloat[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[i]));
}

constexpr unsigned kThreads = 128;
unsigned blocks_for(int n) { return (unsigned(n) + kThreads - 1) / kThreads; }

}  // namespace

EXPORT void run_order(const unsigned* grid, const unsigned* block, int* order) {
  int next = 0;
  launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), 0, order_kernel,
         order, &next);
}

EXPORT void run_rotate(int threads, int* values, int rounds) {
  launch(1, unsigned(threads), 0, rotate_kernel, values, rounds);
}

EXPORT void run_barrier_votes(int threads, const int* predicates, int* counts, int* any, int* all) {
  launch(1, unsigned(threads), 0, barrier_votes_kernel, predicates, counts, any, all);
}

EXPORT void run_shuffle(int type, int kind, int width, const int* by, const void* in, void* out) {
  switch (type) {
    case 0: return shuffle<int>(kind, width, by, in, out);
    case 1: return shuffle<unsigned>(kind, width, by, in, out);
    case 2: return shuffle<long long>(kind, width, by, in, out);
    case 3: return shuffle<unsigned long long>(kind, width, by, in, out);
    case 4: return shuffle<int64_t>(kind, width, by, in, out);
    case 5: return shuffle<float>(kind, width, by, in, out);
    default: return shuffle<double>(kind, width, by, in, out);
  }
}

EXPORT void run_votes(unsigned mask, const int* values, unsigned* out) {
  launch(1, 32, 0, votes_kernel, mask, values, out);
}

EXPORT void run_atomics(const int* values, int n, int* out, unsigned long long* wide) {
  launch(blocks_for(n), kThreads, 0, atomics_kernel, values, n, out, wide);
}

EXPORT void run_garbage(unsigned* out) { launch(3, 32, 16, garbage_kernel, out); }

// Returns the error message of a mistake, and checks that the next kernel runs normally.
EXPORT const char* run_mistake(int mistake, unsigned* memory) {
  static std::string sentence;
  sentence = "the mistake was not detected";
  try {
    launch(2, 64, 0, wrong_kernel, mistake, memory);
  } catch (const std::runtime_error& error) {
    sentence = error.what();
  }
  int values[64];
  std::fill(values, values + 64, 1);
  run_rotate(64, values, 3);
  if (std::count(values, values + 64, 1) != 64) sentence = "the next kernel failed";
  return sentence.c_str();
}

EXPORT int run_launch(const unsigned* grid, const unsigned* block, size_t shared, int opt_in) {
  const int before =
      cudaFuncSetAttribute(fill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, opt_in);
  if (before != cudaSuccess) return -int(cudaGetLastError());
  float value;
  const int error = launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                           shared, fill_kernel, &value, 1);
  return int(cudaGetLastError()) == error && cudaGetLastError() == cudaSuccess ? error : -1;
}

EXPORT void run_bits(int function, const unsigned* a, const unsigned* b, const unsigned* c,
                     unsigned* out, int n) {
  launch(blocks_for(n), kThreads, 0, bits_kernel, function, a, b, c, out, n);
}

EXPORT void run_from_16_bits(const unsigned short* bits, float* half, float* bfloat, int n) {
  launch(blocks_for(n), kThreads, 0, from_16_bits_kernel, bits, half, bfloat, n);
}

EXPORT void run_to_16_bits(const float* values, unsigned short* half, unsigned short* bfloat,
                           int n) {
  launch(blocks_for(n), kThreads, 0, to_16_bits_kernel, values, half, bfloat, n);
}
