"""The attention maps of the edge gates, which a forward pass does not return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from egcnn.nn.edge_stream import EdgeGate


@contextmanager
def attention_maps(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention maps (Eq. 1) of each forward pass within the block.

    They are computed beside the fused operators, which do not write them. A compiled network
    collects nothing, unless its ``forward`` is run.

    Args:
        network: any network; without edge gates, nothing is collected.

    Yields:
        a list to which a forward pass appends a map for each gate, from the coarsest resolution to
        the finest: the mean over the channels of alpha, ``(B, 1, D, H, W)``, without gradient.
    """
    maps: list[Tensor] = []

    def collect(gate: Any, inputs: tuple[Tensor, Tensor], _: Tensor) -> None:
        with torch.no_grad():
            maps.append(gate.attention(*inputs).mean(1, keepdim=True))

    gates = [module for module in network.modules() if isinstance(module, EdgeGate)]
    hooks = [gate.register_forward_hook(collect) for gate in gates]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
