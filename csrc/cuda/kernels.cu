// The table of the CUDA kernels.
#include "../ops.h"

namespace egcnn::cuda {

#define EGCNN_OPERATOR(name, Params)      \
  size_t name##_workspace(const Params&); \
  void name##_launch(const Params&);
#define EGCNN_CPU_OPERATOR(name, Params)
#include "../operators.inc"
#undef EGCNN_OPERATOR

const Kernels& kernels() {
  static const Kernels table = {
      "cuda",
#define EGCNN_OPERATOR(name, Params) {name##_workspace, name##_launch},
#define EGCNN_CPU_OPERATOR(name, Params) {},
#include "../operators.inc"
#undef EGCNN_OPERATOR
  };
  return table;
}

}  // namespace egcnn::cuda
