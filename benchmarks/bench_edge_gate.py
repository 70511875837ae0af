"""The edge-gated layer, with one gate per voxel or per channel, fp32 and bf16, in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import LAST, Case, cliff_cases, gate_case, sizes


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    chosen = []
    for gate in ("voxel", "channel"):
        make = partial(gate_case, device, gate=gate)
        channels = s.gate[1]
        chosen += [
            make(s.gate, dtype=torch.float32),
            make(s.gate, dtype=torch.bfloat16, group="size"),
            make(s.gate, dtype=torch.float32, memory_format=LAST, group="size"),
            make((1, channels, *s.patch), dtype=torch.float32, group="size"),
            make((s.batch[0], 16, *s.batch[1:]), dtype=torch.float32, group="size"),
            *cliff_cases(make, s.gate),
        ]
    swept = partial(gate_case, device, gate="voxel", dtype=torch.float32, group="sweep")
    return chosen + [swept((1, 32, n, n, n)) for n in s.cubes(160)]


def test_edge_gate(measure: Callable[[], None]) -> None:
    measure()
