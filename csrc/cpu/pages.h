// Large pages for fresh outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace egcnn {

// Asks for large pages under an array that is about to be written whole. Fresh memory is cleared by
// the kernel at its first touch, in pages of 4 KB slower by far than ours compute what goes there.
static inline void advise_huge(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  if (bytes < 2 * kPage) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const uintptr_t last = (address + bytes) / kPage * kPage;
  // Advice only: where the system knows no large pages, it fails and nothing is lost.
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace egcnn
