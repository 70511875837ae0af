"""Edge targets in two spaces: a box of thick slices by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.edge_space import measure


def test_a_box_of_thick_slices() -> None:
    labels = np.zeros((30, 40, 44), np.uint8)
    labels[10:20, 12:28, 12:32] = 1
    found = measure(labels, np.diag([5.0, 1, 1, 1]), (1, 2))
    # Two voxels on each flat face; the slices at 1 mm are the same box.
    assert found["slice"] == 5
    assert (found["across_own"], found["across_mm"]) == (10, 2)
    assert (found["along_own"], found["along_mm"]) == (2, 2)
    assert found["edges_own"] == pytest.approx(1 - 8 * 14 * 18 / (10 * 16 * 20))
    assert found["edges_mm"] < found["edges_own"]
    assert found["without_own"] == found["without_mm"] == 0
    assert found["parts"] == 1
    assert 0.5 < found["f1_to_own"] < 1
    assert 0.5 < found["f1_to_mm"] < 1


def test_the_same_space() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[4:8, 4:8, 4:6] = 2
    found = measure(labels, np.eye(4), (2,))
    assert found["f1_to_mm"] == found["f1_to_own"] == found["edges_own"] == 1
    assert found["without_own"] == found["parts"] == 1
