"""Metrics by hand: shifted cubes, anisotropic spacing, empty regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from egcnn.errors import InputError
from egcnn.metrics import METRICS, WORST_HD95, case_metrics, dice, summary
from egcnn.regions import BRATS, Regions

ORGAN = Regions(("background", "organ"), ((0,), (1,)), "softmax")


def cube(start: int, size: int = 4, shape: tuple[int, int, int] = (12, 11, 13)) -> np.ndarray:
    """A cube of label 1 that starts at ``(start, 3, 3)``."""
    labels = np.zeros(shape, np.uint8)
    labels[start : start + size, 3 : 3 + size, 3 : 3 + size] = 1
    return labels


def test_dice_by_hand() -> None:
    prediction = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0]).view(1, 1, 2, 2, 2)
    truth = torch.tensor([0, 1, 1, 1, 1, 1, 0, 0]).view(1, 1, 2, 2, 2)
    empty = torch.zeros_like(truth)
    values = dice(
        torch.cat([prediction, prediction, empty, empty], 1),
        torch.cat([truth, empty, truth, empty], 1),
    )
    assert values.tolist() == [[0.5, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_shifted_cube(spacing: tuple[float, float, float]) -> None:
    got = case_metrics(cube(5), cube(3), ORGAN, spacing)["organ"]
    # 4x4x4 cubes, two voxels apart along the first axis: half of each is common.
    assert got["dice"] == 0.5
    assert got["sensitivity"] == 0.5
    assert got["specificity"] == pytest.approx(1 - 32 / (12 * 11 * 13 - 64))
    # The surface of a cube of 4³ voxels has 4³ - 2³; its distances by brute force.
    points = [np.argwhere(surface(labels)) * spacing for labels in (cube(5), cube(3))]
    assert len(points[0]) == 56
    gaps = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    there, back = gaps.min(1), gaps.min(0)
    assert got["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert got["hd95"] == pytest.approx(2 * spacing[0])
    wanted = ((there <= 1).sum() + (back <= 1).sum()) / 112
    assert got["surface_dice"] == pytest.approx(wanted)


def surface(labels: np.ndarray) -> np.ndarray:
    """Inside voxels with a face to the outside, by looking at the six neighbours."""
    inside = np.pad(labels, 1).astype(bool)
    deep = inside.copy()
    for axis in range(3):
        for step in (1, -1):
            deep &= np.roll(inside, step, axis)
    return (inside & ~deep)[1:-1, 1:-1, 1:-1]


def test_one_voxel_apart_with_anisotropic_spacing() -> None:
    prediction, truth = cube(6, size=1), cube(4, size=1)
    got = case_metrics(prediction, truth, ORGAN, (2.5, 1.0, 1.0))["organ"]
    assert got["hd95"] == pytest.approx(5.0)
    assert got["surface_dice"] == 0.0
    assert (
        case_metrics(prediction, truth, ORGAN, (2.5, 1, 1), tolerance=5.0)["organ"]["surface_dice"]
        == 1.0
    )
    # The Sobel edges of one voxel are its 26 neighbours; the centre has no slope. Bands two voxels
    # apart share the 3x3 voxels between them.
    assert got["edge_f1"] == pytest.approx(9 / 26)


def test_perfect_prediction() -> None:
    got = case_metrics(cube(3), cube(3), ORGAN, (1, 1, 1))["organ"]
    assert got == {name: 0.0 if name == "hd95" else 1.0 for name in METRICS}


def test_empty_conventions() -> None:
    empty = np.zeros((12, 11, 13), np.int16)
    both = case_metrics(empty, empty, ORGAN, (1, 1, 1))["organ"]
    assert both == {name: 0.0 if name == "hd95" else 1.0 for name in METRICS}
    for prediction, truth in ((cube(3), empty), (empty, cube(3))):
        got = case_metrics(prediction, truth, ORGAN, (1, 1, 1))["organ"]
        assert got["hd95"] == WORST_HD95 == 373.13
        assert [got[n] for n in ("dice", "sensitivity", "surface_dice", "edge_f1")] == [0.0] * 4
        wanted = 1 - 64 / empty.size if truth is empty else 1.0
        assert got["specificity"] == pytest.approx(wanted)


def test_truth_without_outside() -> None:
    full = np.ones((3, 4, 5), np.uint8)
    assert case_metrics(full, full, ORGAN, (1, 1, 1))["organ"]["specificity"] == 1.0
    part = full.copy()
    part[0] = 0
    assert case_metrics(part, full, ORGAN, (1, 1, 1))["organ"]["specificity"] == 0.0


def test_nested_regions_and_tensors() -> None:
    truth = np.zeros((9, 9, 9), np.uint8)
    truth[1:8, 1:8, 1:8] = 2
    truth[2:7, 2:7, 2:7] = 1
    truth[3:6, 3:6, 3:6] = 4
    prediction = torch.from_numpy(truth.astype(np.int16))
    prediction[prediction == 4] = 1
    got = case_metrics(prediction, truth, BRATS, (1, 1, 1))
    assert list(got) == ["WT", "TC", "ET"]
    assert [got[name]["dice"] for name in got] == [1.0, 1.0, 0.0]


def test_background_is_not_reported() -> None:
    assert list(case_metrics(cube(3), cube(3), ORGAN, (1, 1, 1))) == ["organ"]


def test_summary() -> None:
    rows = [{"organ": {"dice": value, "hd95": 4.0}} for value in (0.5, 0.7, 0.9)]
    assert summary(rows)["organ"] == {
        "dice": (pytest.approx(0.7), pytest.approx(0.2)),
        "hd95": (4.0, 0.0),
    }
    assert summary(rows[:1])["organ"]["dice"] == (0.5, 0.0)
    with pytest.raises(InputError, match="no case"):
        summary([])


def test_rejections() -> None:
    labels = cube(3)
    with pytest.raises(InputError, match="wanted one shape"):
        case_metrics(labels, labels[1:], ORGAN, (1, 1, 1))
    with pytest.raises(InputError, match="prediction is float64"):
        case_metrics(labels.astype(float), labels, ORGAN, (1, 1, 1))
    with pytest.raises(InputError, match=r"wanted an integer label map \(D, H, W\)"):
        case_metrics(labels[0], labels[0], ORGAN, (1, 1, 1))
    with pytest.raises(InputError, match="three positive numbers"):
        case_metrics(labels, labels, ORGAN, (1, 0, 1))
    with pytest.raises(InputError, match=r"\(B, R, D, H, W\)"):
        dice(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 3))
