// Huge pages for fresh outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace egcnn::EGCNN_ISA {

// Requests huge pages for an array that is about to be written completely. The system clears fresh
// memory at its first touch, and in pages of 4 KB that takes far longer than computing its content.
static inline void advise_huge(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  if (bytes < 2 * kPage) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const uintptr_t last = (address + bytes) / kPage * kPage;
  // Only advice: on a system without huge pages it fails without consequences.
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace egcnn::EGCNN_ISA
