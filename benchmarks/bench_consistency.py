"""The consistency loss on four classes with about 2 % edge voxels, and on real masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import (
    Case,
    cliff_cases,
    consistency_case,
    cube,
    real_files,
    real_labels,
    sizes,
)

CLASSES = {"KiTS19": 3, "hippocampus": 3}


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    make = partial(consistency_case, device)
    return [
        make(s.consistency),
        make((1, 4, *s.patch), group="size"),
        make((s.batch[0], 4, *s.batch[1:]), group="size"),
        *(
            make(
                (1, CLASSES[name], *size),
                group="real",
                labels=partial(real_labels, path, device),
                label=f" {name}",
            )
            for name, (path, size) in real_files().items()
        ),
        *cliff_cases(make, s.consistency),
        *(
            make((1, 4, n, n, n), group="sweep", labels=partial(cube, n, device))
            for n in s.cubes(384)
        ),
    ]


def test_consistency(measure: Callable[[], None]) -> None:
    measure()
