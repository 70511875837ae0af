"""Metrics against independent implementations, on masks with deliberate errors.

``python -m pytest tests/test_metrics_peers.py -s`` prints how far the other definitions differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.metrics import (
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
    get_confusion_matrix,
)
from nibabel.affines import voxel_sizes
from scipy.spatial import KDTree

from egcnn.metrics import EDGE_METRICS, VOXEL_METRICS, WORST_HD95, case_metrics
from egcnn.regions import Regions

# Arguments that MONAI passes itself, and modules that surface-distance imports.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),
]

Mask = np.ndarray
Spacing = tuple[float, float, float]

ORGAN = Regions(("background", "organ"), ((0,), (1,)), "softmax")
TOLERANCE = 1.0
FACES = scipy.ndimage.generate_binary_structure(3, 1)


def painted() -> Mask:
    """A ragged organ, a lesion beside it, and one of three voxels."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*map(np.arange, (20, 34, 30)), indexing="ij"), -1)
    mask = np.zeros((20, 34, 30), bool)
    for centre, size in (((9, 13, 12), (6, 9, 8)), ((10, 28, 22), (3, 2.5, 4))):
        distance = np.linalg.norm((places - centre) / np.array(size), axis=-1)
        mask |= distance + 0.15 * rng.normal(size=mask.shape) < 1
    mask[3, 5, 25:28] = True
    return mask


def _shifted(mask: Mask) -> Mask:
    return np.roll(mask, 1, axis=0)


def _dilated(mask: Mask) -> Mask:
    return scipy.ndimage.binary_dilation(mask, FACES)


def _eroded(mask: Mask) -> Mask:
    return scipy.ndimage.binary_erosion(mask, FACES)


