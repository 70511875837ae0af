"""The sums of the Dice and edge losses, at a training patch of three regions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import Case, cliff_cases, sizes, sums_case


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    make = partial(sums_case, device)
    return [
        make(s.sums),
        make((1, 3, *s.patch), group="size"),
        *cliff_cases(make, s.sums),
        *(make((1, 3, n, n, n), group="sweep") for n in s.cubes(256)),
    ]


def test_region_sums(measure: Callable[[], None]) -> None:
    measure()
