"""Resampling: exact where axes only turn, linear elsewhere, and labels there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor
from torch.nn.functional import grid_sample

from egcnn.data import resampling
from egcnn.data.case import Case, read_label
from egcnn.data.resampling import resample, resample_labels, resampled, respaced
from egcnn.data.transforms import PreprocessingSettings, preprocessing
from egcnn.metrics import dice
from egcnn.regions import Regions

from ..tolerances import REORDERED

KITS = Regions(("kidney", "tumour"), ((1, 2), (2,)), "sigmoid")
SLICE_FIRST = np.array([[0, 0, -0.8, 90], [0, -0.8, 0, 80], [-3.0, 0, 0, 70], [0, 0, 0, 1]])


def by_coordinates(volume: Tensor, matrix: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """The same by one ``grid_sample`` over the coordinates of all voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = torch.from_numpy(index @ matrix[:3, :3].T + matrix[:3, 3])
    sizes = torch.tensor(volume.shape[1:], dtype=torch.float64)
    points = ((2 * places + 1) / sizes - 1).flip(-1).float()
    return grid_sample(volume[None], points[None], "bilinear", "border", align_corners=False)[0]


@pytest.mark.parametrize("slab", [1, 50, 1 << 22])
@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[0, 0, -0.7, 9], [1.3, 0, 0, -2], [0, 0.4, 0, 0.3], [0, 0, 0, 1]]),
        np.array([[0.9, 0.1, 0, 3], [-0.1, 0.9, 0.2, -1], [0, -0.2, 1.5, 2], [0, 0, 0, 1]]),
    ],
    ids=["parallel", "oblique"],
)
def test_slabs_agree_with_coordinates(
    matrix: np.ndarray, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_SLAB", slab)
    volume, shape = torch.randn(2, 11, 7, 9), (9, 13, 12)
    torch.testing.assert_close(
        resample(volume, matrix, shape),
        by_coordinates(volume, matrix, shape),
        atol=REORDERED,
        rtol=0,
    )


def test_turned_axes_are_copied() -> None:
    volume = torch.randn(1, 5, 6, 7)
    matrix = np.array([[0, -1.0, 0, 4], [0, 0, 1.0, 0], [-1.0, 0, 0, 6], [0, 0, 0, 1]])
    matrix[:3] += 1e-6  # as headers are rounded
    moved = resample(volume, matrix, (7, 5, 6))
    assert torch.equal(moved, volume.permute(0, 3, 1, 2).flip(1, 2))
    assert [part.shape for part in resampled(volume, matrix, (7, 5, 6))] == [(1, 7, 5, 6)]


def test_labels_take_the_value_of_the_largest_share() -> None:
    labels = torch.tensor([0, 2, 1, 0], dtype=torch.uint8).reshape(1, 4, 1, 1)
    found = resample_labels(labels, np.diag([0.25, 1, 1, 1]), (13, 1, 1), (0, 1, 2))
    # Ties go to the smaller value.
    assert found.flatten().tolist() == [0, 0, 0, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0]
    assert found.dtype == torch.uint8


def test_voxels_of_the_size_already_stay() -> None:
    affine = np.diag([1.0, 1.0, 1.0 + 1e-6, 1.0])
    assert respaced((5, 6, 7), affine, (1, 1, 1))[1] is affine
    shape, target = respaced((5, 6, 7), affine, (1, 1, 2))
    assert shape == (5, 6, 4)
    np.testing.assert_allclose(np.diag(target), [1, 1, 2, 1])


def there_and_back(label: MetaTensor) -> tuple[Tensor, Tensor]:
    """Binary regions of a label map, and those that return from 1 mm as predictions do."""
    image = MetaTensor(torch.ones(label.shape), affine=label.affine)
    settings = PreprocessingSettings((8, 8, 8), (1.0, 1.0, 1.0), "ct")
    fine = preprocessing(settings, KITS)({"image": image, "label": label})["label"]
    masks = KITS.masks(fine.as_tensor()[None])[0].float()
    matrix = np.linalg.solve(fine.affine.numpy(), label.affine.numpy())
    parts = [KITS.decode(part[None])[0] for part in resampled(masks, matrix, label.shape[1:])]
    return KITS.masks(label.as_tensor()[None]), KITS.masks(torch.cat(parts, 1)[None])


def test_labels_there_and_back() -> None:
    """Kidneys of 50 mm and tumours of 15 mm radius, in 3 mm slices."""
    shape = (45, 140, 140)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = index @ SLICE_FIRST[:3, :3].T
    away = np.linalg.norm(points - points[22, 70, 70], axis=-1)
    inner = np.linalg.norm(points - points[30, 60, 60], axis=-1)
    label = np.where(inner < 15, 2, np.where(away < 50, 1, 0)).astype(np.uint8)
    true, back = there_and_back(
        MetaTensor(torch.from_numpy(label)[None], affine=torch.from_numpy(SLICE_FIRST))
    )
    kidney, tumour = dice(back, true)[0].tolist()
    assert kidney > 0.99
    assert tumour > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param("case_00160", marks=pytest.mark.thorough), "case_00090"]
)
def test_kits_masks_there_and_back(shared_data: Path, name: str) -> None:
    path = shared_data / f"kits19_masks/data/{name}/segmentation.nii.gz"
    true, back = there_and_back(read_label(Case("x", (path,), path), KITS))
    kidney, tumour = dice(back, true)[0].tolist()
    assert kidney > 0.99
    assert tumour > 0.97
