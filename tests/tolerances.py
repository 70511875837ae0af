"""The tolerances of all tests."""

from __future__ import annotations

import torch

#: Relative, for float32 results against values by hand: of one voxel, and of sums over some.
BY_HAND = 1e-6
BY_SUM = 1e-5
#: Of a float32 network computed in another order, or by a compiler: layers add up roundings.
REORDERED = 1e-4
#: Of affines and voxel sizes after a NIfTI header, which holds float32.
HEADER = 1e-5
#: Absolute, of a score that was read from a table, or computed on another grid or from the
#: probabilities of a file, which have steps of 1/255.
WRITTEN = 3e-3
#: Absolute, of a score that ranks voxels, by such probabilities of a network that learned little.
RANKED = 1e-2

#: Relative, against the same computed in float64.
# A few units in the last place; long sums are computed in float32 for all types but float64.
RELATIVE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 1.5e-3,
    torch.bfloat16: 1.2e-2,
}

#: Relative to the largest value, of a layer with normalisation or convolution.
LAYER = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def assert_near(result: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare with float64 ``expected``: relative to its size, and to its largest value."""
    assert expected.dtype == torch.float64
    assert result.shape == expected.shape
    tolerance = RELATIVE[dtype]
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        result.double(), expected, rtol=tolerance, atol=tolerance * scale + 1e-300
    )
