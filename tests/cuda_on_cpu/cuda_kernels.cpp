// Registers the CPU kernels of one instruction set as those of CUDA, so that kernels_main.cpp runs
// them: the reverse of cpu_kernels.cpp.
#include "ops.h"

namespace egcnn::EGCNN_ISA {
extern const Kernels kernels;
}

const egcnn::Kernels& egcnn::cuda::kernels() { return EGCNN_ISA::kernels; }
