"""What pictures show of label maps and edges, by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from egcnn.data import BRATS, LAYOUTS
from egcnn.panels import (
    DISAGREEMENT,
    LEVELS,
    OPACITY,
    PALETTE,
    disagreement,
    edge_codes,
    edge_colours,
    grey,
    painted,
    region_codes,
    region_colours,
    rgb,
    true_edges,
)
from egcnn.regions import Regions

CLASSES = Regions(("background", "a", "b"), ((0,), (3,), (1,)), "softmax", ignore_index=7)


def test_codes_are_of_the_innermost_region() -> None:
    # WT, TC and ET hold 2, 1 and 4.
    assert region_codes(np.array([0, 2, 1, 4]), BRATS).tolist() == [0, 1, 2, 3]
    assert region_codes(np.array([0, 3, 1, 7]), CLASSES).tolist() == [0, 1, 2, 0]


def test_disagreement_tells_missed_from_added() -> None:
    truth, prediction = np.array([0, 3, 0, 3, 7, 1]), np.array([0, 0, 1, 1, 3, 1])
    assert disagreement(truth, prediction, CLASSES).tolist() == [0, 1, 2, 3, 0, 0]


def test_edge_codes_hold_region_and_level() -> None:
    edges = np.array([[0.0, 1.0, 0.2, 0.02, 0.7], [0.0, 0.5, 0.8, 0.0, 0.7]])
    codes = edge_codes(edges)
    assert codes.tolist() == [0, 15, LEVELS + 12, 0, LEVELS + 10]
    table = edge_colours(["#ff0000", "#00ff00"])
    assert len(table) == 2 * LEVELS
    assert table[codes[1] - 1] == (255, 0, 0)
    assert table[codes[2] - 1] == (0, 204, 0)
    assert edge_colours(["#ff0000", "#00ff00"], 2) == table
    assert edge_colours(["#ff0000", "#00ff00"], 1)[-1] == (255, 255, 255)


def test_true_edges_are_those_of_the_reported_regions() -> None:
    labels = np.zeros((6, 6, 6), np.int16)
    labels[:3] = 3
    edges = true_edges(labels, CLASSES)
    assert edges.shape == (2, 6, 6, 6)
    assert edges[0, :, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert not edges[1].any()


def test_grey_and_painted() -> None:
    shades = grey(np.array([[-5.0, 0.0, 5.0, 10.0]]), (0.0, 10.0))
    assert shades.tolist() == [[0, 0, 128, 255]]
    picture = painted(shades, np.array([[0, 1, 2, 0]], np.uint8), ["#ff0000", "#0000ff"])
    assert picture[0].tolist() == [
        [0, 0, 0],
        [round(OPACITY * 255), 0, 0],
        [45, 45, 45 + round(OPACITY * 255)],
        [255, 255, 255],
    ]


def test_colours_by_name_and_from_the_palette() -> None:
    first, second = region_colours(CLASSES, {"b": "#102030"})
    assert rgb(second) == (16, 32, 48)
    assert rgb(first) != rgb(second)


# What linear red, green and blue become for readers without one kind of cones (Machado, Oliveira,
# Fernandes 2009, severity 1).
VISION = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour: str, vision: str) -> np.ndarray:
    """A colour in CIELAB as somebody sees it; distances of 10 and more are plainly different."""
    srgb = np.array(rgb(colour)) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_by_colour_blind_readers(vision: str) -> None:
    sets = [layout.colours.values() for layout in LAYOUTS.values()]
    for colours in (*sets, DISAGREEMENT.values(), PALETTE[:4]):
        for one, other in combinations(colours, 2):
            distance = np.linalg.norm(lab(one, vision) - lab(other, vision))
            assert distance > 15, f"{one} and {other}: {distance:.0f}"
