"""The consistency loss on four classes with about 2 % of edge voxels."""

from __future__ import annotations

import pytest
import torch

from egcnn import ops


@pytest.mark.parametrize("what", ["forward", "both"])
def test_consistency(measure, quick: bool, what: str) -> None:
    size = (16, 24, 24) if quick else (160, 192, 128)
    target = torch.zeros(1, 1, *size, dtype=torch.uint8)
    for value, share in ((1, 0.2), (2, 0.15), (3, 0.1)):
        target[(0, 0, *(slice(int(n / 2 - n * share), int(n / 2 + n * share)) for n in size))] = (
            value
        )
    logits = torch.randn(1, 4, *size, requires_grad=what == "both")

    def run() -> None:
        loss = ops.gumbel_consistency(logits, target, seed=1)
        if what == "both":
            torch.autograd.grad(loss, logits)

    # The labels are read; of the logits only the band around edges need be, so at the least none.
    measure(run, target.nbytes + (logits.nbytes if what == "both" else 0))
