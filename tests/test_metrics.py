"""Metrics by hand: shifted cubes, anisotropic spacing, empty regions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from egcnn import ops
from egcnn.data import BRATS
from egcnn.errors import InputError
from egcnn.metrics import (
    COLUMNS,
    EDGE_METRICS,
    VOXEL_METRICS,
    WORST_HD95,
    case_metrics,
    dice,
    edge_scores,
    summary,
)
from egcnn.regions import Regions

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
    expected = ((there <= 1).sum() + (back <= 1).sum()) / 112
    assert got["surface_dice"] == pytest.approx(expected)


def surface(labels: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face to the outside, by brute force."""
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
    assert got["sobel_f1"] == pytest.approx(9 / 26)


def test_perfect_prediction() -> None:
    got = case_metrics(cube(3), cube(3), ORGAN, (1, 1, 1))["organ"]
    assert list(got) == list(COLUMNS)
    assert {m: got[m] for m in VOXEL_METRICS} == {
        m: 0.0 if m == "hd95" else 1.0 for m in VOXEL_METRICS
    }
    assert {m: got[f"sobel_{m}"] for m in EDGE_METRICS} == {
        m: 0.0 if m == "interior" else 1.0 for m in EDGE_METRICS
    }
    assert all(math.isnan(got[f"edge_{m}"]) for m in EDGE_METRICS)


def test_empty_conventions() -> None:
    empty = np.zeros((12, 11, 13), np.int16)
    both = case_metrics(empty, empty, ORGAN, (1, 1, 1))["organ"]
    assert {m: both[m] for m in VOXEL_METRICS} == {
        m: 0.0 if m == "hd95" else 1.0 for m in VOXEL_METRICS
    }
    assert both["sobel_f1"] == 1
    assert math.isnan(both["sobel_thickness"])
    for prediction, truth in ((cube(3), empty), (empty, cube(3))):
        got = case_metrics(prediction, truth, ORGAN, (1, 1, 1))["organ"]
        assert got["hd95"] == WORST_HD95 == 373.13
        assert [got[n] for n in ("dice", "sensitivity", "surface_dice", "sobel_f1")] == [0.0] * 4
        expected = 1 - 64 / empty.size if truth is empty else 1.0
        assert got["specificity"] == pytest.approx(expected)


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


