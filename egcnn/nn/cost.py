"""Cost of a network: parameters, and multiply-adds of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import egcnn.ops  # noqa: F401  # registers the operator whose formula is below


class Cost(NamedTuple):
    """Number of parameters, and multiply-adds of convolutions and edge gates."""

    parameters: int
    multiply_adds: int


@register_flop_formula([torch.ops.egcnn.edge_gate, torch.ops.egcnn.edge_gate_upsampled])
def _edge_gate(e: Any, m: Any, weight_e: Any, weight_m: Any, *_: Any, **__: Any) -> int:
    """Operations of both 1x1x1 convolutions, the product and the residual; a multiply-add is 2.

    Interpolation is not counted, as elsewhere in a network.
    """
    channels = e[1]
    batch, _, *size = m
    voxels = batch * torch.Size(size).numel()
    return 2 * voxels * (weight_e[0] * (weight_e[1] + weight_m[1]) + channels)


def cost(network: nn.Module, shape: Sequence[int]) -> Cost:
    """Count without computing: ``network`` may hold its parameters on the ``meta`` device.

    Args:
        network: a module that takes an image ``(B, C, D, H, W)``.
        shape: shape of that image.
    """
    like = next(network.parameters())
    image = torch.empty(tuple(shape), device=like.device, dtype=like.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(image)
    count = sum(parameter.numel() for parameter in network.parameters())
    return Cost(count, counter.get_total_flops() // 2)
