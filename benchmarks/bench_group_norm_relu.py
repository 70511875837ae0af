"""GroupNorm with ReLU, fp32 and bf16, in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import LAST, Case, cliff_cases, norm_case, sizes


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    make = partial(norm_case, device)
    # The sizes of a small Seg-Net's training, from the finest resolution to the coarsest.
    batch = s.batch[0]
    small = [(batch, 8 * 2**i, *(n // 2**i for n in s.patch)) for i in range(4)]
    return [
        make(s.norm, memory_format=LAST),
        make(s.norm, torch.bfloat16, LAST),
        make(s.norm, group="size"),
        make(s.norm, torch.bfloat16, group="size"),
        *(make(shape, torch.bfloat16, LAST, group="size") for shape in small),
        *cliff_cases(make, s.norm),
    ]


def test_group_norm_relu(measure: Callable[[], None]) -> None:
    measure()
