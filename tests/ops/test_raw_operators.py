"""The operators themselves, torch.ops.egcnn: operands that do not fit are refused, none is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from egcnn.errors import InputError

X = torch.zeros(1, 2, 3, 4, 5)
LABELS = torch.zeros(1, 1, 3, 4, 5, dtype=torch.uint8)
SEED = torch.tensor(1)
GATE = (X, X, torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2), True)
COARSE = (X[..., 1:, 1:], *GATE[1:])
CONSISTENCY = (X, LABELS, SEED, 0.5, True, "softmax", "gt")
EDGES = torch.ones(1, 2, dtype=torch.int64)
CANDIDATES = torch.ones(1, 3, 4, 0, dtype=torch.int32)
NORM = (X, torch.zeros(2), torch.zeros(2), 2, 1e-5)
NORM_BACKWARD = (X, *NORM[:3], torch.zeros(1, 2), torch.zeros(1, 2), 2)
BACKWARD = (torch.tensor(1.0), *CONSISTENCY[:3], EDGES, CANDIDATES, *CONSISTENCY[3:])

LOSS = (X, X, LABELS, SEED, False, [1, 2], [1, 1], 0.5, True, 0.0)
LOSS_GRADS = (torch.ones(1, 2, 3), torch.ones(1, 2, 5), torch.tensor(1.0))


def changed(arguments: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*arguments[:place], value, *arguments[place + 1 :])


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("sobel_edges", (X[0], [], [], 0.0), "labels is float32 of .*expected five dim"),
        ("sobel_edges", (X, [1], [1], 0.0), "labels is float32"),
        ("sobel_edges", (LABELS, [1], [1, 10**9], 0.0), "counts that add up to the entries"),
        ("sobel_edges", (LABELS, [1], [2, -1], 0.0), "counts that add up to the entries"),
        ("sobel_edges", (X.byte(), [1], [1], 0.0), "labels is uint8 of .*one channel"),
        ("sobel_magnitude", (X.flatten(),), "x is float32 of shape .120,.*five dimensions"),
        ("sobel_magnitude", (X.byte(),), "x is uint8"),
        ("sobel_magnitude_backward", (X[..., :1], X), "grad is float32 of shape"),
        ("sobel_magnitude_backward", (X.double(), X), "grad is float64 of shape"),
        ("edge_gate", changed(GATE, 1, X[..., :1]), "m is float32 of shape"),
        ("edge_gate", changed(GATE, 1, X.half()), "m is float16 of shape"),
        ("edge_gate", changed(GATE, 2, torch.zeros(2, 1)), "weight_e is float32 of shape"),
        ("edge_gate", changed(GATE, 3, torch.zeros(2, 3)), "weight_m is float32 of shape"),
        ("edge_gate", changed(GATE, 4, torch.zeros(3)), "bias is float32 of shape"),
        ("edge_gate", changed(GATE, 4, torch.zeros(2).half()), "bias is float16 of shape"),
        ("edge_gate_backward", (X[:, :1], *GATE), "grad is float32 of shape"),
        ("edge_gate_upsampled", changed(COARSE, 0, X[0]), "e is float32 of .*expected five dim"),
        ("edge_gate_upsampled", changed(COARSE, 0, X[:, :, :0]), "e is float32 of .*expected vox"),
        ("edge_gate_upsampled", changed(COARSE, 0, torch.cat([X, X])), "e is .*and the batch of"),
        ("edge_gate_upsampled", changed(COARSE, 1, X[:, :, :0]), "m is float32 of .*expected vox"),
        ("edge_gate_upsampled", changed(COARSE, 1, X.half()), "e is float32 of .*the type of m"),
        ("edge_gate_upsampled", changed(COARSE, 3, torch.zeros(2, 3)), "weight_m is float32 of"),
        ("edge_gate_upsampled_backward", (X[..., :4], *COARSE), "grad is float32 of shape"),
        ("gumbel_consistency", changed(CONSISTENCY, 1, LABELS[..., :1]), "target is uint8 of"),
        ("gumbel_consistency", changed(CONSISTENCY, 1, LABELS.float()), "target is float32 of"),
        ("gumbel_consistency", changed(CONSISTENCY, 2, SEED.int()), "seed is int32 of"),
        ("gumbel_consistency", changed(CONSISTENCY, 2, torch.ones(0).long()), "seed is int64 of"),
        ("gumbel_consistency", changed(CONSISTENCY, 5, "sigmoid"), "target is uint8 of shape"),
        ("gumbel_consistency", changed(CONSISTENCY, 0, X[0]), "logits is float32 of"),
        ("gumbel_consistency_backward", changed(BACKWARD, 4, EDGES[:, :1]), "edges is int64 of"),
        ("gumbel_consistency_backward", changed(BACKWARD, 5, EDGES), "candidates is int64 of"),
        ("gumbel_consistency_backward", changed(BACKWARD, 0, torch.ones(0)), "grad is float32 of"),
        ("group_norm_relu", changed(NORM, 0, X[0]), "x is float32 of .*expected five dim"),
        ("group_norm_relu", changed(NORM, 0, X.int()), "x is int32 of"),
        ("group_norm_relu", changed(NORM, 1, torch.zeros(3)), "weight is float32 of shape"),
        ("group_norm_relu", changed(NORM, 2, torch.zeros(2).half()), "bias is float16 of shape"),
        ("group_norm_relu", changed(NORM, 3, 3), "expected a divisor of the 2 channels of x"),
        ("group_norm_relu", changed(NORM, 3, 0), "expected a divisor of the 2 channels of x"),
        ("group_norm_relu_backward", changed(NORM_BACKWARD, 0, X[..., :1]), "grad is float32 of"),
        ("group_norm_relu_backward", changed(NORM_BACKWARD, 4, torch.zeros(2)[:1]), "mean is floa"),
        ("region_sums", (X, X, False, False), "target is float32 of .*2 channels of bool"),
        ("region_sums", (X, LABELS, False, False), "target is uint8 of .*2 channels of bool"),
        ("region_sums", (X.byte(), X.byte(), False, False), "logits is uint8 of .*a float type"),
        ("region_sums", (X, X.byte(), True, True), "entropy is True; expected False with softmax"),
        ("region_sums_backward", (torch.ones(6), X.double(), X.byte(), False, False), "grad is"),
        ("region_sums_backward", (torch.ones(6), X, X.byte(), False, True), "grad is float32 of"),
        ("loss_sums", changed(LOSS, 0, X[0]), "logits is float32 of .*expected five dim"),
        ("loss_sums", changed(LOSS, 1, X.half()), "edge_logits is float16 of .*the type of the"),
        ("loss_sums", changed(LOSS, 1, torch.cat([X, X], 1)), "edge_logits is float32 of"),
        ("loss_sums", changed(LOSS, 2, LABELS.float()), "labels is float32 of"),
        ("loss_sums", changed(LOSS, 3, torch.ones(3).long()), "seed is int64 of"),
        ("loss_sums", changed(LOSS, 5, [1]), "counts that add up to the entries"),
        ("loss_sums", changed(changed(LOSS, 5, [1]), 6, [1]), "expected none, or as many as chan"),
        ("loss_sums_backward", (*LOSS_GRADS, EDGES[:, :1], *LOSS), "edges is int64 of"),
        ("loss_sums_backward", (LOSS_GRADS[1], *LOSS_GRADS[1:], EDGES, *LOSS), "grad_sums is"),
    ],
)
def test_operands_that_do_not_fit(operator: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(torch.ops.egcnn, operator)(*arguments)
