"""The edge-gated layer of an edge stream at half the resolution, interpolated on the way.

The floor, for each output voxel, with C channels in both streams. Bytes: 2C + C/8 elements
forward (m, the output, e) and 3C + C/4 backward (m, the gradient, that of m, e, that of e);
interpolation and gate one after the other move 4C + C/8 and 6C + C/8. Multiply-adds: the
interpolation's 4C, two in depth and height (four rows of half as many elements) and two along the
width, and 4.5C of its adjoint, beside the gate's 2C forward and 6C backward with one attention
value per voxel, or 2C^2 and 6C^2 with one per channel. So the voxel gate is bound by bytes, and
the channel gate by arithmetic from about 16 channels in fp32, on a core of 60 G multiply-adds and
15 GB a second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import LAST, Case, odd, sizes, upsampled_case


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    chosen = []
    for gate in ("voxel", "channel"):
        make = partial(upsampled_case, device, gate=gate)
        chosen += [
            make(s.gate, dtype=torch.float32),
            make(s.gate, dtype=torch.bfloat16, group="size"),
            make(s.gate, dtype=torch.float32, memory_format=LAST, group="size"),
            make(s.gate, dtype=torch.bfloat16, memory_format=LAST, group="size"),
            make(odd(s.gate), dtype=torch.float32, group="size"),
            make((1, 8, *s.patch), dtype=torch.float32, group="size"),
        ]
    return chosen


def test_edge_gate_upsampled(measure: Callable[[], None]) -> None:
    measure()
