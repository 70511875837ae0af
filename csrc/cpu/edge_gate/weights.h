// Weights and bias of all gates as one array, and the sums of their gradients.
#pragma once

#include <cstdint>

#include "../../ops.h"
#include "plan.h"

namespace egcnn::EGCNN_ISA {

// W, row after row, and then b.
template <class Acc>
static void pack_weights(const EdgeGate& p, Acc* packed) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  for (int64_t g = 0; g < p.gates; ++g) {
    const Acc* weight_e = static_cast<const Acc*>(p.weight_e) + g * ce;
    const Acc* weight_m = static_cast<const Acc*>(p.weight_m) + g * cm;
    for (int64_t c = 0; c < ce; ++c) *packed++ = weight_e[c];
    for (int64_t c = 0; c < cm; ++c) *packed++ = weight_m[c];
  }
  for (int64_t g = 0; g < p.gates; ++g) *packed++ = static_cast<const Acc*>(p.bias)[g];
}

// dW and db are summed in two stages: within chunks, whose number depends only on the sizes, then
// over the chunks in order. So the result does not depend on the number of threads.
template <class Acc>
static void sum_chunks(const EdgeGateBackward& p, const EdgeGatePlan& plan, const double* partial) {
  const int64_t ce = p.size.channels, cm = p.main_channels;
  const auto total = [&](int64_t i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sum += partial[chunk * plan.weights + i];
    return Acc(sum);
  };
  for (int64_t g = 0; g < p.gates; ++g) {
    const int64_t row = g * plan.inputs;
    Acc* to_e = static_cast<Acc*>(p.grad_weight_e) + g * ce;
    Acc* to_m = static_cast<Acc*>(p.grad_weight_m) + g * cm;
    for (int64_t c = 0; c < ce; ++c) to_e[c] = total(row + c);
    for (int64_t c = 0; c < cm; ++c) to_m[c] = total(row + ce + c);
    static_cast<Acc*>(p.grad_bias)[g] = total(p.gates * plan.inputs + g);
  }
}

}  // namespace egcnn::EGCNN_ISA
