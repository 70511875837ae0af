// The instruction set of a CPU unit. Each unit is compiled once per instruction set, in a namespace
// of that name, so that the linker cannot mix them.
#pragma once

#include <cstdint>

#ifndef EGCNN_ISA
#error "EGCNN_ISA names the instruction set that this unit is compiled for"
#endif

// For functions called once per row: one copy per unit keeps the build short.
#define EGCNN_OUT_OF_LINE __attribute__((noinline)) static

namespace egcnn::EGCNN_ISA {

// The widest vectors of the instruction set.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Bytes of a cache line.
constexpr int64_t kLine = 64;

// The first line boundary at or after `memory`.
template <class T>
static inline T* align_up(void* memory) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + kLine - 1) / kLine * kLine);
}

}  // namespace egcnn::EGCNN_ISA
