// Gumbel-softmax at one voxel (Eq. 8; Jang et al., 2016).
#pragma once

#include "../math/common.h"
#include "../math/philox.h"

namespace egcnn::math {

// Standard Gumbel noise.
template <class T>
EGCNN_MATH T gumbel(T uniform) {
  return -log(-log(uniform));
}

// Standard logistic noise, the difference of two Gumbel variables, for the two-class form.
template <class T>
EGCNN_MATH T logistic(T uniform) {
  return log(uniform) - log1p(-uniform);
}

}  // namespace egcnn::math
