"""Edges taken at a network's voxel size: of exact edge heads, on all kinds of grids, in files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from egcnn import ops
from egcnn.checkpoint import Trained
from egcnn.data import Dataset, write_volume
from egcnn.data.case import Case
from egcnn.data.transforms import PreprocessingSettings
from egcnn.edges import EdgeGrid, label_edges
from egcnn.errors import InputError
from egcnn.evaluation import (
    SUMMARY,
    Evaluation,
    evaluate,
    read_evaluation,
    score_predictions,
    write_evaluation,
)
from egcnn.inference import noted_spacing, predict_cases
from egcnn.metrics import case_metrics
from egcnn.nn import NetworkSettings, Segmentation
from egcnn.regions import Regions

ORGAN = Regions(("organ",), ((1,),), "sigmoid")
NESTED = Regions(("organ", "tumour"), ((1, 2), (2,)), "sigmoid", ignore_index=7)
#: Left to right, front to back, 5 mm slices.
THICK = np.array([[-0.8, 0, 0, 9], [0, -0.8, 0, 9], [0, 0, 5, -20], [0, 0, 0, 1.0]])


def ellipsoid(affine: NDArray[Any], shape: tuple[int, int, int], radii: Any) -> NDArray[np.bool_]:
    """The voxels of an ellipsoid with radii in mm around the middle of a grid."""
    places = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    return (((places @ affine[:3, :3].T) / radii) ** 2).sum(-1) <= 1


class Exact(nn.Module):
    """Finds the regions of an image that shows them, and the Sobel edges of what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # has a device

    def forward(self, image: Tensor) -> Segmentation:
        masks = image > 0.5
        edges = ops.sobel_edges(masks)
        return Segmentation(masks * 40.0 - 20, edges * 40.0 - 20)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A case whose image is 1000 HU inside of the organ, and 0 outside but for a voxel."""
    organ = ellipsoid(THICK, (48, 44, 14), (14, 12, 25))
    hounsfield = organ * np.int16(1000)
    hounsfield[0, 0, 0] = 1
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    write_volume(hounsfield, THICK, image)
    write_volume(organ.astype(np.uint8), THICK, label)
    return Dataset("kits", tmp_path, (Case("a", (image,), label),), ("CT",), ORGAN)


def exact(spacing: Any = (1.0, 1.0, 1.0)) -> Trained:
    settings = PreprocessingSettings((64, 64, 96), spacing, "ct")
    return Trained(Exact(), NetworkSettings(), settings, ORGAN, ("CT",))


def predicted(trained: Any, dataset: Dataset, folder: Path) -> Iterator[Any]:
    return predict_cases(trained, dataset.cases, folder, edges=True, precision="32-true")


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.0, 2.0), None])
def test_an_exact_edge_head_scores_one(dataset: Dataset, tmp_path: Path, spacing: Any) -> None:
    folder = tmp_path / "p"
    trained = exact(spacing)
    in_memory = score_predictions(predicted(trained, dataset, folder), dataset, folder)
    for found in (in_memory, evaluate(folder, dataset)):
        scores = found.cases["a"]["organ"]
        # Not 1 by a few voxels whose mask is 1/2, either way by rounding.
        for name in ("f1", "best_f1", "average_precision", "thickness"):
            assert scores[f"edge_{name}"] == pytest.approx(1, abs=0.005)
        assert scores["sobel_f1"] > 0.95
        assert found.edge_spacing("a") == spacing
    # An ensemble's members share it.
    list(predicted([trained, trained], dataset, folder))
    assert evaluate(folder, dataset).cases["a"]["organ"]["edge_f1"] > 0.99


def test_files_say_where_edges_were_taken(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    list(predicted(exact(), dataset, folder))
    ours = evaluate(folder, dataset)
    _, path = write_evaluation(ours, tmp_path)
    table = json.loads(path.read_text())
    assert table["edge_space"] == ours.edge_space == "voxels of 1 mm"
    assert table["sources"]["a"]["edge_spacing"] == [1, 1, 1]
    assert read_evaluation(path).edge_spacing("a") == (1, 1, 1)

    # The same from another program, whose network nobody knows.
    for name in ("a", "a_edges"):
        volume = nib.load(folder / f"{name}.nii.gz")
        write_volume(np.asanyarray(volume.dataobj), volume.affine, folder / f"{name}.nii.gz")
    foreign = evaluate(folder, dataset)
    assert foreign.edge_space == "own voxels"
    assert foreign.edge_spacing("a") is None
    assert foreign.cases["a"]["organ"]["edge_f1"] < 0.7
    assert foreign.cases["a"]["organ"]["dice"] == ours.cases["a"]["organ"]["dice"]

    both = {"a": {"edge_spacing": (1.0, 1.0, 3.0)}, "b": {}}
    scores = ours.cases["a"]
    assert Evaluation({"a": scores, "b": scores}, sources=both).edge_space == (
        "voxels of 1x1x3 mm, own voxels"
    )
    path.write_text(path.read_text().replace("1.0,\n    1.0,\n    1.0", '"thick"'))
    with pytest.raises(InputError, match=rf"{SUMMARY}: edge_spacing: .*'thick'.*3 finite numbers"):
        read_evaluation(path)


def test_the_spacing_of_a_note() -> None:
    described = {"patch": [8, 8, 8], "spacing": [1, 2, 3], "normalization": "ct"}
    assert noted_spacing({"preprocessing": described}) == (1, 2, 3)
    assert noted_spacing({"config": {"preprocessing": described}}) == (1, 2, 3)
    assert noted_spacing({"preprocessing": described | {"spacing": None}}) is None
    for other in ({}, {"preprocessing": 3}, {"config": [1]}, {"preprocessing": {"spacing": 0}}):
        assert noted_spacing(other) is None


def grids() -> Iterator[NDArray[np.float64]]:
    """Isotropic grids of 1 mm: axes in any order, some mirrored, and oblique ones."""
    for axes in permutations(range(3)):
        for signs in ((1, 1, 1), (-1, -1, 1), (1, -1, -1)):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(axes)] * signs
            affine[:3, 3] = (-31.5, 12.25, 7)
            yield affine
            turn = np.eye(4)
            turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
            yield turn @ affine


@pytest.mark.parametrize("affine", grids())
def test_nothing_changes_on_voxels_of_that_size(affine: NDArray[np.float64]) -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice([0, 1, 2, 7], (9, 11, 13)))
    grid = EdgeGrid(affine, (1.0, 1.0, 1.0))
    for union in (False, True):
        own, taken = (
            label_edges(labels[None, None], NESTED, where, union=union) for where in (None, grid)
        )
        assert own.dtype == taken.dtype == torch.uint8
        assert torch.equal(own, taken)
    other = torch.from_numpy(rng.choice([0, 1, 2], (9, 11, 13)))
    edges = rng.random((2, 9, 11, 13))
    size = (1, 1, 1)
    own, taken = (
        case_metrics(other, labels, NESTED, size, edges=edges, edge_grid=where)
        for where in (None, grid)
    )
    np.testing.assert_equal(taken, own)


def test_edges_at_another_size_by_hand() -> None:
    """A slab from 4 to 8 mm in slices of 2 mm: at 1 mm two edge voxels at each face."""
    labels = torch.zeros(1, 1, 8, 4, 4, dtype=torch.uint8)
    labels[:, :, 2:5] = 1
    grid = EdgeGrid(np.diag([2.0, 1, 1, 1]), (1.0, 1.0, 1.0))
    # The mask is above 1/2 from 4 to 8 mm, where it is 1 (at 3 and 9 mm it is 1/2, a tie that the
    # background wins): edges at 3, 4, 8 and 9 mm, of which the slices at 4 and 8 mm are voxels.
    found = label_edges(labels, ORGAN, grid)[0, 0, :, 0, 0]
    assert found.tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    # On own voxels, one on either side of each face.
    own = label_edges(labels, ORGAN)[0, 0, :, 0, 0]
    assert own.tolist() == [0, 1, 1, 0, 1, 1, 0, 0]


def test_ignored_voxels_are_no_region_at_any_size() -> None:
    truth = np.zeros((12, 12, 6), np.int64)
    truth[3:9, 3:9, 1:5] = 1
    truth[6:] = 7
    prediction = truth.copy()
    prediction[6:] = 2
    grid = EdgeGrid(np.diag([1.0, 1, 2, 1]), (1.0, 1.0, 1.0))
    found = case_metrics(prediction, truth, NESTED, (1, 1, 2), edge_grid=grid)
    assert found["organ"]["sobel_f1"] == 1
    assert found["tumour"]["sobel_f1"] == 1
