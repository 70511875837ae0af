"""The operator tests run on the CPU kernels, the CUDA kernels and, without a GPU, the CUDA sources
compiled for the CPU (``tests/cuda_on_cpu``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from egcnn.ops import _backend, _tensors

from ..cuda_on_cpu.build import ARCHITECTURE, build_module


def load_cuda_on_cpu(architecture: int) -> ModuleType:
    """The bindings with the CUDA sources behind them, for CPU tensors."""
    path = build_module(architecture=architecture)
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cuda_on_cpu() -> ModuleType:
    """The CUDA sources as compiled for the stand-in's usual architecture."""
    return load_cuda_on_cpu(ARCHITECTURE)


# Without a GPU its cases are not collected: they would be thousands of skips.
DEVICES = ["cpu", "cuda_on_cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device of the test's tensors, for which the kernels under test are used.

    Even small volumes are distributed over threads.
    """
    monkeypatch.setattr(_tensors, "GRAIN", 1)
    if request.param == "cpu" and (why := _backend._why_not_native("cpu")):
        pytest.fail(f"the reference would be compared with itself: {why}")
    if request.param == "cuda_on_cpu":
        monkeypatch.setattr(_backend, "_C", request.getfixturevalue("cuda_on_cpu"))
    if request.param == "cuda" and (why := _backend._why_not_native("cuda")):
        pytest.skip(why)
    device = "cuda" if request.param == "cuda" else "cpu"
    with torch.device(device):
        yield device


@pytest.fixture
def cpu_kernels(request: pytest.FixtureRequest) -> None:
    """For tests of CPU-only behaviour, or of sizes that take minutes on the stand-in."""
    if request.node.callspec.params["device"] != "cpu":
        pytest.skip("a test of the CPU's kernels")
