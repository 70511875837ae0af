"""Sobel edge targets: a BraTS label map to the edges of its three nested regions."""

from __future__ import annotations

import torch

from egcnn import ops

REGIONS = [(1, 2, 4), (1, 4), (4,)]


def test_label_map(measure, quick: bool) -> None:
    size = (24, 48, 48) if quick else (155, 240, 240)
    labels = torch.zeros(1, 1, *size, dtype=torch.uint8)
    for value, share in ((2, 0.25), (1, 0.15), (4, 0.08)):
        labels[(0, 0, *(slice(int(n / 2 - n * share), int(n / 2 + n * share)) for n in size))] = (
            value
        )
    measure(lambda: ops.sobel_edges(labels, REGIONS), labels.numel() * (1 + len(REGIONS)))


def test_magnitude_and_gradient(measure, quick: bool) -> None:
    size = (16, 24, 24) if quick else (80, 96, 64)
    x = torch.randn(1, 3, *size, requires_grad=True)

    def both() -> None:
        x.grad = None
        ops.sobel_magnitude(x).sum().backward()

    measure(both, x.nbytes * 5)
