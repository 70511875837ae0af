"""What a network costs: parameters, and the multiply-adds of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import egcnn.ops  # noqa: F401  # defines the operator whose formula stands below


class Cost(NamedTuple):
    """Parameters, and multiply-adds of convolutions and edge gates."""

    parameters: int
    multiply_adds: int


@register_flop_formula(torch.ops.egcnn.edge_gate)
def _edge_gate(e: Any, m: Any, weight_e: Any, weight_m: Any, *_: Any, **__: Any) -> int:
    """Both 1x1x1 convolutions, the product and the residual, in operations (2 a multiply-add)."""
    batch, channels, *size = e
    voxels = batch * torch.Size(size).numel()
    return 2 * voxels * (weight_e[0] * (weight_e[1] + weight_m[1]) + channels)


def cost(network: nn.Module, shape: Sequence[int]) -> Cost:
    """Count without computing: ``network`` may hold its parameters on the ``meta`` device.

    Args:
        network: maps an image ``(B, C, D, H, W)`` to anything.
        shape: of that image.
    """
    like = next(network.parameters())
    image = torch.empty(tuple(shape), device=like.device, dtype=like.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(image)
    count = sum(parameter.numel() for parameter in network.parameters())
    return Cost(count, counter.get_total_flops() // 2)
