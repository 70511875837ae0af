// 3D Sobel at one voxel (section 2.1): smoothing [1, 2, 1], difference [-1, 0, 1], scaled by 1/16.
#pragma once

#include "common.h"

namespace egcnn::math {

// Unscaled smoothing and difference of a voxel and its two neighbours along one axis, of numbers or
// vectors.
template <class T>
EGCNN_MATH T smooth(T before, T at, T after) {
  return before + 2 * at + after;
}

template <class T>
EGCNN_MATH T difference(T before, T after) {
  return after - before;
}

// Scaled magnitude of an unscaled gradient, given as the sum of its squares or by component.
template <class T>
EGCNN_MATH T sobel_magnitude(T squared) {
  return sqrt(squared * T(1.0 / 256));
}

template <class T>
EGCNN_MATH T sobel_magnitude(T gz, T gy, T gx) {
  return sobel_magnitude(gz * gz + gy * gy + gx * gx);
}

// The largest unscaled, squared gradient of a binary region, up to 3 * 16^2, whose magnitude is not
// above the threshold.
EGCNN_MATH int sobel_largest_below(float threshold) {
  int squared = 0;
  while (squared < 768 && !(sobel_magnitude(float(squared + 1)) > threshold)) ++squared;
  return squared;
}

// d magnitude / d g is g times this; at 0 it is 0.
template <class T>
EGCNN_MATH T sobel_slope(T magnitude) {
  return magnitude > T(0) ? T(1.0 / 256) / magnitude : T(0);
}

}  // namespace egcnn::math
