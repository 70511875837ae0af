from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from egcnn.data import BRATS, LAYOUTS
from egcnn.errors import InputError
from egcnn.report import View, training_table, write_picture
from egcnn.terminal import duration


def test_training_table_shows_best_and_last() -> None:
    rows = [
        {"epoch": epoch + 1, "dice": dice, "dice_WT": dice + 0.1, "dice_TC": dice - 0.1}
        for epoch, dice in enumerate((0.2, 0.7, 0.6))
    ]
    console = Console(width=100, record=True)
    console.print(training_table(rows, ["WT", "TC"], 187.2))
    text = console.export_text()
    assert "3 min 07 s" in text
    best, last = (line for line in text.splitlines() if "best" in line or "last" in line)
    assert [part in best for part in ("2", "0.8000", "0.6000", "0.7000")] == [True] * 4
    assert [part in last for part in ("3", "0.7000", "0.5000", "0.6000")] == [True] * 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_picture_shows_each_region_in_its_colour(tmp_path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    inferno = colormaps["inferno"]
    labels = np.zeros((24, 20, 9), np.uint8)
    labels[4:20, 4:16, 4] = 2
    labels[8:16, 7:13, 4] = 1
    labels[10:14, 9:11, 4] = 4
    black = np.zeros(labels.shape)
    edges = np.zeros((3, *labels.shape))
    views = [
        View("one", black, labels, np.zeros_like(labels), edges, (1, 1, 1)),
        View("two", black, np.zeros_like(labels), labels, None, (1, 2, 1)),
    ]
    path = write_picture(
        views, BRATS, tmp_path / "new" / "picture.png", colours=LAYOUTS["brats"].colours
    )
    pixels = imread(path)[..., :3]
    height, width = pixels.shape[:2]
    assert width > height
    fifth = width // 5
    for place, name, colour in ((1, "WT", "#009e73"), (1, "TC", "#d55e00"), (1, "ET", "#f0e442")):
        shade = 0.65 * np.array(to_rgb(colour))
        panel = pixels[: height // 2, place * fifth : (place + 1) * fifth]
        close = np.abs(panel - shade).max(-1) < 0.01
        assert close.sum() > 50, name
    # The first case's prediction is empty.
    empty = pixels[: height // 2, 2 * fifth : 3 * fifth]
    assert not (np.abs(empty - 0.65 * np.array(to_rgb("#009e73"))).max(-1) < 0.01).any()
    # The fourth panel holds the first case's true edges, in the colour of 1; the fifth its
    # predicted ones, which are 0 everywhere.
    bright = [
        (np.abs(pixels[: height // 2, k * fifth : (k + 1) * fifth] - inferno(255)[:3]) < 0.01)
        .all(-1)
        .sum()
        for k in (3, 4)
    ]
    assert bright[0] > 50
    assert bright[1] == 0
    with pytest.raises(InputError, match="views"):
        write_picture([], BRATS, tmp_path / "none.png")
