// The table of the CPU kernels of one instruction set.
#include <cstddef>

#include "../ops.h"

namespace egcnn::EGCNN_ISA {

#define EGCNN_OPERATOR(name, Params)      \
  size_t name##_workspace(const Params&); \
  void name##_launch(const Params&);
#include "../operators.inc"
#undef EGCNN_OPERATOR

#define EGCNN_STRING(text) #text
#define EGCNN_NAME(isa) EGCNN_STRING(isa)

extern const Kernels kernels;
const Kernels kernels = {
    EGCNN_NAME(EGCNN_ISA),
#define EGCNN_OPERATOR(name, Params) {name##_workspace, name##_launch},
#include "../operators.inc"
#undef EGCNN_OPERATOR
};

}  // namespace egcnn::EGCNN_ISA
