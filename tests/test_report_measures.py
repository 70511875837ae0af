"""Errors by distance, precision and recall, and the volumes of the page, by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from egcnn.regions import Regions
from egcnn.report.measures import add_case, measures, near
from egcnn.report.volumes import code_slices, frame, grey_slices, pooled

CLASSES = Regions(("background", "a"), ((0,), (1,)), "softmax", ignore_index=2)


def slab(end: int) -> np.ndarray:
    labels = np.zeros((20, 4, 4), np.uint8)
    labels[:end] = 1
    return labels


def test_errors_lie_where_the_shift_is() -> None:
    sums = measures(CLASSES, 2.0)
    assert sums.width == 2
    assert sums.distances.tolist() == [-9, -7, -5, -3, -1, 1, 3, 5, 7, 9]
    # Slices of 2 mm: the prediction goes on for two of them.
    add_case(sums, slab(10), slab(12), None, CLASSES, (2.0, 1.0, 1.0))
    share = sums.wrong / sums.voxels
    assert share[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert (sums.cases, sums.edge_cases) == (1, 0)
    # Ignored voxels count nowhere, and a case without the region adds nothing.
    truth = slab(10)
    truth[10:12] = 2
    before = sums.wrong.copy()
    add_case(sums, truth, slab(12), None, CLASSES, (2.0, 1.0, 1.0))
    add_case(sums, slab(0), slab(12), None, CLASSES, (2.0, 1.0, 1.0))
    assert (sums.wrong == before).all()


def test_precision_and_recall_at_a_threshold() -> None:
    sums = measures(CLASSES, 1.0)
    truth = slab(10)
    edges = np.zeros((1, *truth.shape), np.float32)
    edges[0, 9] = 0.8  # one of the two true slices
    edges[0, 3] = 0.6  # none
    add_case(sums, truth, truth, edges, CLASSES, (1.0, 1.0, 1.0))
    assert sums.edges.tolist() == [32]
    at = {threshold: 999 - round(1000 * threshold) for threshold in (0.5, 0.7, 0.9)}
    assert [sums.hits[0, at[t]] for t in at] == [16, 16, 0]
    assert [sums.called[0, at[t]] for t in at] == [32, 16, 0]
    assert sums.called[0, -1] == truth.size


def test_near_is_the_box_with_a_margin_in_mm() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[4, 5, 9] = True
    assert near(mask, 2.0, (1.0, 2.0, 4.0)) == (slice(2, 7), slice(4, 7), slice(8, 10))
    assert near(mask & False, 2.0, (1.0, 1.0, 1.0)) == (slice(None),) * 3


def test_frames_are_turned_to_the_patient() -> None:
    # Axes from back to front, top to bottom and right to left, of 1, 2 and 3 mm.
    affine = np.array([[0, 0, -3, 0], [1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]], float)
    image = np.zeros((8, 9, 10))
    image[2:5, 3:6, 4:7] = 1
    image[2, 3, 4] = 2
    part = frame(image, image > 0, affine)
    assert part.spacing == (3, 1, 2)
    shown = part.cut(image)
    # Margins of 6 mm: 2, 6 and 3 voxels; the marked voxel is to the right, behind and on top.
    assert shown.shape == (7, 8, 9)
    assert np.argwhere(shown == 2).tolist() == [[4, 2, 5]]
    assert part.cut(np.stack([image, image])).shape == (2, 7, 8, 9)


def test_a_large_body_is_cut_to_its_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egcnn.report.volumes._MOST_VOXELS", 1000)
    image = np.random.default_rng(0).normal(size=(80, 60, 60))
    foreground = np.zeros(image.shape, bool)
    foreground[40:42, 30, 30] = True
    part = frame(image, foreground, np.eye(4))
    assert part.step > 1
    assert part.cut(image).size <= 1500
    assert part.cut(foreground).any()
    assert part.spacing[0] == part.step


def unpacked(packed: dict) -> np.ndarray:
    head, text = packed["src"].split(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    array = np.asarray(picture)
    (x, y, z), columns = packed["shape"], packed["columns"]
    place = [divmod(slice_, columns) for slice_ in range(z)]
    tiles = [array[row * y : (row + 1) * y, c * x : (c + 1) * x] for row, c in place]
    return np.stack(tiles).transpose(2, 1, 0)


def test_slices_come_back() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (5, 7, 11)).astype(np.uint8)
    packed = code_slices(codes, [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    assert (unpacked(packed) == codes).all()
    smooth = np.tile(np.arange(0, 240, 20, dtype=np.uint8), (16, 8, 1))
    assert np.abs(unpacked(grey_slices(smooth)).astype(int) - smooth).max() < 24


def test_pooled_means_are_of_what_there_is() -> None:
    volume = np.arange(5, dtype=np.float32).reshape(5, 1, 1)
    assert pooled(volume, 2).ravel().tolist() == [0.5, 2.5, 4]
