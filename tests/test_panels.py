"""What pictures show of label maps and edges, by hand."""

from __future__ import annotations

import numpy as np

from egcnn.data import BRATS
from egcnn.panels import (
    LEVELS,
    OPACITY,
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
