"""The choice of implementation, also without kernels."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from egcnn import ops
from egcnn.ops import _backend


def test_info_names_what_was_built() -> None:
    info = ops.backend_info()
    assert info["built"] is True
    assert info["serves"]["cpu"] == "native"
    assert info["cpu"] in ("baseline", "avx2", "avx512")
    assert info["compiler"]


def test_without_kernels_the_reference_serves_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(1, 1, 3, 4, 5)
    expected = ops.sobel_magnitude(x)
    monkeypatch.setattr(_backend, "_C", None)
    monkeypatch.setattr(_backend, "_missing", "libfoo.so is not there")
    monkeypatch.setattr(_backend, "_warned", set())
    with pytest.warns(UserWarning, match="libfoo.so is not there.*cpu tensors use"):
        result = ops.sobel_magnitude(x)
    torch.testing.assert_close(result, expected)
    assert ops.backend(x) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.sobel_magnitude(x)


def test_use_reference_is_undone_by_an_exception() -> None:
    x = torch.zeros(1, 1, 1, 1, 1)

    def fail() -> None:
        with ops.use_reference():
            assert ops.backend(x) == "reference"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ops.backend(x) == "native"


def test_operators_import_nothing_heavy() -> None:
    heavy = "monai", "lightning", "nibabel", "matplotlib", "scipy", "typer"
    code = f"import sys, egcnn.ops; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


VOXEL, MASK = torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1, dtype=torch.uint8)
EIGHT = torch.ones(1, 1, 2, 2, 2)
WEIGHTS = torch.ones(1, 1), torch.ones(1, 1), torch.ones(1)
SEED = torch.tensor(1)


@pytest.mark.parametrize(
    ("operator", "most"),
    [
        (lambda: ops.sobel_edges(MASK), 35),
        (lambda: ops.sobel_magnitude(VOXEL), 40),
        (lambda: ops.edge_gate(VOXEL, VOXEL, *WEIGHTS), 65),
        (lambda: ops.edge_gate_upsampled(VOXEL, EIGHT, *WEIGHTS), 75),
        (lambda: ops.gumbel_consistency(VOXEL, MASK, seed=SEED), 62),
        (lambda: ops.region_sums(VOXEL, MASK, activation="sigmoid"), 60),
        (lambda: ops.loss_sums(VOXEL, VOXEL, MASK, activation="sigmoid", seed=SEED).regions, 85),
        (lambda: ops.group_norm_relu(VOXEL, 1, WEIGHTS[2], WEIGHTS[2]), 60),
    ],
    ids=["edges", "magnitude", "gate", "upsampled", "consistency", "sums", "loss", "norm"],
)
def test_a_call_takes_few_steps_of_python(operator: Callable[[], Tensor], most: int) -> None:
    """Which is what the time of a call on a small volume is made of, and does not flutter."""
    operator()
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        operator()
    finally:
        sys.setprofile(None)
    assert calls <= most


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), TypeError, "missing kernel argument x"),
        ((VOXEL,), TypeError, "missing kernel argument out"),
        ((VOXEL, VOXEL, VOXEL), TypeError, "too many arguments"),
        ((VOXEL.to(torch.complex64), VOXEL), TypeError, "no kernel takes torch.complex64"),
        ((VOXEL[0], VOXEL), ValueError, "expected five dimensions"),
        ((torch.ones(1, 2, 3, 4, 5).transpose(1, 2), VOXEL), ValueError, "expected no gaps"),
    ],
)
def test_what_no_kernel_takes(
    arguments: tuple[Tensor, ...], error: type[Exception], message: str
) -> None:
    assert _backend._C is not None
    with pytest.raises(error, match=message):
        _backend._C.cpu.sobel_magnitude(1, 0, 0, torch.empty, *arguments)