def brute_force(probabilities: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """``edge_scores`` by definition, threshold by threshold."""
    truth = ops.sobel_edges(torch.from_numpy(mask)[None, None])[0, 0].numpy() > 0
    inside = (mask > 0) & ~truth

    def at(threshold: float) -> tuple[float, float, float]:
        found = probabilities >= threshold
        hits = (found & truth).sum()
        return (
            2 * hits / (found.sum() + truth.sum()),
            hits / max(1, found.sum()),
            hits / truth.sum(),
        )

    scores = [at(level / 1000) for level in reversed(range(1000))]
    recalls = [0.0, *(recall for _, _, recall in scores)]
    return {
        "f1": at(0.5)[0],
        "best_f1": max(f1 for f1, _, _ in scores),
        "average_precision": sum(
            precision * (recall - before)
            for (_, precision, recall), before in zip(scores, recalls[:-1], strict=True)
        ),
        "thickness": (probabilities >= 0.5).sum() / truth.sum(),
        "interior": ((probabilities >= 0.5) & inside).sum() / inside.sum(),
    }


def test_edge_scores_against_every_threshold() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([cube(2, size=6), cube(4, size=5)])
    truth = ops.sobel_edges(torch.from_numpy(masks)[None])[0].numpy()
    # Multiples of 1/1000 and half a step, so that rounding moves no voxel over a threshold.
    noise = rng.integers(0, 600, truth.shape)
    probabilities = ((noise + 350 * (truth > 0) + 0.5) / 1000).astype(np.float32)
    got = edge_scores(torch.from_numpy(probabilities)[None], torch.from_numpy(masks)[None])
    assert list(got) == list(EDGE_METRICS)
    for region in range(2):
        expected = brute_force(probabilities[region].astype(np.float64), masks[region])
        for name, values in got.items():
            assert values.shape == (1, 2)
            assert float(values[0, region]) == pytest.approx(expected[name]), name
    assert 0 < float(got["interior"][0, 0]) < 1


def test_a_filled_region_is_no_edge() -> None:
    mask = torch.from_numpy(cube(2, size=7, shape=(14, 14, 14)))[None, None]
    truth = ops.sobel_edges(mask)
    filled = truth | mask
    got = {name: float(values) for name, values in edge_scores(filled.float(), mask).items()}
    assert got["interior"] == 1
    assert got["thickness"] == pytest.approx(float(filled.sum() / truth.sum()))
    assert got["f1"] == pytest.approx(2 / (1 + got["thickness"]))


def test_edges_of_the_union_stand_under_every_region() -> None:
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[2:10, 2:10, 2:10] = 2
    truth[4:8, 4:8, 4:8] = 4
    masks = BRATS.masks(torch.from_numpy(truth)[None, None])
    union = ops.sobel_edges(masks).amax(1).float().numpy()
    got = case_metrics(truth, truth, BRATS, (1, 1, 1), edges=union)
    assert [got[name]["edge_f1"] for name in got] == [1.0] * 3
    with pytest.raises(InputError, match=r"edges have shape \(2, 12, 12, 12\); expected \(3, 12"):
        case_metrics(truth, truth, BRATS, (1, 1, 1), edges=np.zeros((2, 12, 12, 12)))


def test_edges_where_there_are_none() -> None:
    empty = torch.zeros(1, 1, 5, 5, 5)
    silent, wrong = edge_scores(empty, empty), edge_scores(empty + 1, empty)
    assert (float(silent["f1"]), float(wrong["f1"])) == (1.0, 0.0)
    for name in EDGE_METRICS[1:]:
        assert math.isnan(float(silent[name])), name
        assert math.isnan(float(wrong[name])), name


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


def test_summary_leaves_out_what_is_unknown() -> None:
    rows = [{"organ": {"edge_f1": value}} for value in (0.5, math.nan, 0.7)]
    assert summary(rows)["organ"]["edge_f1"] == (
        pytest.approx(0.6),
        pytest.approx(0.2 / 2**0.5),
    )
    assert all(math.isnan(value) for value in summary(rows[1:2])["organ"]["edge_f1"])


def test_rejections() -> None:
    labels = cube(3)
    with pytest.raises(InputError, match="expected one shape"):
        case_metrics(labels, labels[1:], ORGAN, (1, 1, 1))
    with pytest.raises(InputError, match="prediction is float64"):
        case_metrics(labels.astype(float), labels, ORGAN, (1, 1, 1))
    with pytest.raises(InputError, match=r"expected an integer label map \(D, H, W\)"):
        case_metrics(labels[0], labels[0], ORGAN, (1, 1, 1))
    with pytest.raises(
        InputError, match=r"spacing: \(1, 0, 1\); expected three positive voxel sizes"
    ):
        case_metrics(labels, labels, ORGAN, (1, 0, 1))
    with pytest.raises(InputError, match=r"\(B, R, D, H, W\)"):
        dice(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 3))


def test_ignored_voxels_of_the_truth_do_not_count() -> None:
    regions = Regions(("background", "organ"), ((0,), (1,)), "softmax", ignore_index=9)
    truth = np.zeros((4, 4, 6), dtype=np.int16)
    truth[..., 1:3], truth[..., 4:] = 1, 9
    prediction = np.where(truth == 9, 1, truth)
    scores = case_metrics(prediction, truth, regions, (1, 1, 1))["organ"]
    assert (scores["dice"], scores["specificity"], scores["hd95"]) == (1, 1, 0)
