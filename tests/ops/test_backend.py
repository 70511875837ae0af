"""Which implementation serves, and what happens where the kernels are missing."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

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
    with pytest.warns(UserWarning, match="libfoo.so is not there.*reference serves cpu"):
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
