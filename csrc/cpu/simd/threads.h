// Distributing work over threads.
#pragma once

#include <cstdint>

#include "isa.h"

namespace egcnn::EGCNN_ISA {

// Splits `jobs` into `parts` equal runs; part i is [first, last).
static inline void share(int64_t jobs, int64_t parts, int64_t i, int64_t* first, int64_t* last) {
  *first = jobs * i / parts;
  *last = jobs * (i + 1) / parts;
}

}  // namespace egcnn::EGCNN_ISA
