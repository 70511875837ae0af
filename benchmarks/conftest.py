"""Benchmarks: ``pytest benchmarks`` times each operator against its plain PyTorch reference.

``--quick`` takes small volumes and few rounds. Times are medians; compare rows of one run only,
since machines are noisy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from egcnn import ops


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small volumes, few rounds")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(params=["native", "reference"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def measure(benchmark: Any, provider: str, quick: bool) -> Callable[..., None]:
    """``measure(run, bytes)``: time ``run()`` served by ``provider``.

    ``bytes`` is the least that the operation has to move through memory; the bandwidth that it
    makes is written beside the time, next to that of a plain copy taken in the same breath.
    """

    def run(function: Callable[[], object], minimum_bytes: int) -> None:
        benchmark.extra_info["copy GB/s"] = round(copy_bandwidth(), 1)
        rounds = 3 if quick else 15
        if provider == "reference":
            with ops.use_reference():
                benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
        else:
            benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
        median = benchmark.stats.stats.median
        benchmark.extra_info["GB/s"] = round(minimum_bytes / median / 1e9, 2)

    return run


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 64 MB, in GB/s."""
    from time import perf_counter

    source = torch.ones(1 << 24)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = perf_counter()
        target.copy_(source)
        times.append(perf_counter() - start)
    return 2 * source.nbytes / sorted(times)[2] / 1e9
