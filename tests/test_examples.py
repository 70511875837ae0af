"""The examples of the documentation run, and stay short."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


def main_of(name: str) -> Callable[..., Any]:
    if name == "monai_engine":
        pytest.importorskip("ignite")
    main: Callable[..., Any] = runpy.run_path(str(FOLDER / f"{name}.py"))["main"]
    return main


@pytest.mark.parametrize("name", EXAMPLES)
def test_is_under_60_lines(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("operators", {"steps": 2, "size": 8}, 2),
        ("monai_network", {"steps": 2, "size": 24}, 2),
        ("monai_engine", {"epochs": 1, "size": 24, "count": 4}, 2),
    ],
)
def test_runs(name: str, options: dict[str, int], steps: int) -> None:
    losses = main_of(name)(**options)
    if name == "monai_network":
        losses, dice = losses
        assert 0 <= dice <= 1
    assert len(losses) == steps
    assert np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_learns(name: str) -> None:
    np.random.seed(0)
    losses = main_of(name)()
    if name == "monai_network":
        losses, dice = losses
        assert dice > 0.5
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
