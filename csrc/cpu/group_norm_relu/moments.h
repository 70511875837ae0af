// The mean and variance of parts of a group, put together in double.
#pragma once

#include "../simd/isa.h"

namespace egcnn::EGCNN_ISA {

// Joins the mean of `count` values, and the squares of their distances from it, to those of others
// (Chan, Golub and LeVeque, 1979).
class JoinMoments {
 public:
  JoinMoments(double others, double count)
      : share_(count / (others + count)), product_(others * share_) {}

  void operator()(double mean, double squares, double& joint_mean, double& joint_squares) const {
    const double difference = mean - joint_mean;
    joint_mean += difference * share_;
    joint_squares += squares + difference * difference * product_;
  }

 private:
  double share_, product_;
};

}  // namespace egcnn::EGCNN_ISA
