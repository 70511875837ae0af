"""Call overhead on volumes of 8x8x8, compared with a native torch operator on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import (
    Case,
    consistency_case,
    cube,
    edge_case,
    gate_case,
    magnitude_case,
    norm_case,
    sums_case,
    upsampled_case,
)

SIZE = (8, 8, 8)


def cases(device: torch.device, quick: bool) -> list[Case]:
    labels = partial(cube, SIZE[0], device)

    def classes() -> Tensor:
        return labels().long()  # as torch's own loss expects them

    call = {"group": "call", "dtype": torch.float32}
    return [
        edge_case(device, (1, 1, *SIZE), "masks", labels=labels, regions=[(1, 2, 3)], **call),
        magnitude_case(device, (1, 1, *SIZE), **call),
        gate_case(device, (1, 8, *SIZE), "voxel", **call),
        gate_case(device, (1, 8, *SIZE), "channel", **call),
        upsampled_case(device, (1, 8, *SIZE), "voxel", **call),
        consistency_case(device, (1, 4, *SIZE), labels=classes, **call),
        norm_case(device, (1, 8, *SIZE), **call),
        sums_case(device, (1, 3, *SIZE), **call),
    ]


def test_call(measure: Callable[[], None]) -> None:
    measure()