def _lesion_missing(mask: Mask) -> Mask:
    """Without the smallest connected part, or without a third of a single one."""
    parts, count = scipy.ndimage.label(mask, FACES)
    if count > 1:
        return mask & (parts != 1 + np.argmin(np.bincount(parts.ravel())[1:]))
    planes = np.flatnonzero(mask.any((1, 2)))
    less = mask.copy()
    less[planes[2 * len(planes) // 3] :] = False
    return less


def _island(mask: Mask) -> Mask:
    more = mask.copy()
    more[1:3, 1:3, 1:3] = True
    return more


def _hollow(mask: Mask) -> Mask:
    return mask & ~scipy.ndimage.binary_erosion(mask, FACES, 2)


ERRORS: dict[str, Callable[[Mask], Mask]] = {
    "none": np.copy,
    "shifted": _shifted,
    "dilated": _dilated,
    "eroded": _eroded,
    "lesion missing": _lesion_missing,
    "island": _island,
    "hollow": _hollow,
}
SPACINGS: tuple[Spacing, ...] = ((1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (5.0, 0.8, 0.8))


def boxed(mask: Mask, margin: int = 4) -> Mask:
    """The mask cut to its bounding box, with a margin."""
    (box,) = scipy.ndimage.find_objects(mask.astype(np.uint8))
    return np.pad(mask[box], margin)


def real(shared_data: Path, name: str) -> tuple[Mask, Spacing]:
    """A region of a real case in its bounding box, with the size of its voxels."""
    file, values = {
        "hippocampus": ("hippocampus/labelsTr/hippocampus_001.nii.gz", (1, 2)),
        "tumour core": ("brats2015/brats_2013_pat0003_1/OTMultiClass.nii.gz", (1, 3, 4)),
        "kidney tumour": ("kits19_masks/data/case_00126/segmentation.nii.gz", (2,)),
    }[name]
    path = shared_data / file
    if not path.is_file():
        pytest.skip(f"no {file}")
    volume = nib.load(path)
    x, y, z = map(float, voxel_sizes(volume.affine))
    return boxed(np.isin(np.asanyarray(volume.dataobj), values)), (x, y, z)


REAL = ("hippocampus", "tumour core", "kidney tumour")


@dataclass(frozen=True)
class Pair:
    """A prediction with an error, its truth, and our scores of it."""

    error: str
    prediction: Mask
    truth: Mask
    spacing: Spacing

    @cached_property
    def scores(self) -> dict[str, float]:
        one, other = self.prediction.astype(np.uint8), self.truth.astype(np.uint8)
        return case_metrics(one, other, ORGAN, self.spacing)["organ"]


@pytest.fixture(scope="module", params=[*SPACINGS, *REAL], ids=str)
def pairs(request: pytest.FixtureRequest) -> list[Pair]:
    """Every error as prediction and truth, and as truth and prediction."""
    mask, spacing = painted(), request.param
    if request.param in REAL:
        mask, spacing = real(request.getfixturevalue("shared_data"), request.param)
    made = []
    for name, change in ERRORS.items():
        other = change(mask)
        assert other.any(), name
        made += [Pair(name, other, mask, spacing), Pair(f"{name}, exchanged", mask, other, spacing)]
    return made


# --- By definition, with scipy -------------------------------------------------------------------


def surface(mask: Mask) -> Mask:
    return mask & ~scipy.ndimage.binary_erosion(mask, FACES)


def directed(prediction: Mask, truth: Mask, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm of each surface's voxels to the nearest voxel of the other."""
    one, other = (np.argwhere(surface(mask)) * spacing for mask in (prediction, truth))
    return KDTree(other).query(one)[0], KDTree(one).query(other)[0]


def edges(mask: Mask) -> Mask:
    """Voxels at which a Sobel filter finds a slope."""
    volume = mask.astype(np.float64)
    slopes = [scipy.ndimage.sobel(volume, axis, mode="nearest") for axis in range(3)]
    return np.any([slope != 0 for slope in slopes], 0)


def by_definition(prediction: Mask, truth: Mask, spacing: Spacing) -> dict[str, float]:
    both = np.count_nonzero(prediction & truth)
    there, back = directed(prediction, truth, spacing)
    near = np.count_nonzero(there <= TOLERANCE) + np.count_nonzero(back <= TOLERANCE)
    found, expected = edges(prediction), edges(truth)
    hits = np.count_nonzero(found & expected)
    # Of binary edges: those found, and everything.
    share = hits / expected.sum()
    precision = share * hits / found.sum() + (1 - share) * expected.mean()
    return {
        "dice": 2 * both / (prediction.sum() + truth.sum()),
        "sensitivity": both / truth.sum(),
        "specificity": np.count_nonzero(~prediction & ~truth) / np.count_nonzero(~truth),
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "surface_dice": near / (there.size + back.size),
        "sobel_f1": 2 * hits / (found.sum() + expected.sum()),
        "sobel_best_f1": max(
            2 * hits / (found.sum() + expected.sum()),
            2 * expected.sum() / (found.size + expected.sum()),
        ),
        "sobel_average_precision": precision,
        "sobel_thickness": found.sum() / expected.sum(),
        "sobel_interior": np.count_nonzero(found & truth & ~expected)
        / np.count_nonzero(truth & ~expected),
    }


def test_by_definition(pairs: list[Pair]) -> None:
    for pair in pairs:
        with np.errstate(invalid="ignore"):  # a thin truth has no interior
            expected = by_definition(pair.prediction, pair.truth, pair.spacing)
        assert set(expected) == set(VOXEL_METRICS) | {f"sobel_{name}" for name in EDGE_METRICS}
        for name, value in expected.items():
            found = pair.scores[name]
            assert found == pytest.approx(value, abs=1e-6, nan_ok=True), (pair.error, name)


# --- SimpleITK and MONAI, which define the same --------------------------------------------------


def by_simpleitk(prediction: Mask, truth: Mask, spacing: Spacing) -> dict[str, float]:
    sitk = pytest.importorskip("SimpleITK")  # of the extra for benchmarks

    def image(mask: Mask) -> object:
        made = sitk.GetImageFromArray(mask.astype(np.uint8))
        made.SetSpacing(spacing[::-1])
        return made

    one, other = image(prediction), image(truth)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(one, other)
    shells = [sitk.LabelContour(volume) for volume in (one, other)]
    maps = [
        sitk.GetArrayFromImage(
            sitk.Abs(
                sitk.SignedMaurerDistanceMap(shell, squaredDistance=False, useImageSpacing=True)
            )
        )
        for shell in shells
    ]
    on = [sitk.GetArrayFromImage(shell) > 0 for shell in shells]
    there, back = maps[1][on[0]], maps[0][on[1]]
    largest = sitk.HausdorffDistanceImageFilter()
    largest.Execute(*shells)
    assert max(there.max(), back.max()) == pytest.approx(largest.GetHausdorffDistance(), abs=1e-4)
    near = np.count_nonzero(there <= TOLERANCE) + np.count_nonzero(back <= TOLERANCE)
    return {
        "dice": overlap.GetDiceCoefficient(1),
        "sensitivity": 1 - overlap.GetFalseNegativeError(1),
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "surface_dice": near / (there.size + back.size),
    }


def by_monai(prediction: Mask, truth: Mask, spacing: Spacing) -> dict[str, float]:
    one, other = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
    tp, fp, tn, fn = get_confusion_matrix(one, other)[0, 0].tolist()
    distance = compute_hausdorff_distance(one, other, percentile=95, spacing=spacing)
    near = compute_surface_dice(one, other, [TOLERANCE], spacing=spacing)
    return {
        "dice": float(compute_dice(one, other)),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "hd95": float(distance),
        "surface_dice": float(near),
    }


PEERS = {"SimpleITK": by_simpleitk, "MONAI": by_monai}


@pytest.mark.parametrize("peer", PEERS)
def test_peers(pairs: list[Pair], peer: str) -> None:
    for pair in pairs:
        for name, value in PEERS[peer](pair.prediction, pair.truth, pair.spacing).items():
            # Both have distances in float32.
            found = pair.scores[name]
            assert found == pytest.approx(value, rel=1e-4, abs=1e-5), (pair.error, name)


def test_empty_masks() -> None:
    """Where libraries leave a score undefined, the challenges' rules decide."""
    full, empty = painted(), np.zeros_like(painted())
    for prediction, truth in ((full, empty), (empty, full), (empty, empty)):
        found = Pair("empty", prediction, truth, (1.0, 1.0, 1.0)).scores
        one, other = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
        assert found["dice"] == float(compute_dice(one, other, ignore_empty=False))
        _, fp, tn, _ = get_confusion_matrix(one, other)[0, 0].tolist()
        assert found["specificity"] == pytest.approx(tn / (tn + fp))
        alike = prediction is truth
        assert found["hd95"] == (0 if alike else WORST_HD95)
        assert found["sensitivity"] == found["surface_dice"] == found["sobel_f1"] == float(alike)


# --- Other definitions ---------------------------------------------------------------------------


def test_surfaces_between_voxels(pairs: list[Pair]) -> None:
    """DeepMind's surfaces run between voxel centres, and each piece counts by its area."""
    peer = pytest.importorskip("surface_distance")  # of the extra for benchmarks
    for pair in pairs:
        distances = peer.compute_surface_distances(pair.truth, pair.prediction, pair.spacing)
        hd95 = peer.compute_robust_hausdorff(distances, 95)
        near = peer.compute_surface_dice_at_tolerance(distances, TOLERANCE)
        shown(pair, "surface-distance", hd95=hd95, surface_dice=near)
        # MONAI's subvoxels are the same surfaces, so that both are called as they should be.
        one, other = (
            torch.from_numpy(mask)[None, None].float() for mask in (pair.prediction, pair.truth)
        )
        like = compute_surface_dice(
            one, other, [TOLERANCE], spacing=pair.spacing, use_subvoxels=True
        )
        assert near == pytest.approx(float(like), abs=1e-4), pair.error
        assert abs(hd95 - pair.scores["hd95"]) <= max(pair.spacing) + 1e-6, pair.error
        # Of slices five times as thick as the tolerance most voxels are farther than it, and half
        # of the area is not.
        most = 0.4 if max(pair.spacing) > TOLERANCE else 0.2
        assert abs(near - pair.scores["surface_dice"]) <= most, pair.error


def test_distances_of_both_directions(pairs: list[Pair]) -> None:
    """MedPy takes the percentile of both directions' distances together."""
    for pair in pairs:
        distances = np.concatenate(directed(pair.prediction, pair.truth, pair.spacing))
        together = float(np.percentile(distances, 95))
        shown(pair, "both directions", hd95=together)
        assert together <= pair.scores["hd95"] + 1e-6, pair.error


def shown(pair: Pair, peer: str, **scores: float) -> None:
    size = "x".join(f"{number:.3g}" for number in pair.spacing)
    for name, value in scores.items():
        ours = pair.scores[name]
        print(f"| {peer} | {pair.error} | {size} | {name} | {ours:.3f} | {value:.3f} |")
