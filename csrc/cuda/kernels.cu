// The table of the CUDA kernels.
#include "../ops.h"

namespace egcnn::cuda {

#define EGCNN_OPERATOR(name, Params)      \
  size_t name##_workspace(const Params&); \
  void name##_launch(const Params&);
#include "../operators.inc"
#undef EGCNN_OPERATOR

const Kernels& kernels() {
  static const Kernels table = {
      "cuda",
#define EGCNN_OPERATOR(name, Params) {name##_workspace, name##_launch},
#include "../operators.inc"
#undef EGCNN_OPERATOR
  };
  return table;
}

}  // namespace egcnn::cuda
