// The edge gate at one voxel (Eqs. 1 and 2).
#pragma once

#include "../math/common.h"

namespace egcnn::math {

// alpha from the sum of both 1x1x1 convolutions and the bias.
template <class T>
EGCNN_MATH T gate(T sum, bool relu) {
  return sigmoid(relu && !(sum > T(0)) ? T(0) : sum);
}

// d alpha / d sum; the slope of ReLU at 0 is 0, as in PyTorch.
template <class T>
EGCNN_MATH T gate_slope(T sum, T alpha, bool relu) {
  return relu && !(sum > T(0)) ? T(0) : alpha * (T(1) - alpha);
}

}  // namespace egcnn::math
