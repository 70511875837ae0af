"""Sobel edges and magnitude: training sizes, real masks, cliffs, and one voxel to 512^3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import (
    Case,
    cliff_cases,
    cube,
    edge_case,
    magnitude_case,
    real_files,
    real_labels,
    sizes,
)

ORGANS = {"KiTS19": [(1, 2), (2,)], "hippocampus": [(1,), (2,)]}


def cases(device: torch.device, quick: bool) -> list[Case]:
    s = sizes(device, quick)
    edges, magnitude = partial(edge_case, device), partial(magnitude_case, device)
    return [
        edges(s.edges, "masks"),
        edges(s.edges, "labels"),
        edges(s.edges, "random masks", group="size"),
        edges((1, 3, *s.patch), "masks", group="size"),
        edges((s.batch[0], 3, *s.batch[1:]), "masks", group="size"),
        *(
            edges(
                (1, 2, *size),
                f"{name} labels",
                group="real",
                labels=partial(real_labels, path, device),
                regions=ORGANS[name],
            )
            for name, (path, size) in real_files().items()
        ),
        magnitude(s.magnitude),
        magnitude((1, 4, *s.patch), group="size"),
        *cliff_cases(partial(edges, kind="masks"), s.edges, torch.uint8),
        *cliff_cases(magnitude, s.magnitude),
        *(
            edges(
                (1, 1, n, n, n),
                "masks",
                group="sweep",
                labels=partial(cube, n, device),
                regions=[(1, 2, 3)],
            )
            for n in s.cubes(512)
        ),
    ]


def test_sobel(measure: Callable[[], None]) -> None:
    measure()
