"""The total loss at a training patch of three nested regions: time and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import LAST, Case, loss_case, sizes


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    make = partial(loss_case, device)
    return [
        make(s.sums),
        make(s.sums, torch.bfloat16, LAST, group="size"),  # as it is trained
        make((2, 3, *s.patch), group="size"),
    ]


def test_total_loss(measure: Callable[[], None]) -> None:
    measure()
