"""The edge-gated layer, forward alone and with its gradients."""

from __future__ import annotations

import pytest
import torch

from egcnn import ops


@pytest.mark.parametrize("gate", ["voxel", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last_3d"])
@pytest.mark.parametrize("what", ["forward", "both"])
def test_edge_gate(measure, quick: bool, gate: str, dtype, layout: str, what: str) -> None:
    channels, size = (8, (16, 24, 24)) if quick else (32, (80, 96, 64))
    memory_format = getattr(torch, layout)
    e, m = (
        torch.randn(1, channels, *size)
        .to(dtype, memory_format=memory_format)
        .requires_grad_(what == "both")
        for _ in range(2)
    )
    gates = channels if gate == "channel" else 1
    weights = [torch.randn(gates, channels) * 0.1 for _ in range(2)] + [torch.zeros(gates)]
    weights = [w.requires_grad_(what == "both") for w in weights]
    grad = torch.randn_like(e)

    def run() -> None:
        out = ops.edge_gate(e, m, *weights)
        if what == "both":
            torch.autograd.grad(out, [e, m, *weights], grad)

    # Forward reads e and m and writes out; backward reads both and the gradient, writes two.
    measure(run, e.nbytes * (3 if what == "forward" else 3 + 5))
