"""Synthetic CT in the KiTS layout: valid, repeatable, and not separable by Hounsfield units."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components

from egcnn.data import KITS, find_dataset, inspect_cases, open_dataset, read_image, read_label
from egcnn.data.phantom import kits_volumes, write_phantoms
from egcnn.data.phantom.kits import draw_grid
from egcnn.errors import InputError

from ..test_cli import run

SHAPE = (30, 64, 64)
Volumes = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def volumes() -> list[Volumes]:
    return [kits_volumes(index, SHAPE, seed=7) for index in range(4)]


def test_written_cases_are_a_kits_dataset(tmp_path: Path) -> None:
    written = list(write_phantoms("kits", tmp_path, 4, (20, 24, 28), seed=3))
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "kits"
    assert dataset.cases == tuple(written)
    assert not any(report.problems for report in inspect_cases(dataset, images=True))
    described = json.loads((tmp_path / "data/kits.json").read_text())
    assert [entry["case_id"] for entry in described] == [case.name for case in written]
    case = dataset.cases[3]
    assert case.label == tmp_path / "data/case_00003/segmentation.nii.gz"
    image, labels, affine = kits_volumes(3, (20, 24, 28), seed=3)
    np.testing.assert_array_equal(read_image(case, 1)[0].numpy(), image)
    np.testing.assert_array_equal(read_label(case, KITS)[0].numpy(), labels)
    np.testing.assert_allclose(case.grid[1], affine, atol=1e-3)
    types = {str(nib.load(other.label).get_data_dtype()) for other in dataset.cases}
    assert types == {"uint8", "uint16"}


def test_slices_come_first_and_odd_cases_are_oblique(volumes: list[Volumes]) -> None:
    for index, (_, _, affine) in enumerate(volumes):
        assert nib.aff2axcodes(affine) == ("I", "P", "L")
        straight = np.count_nonzero(affine[:3, :3]) == 3
        assert straight == (index % 2 == 0)
        spacing = nib.affines.voxel_sizes(affine)
        assert 200 < spacing[0] * SHAPE[0] < 400
        assert 250 < spacing[1] * SHAPE[1] < 500


def test_seed_and_index_decide(volumes: list[Volumes]) -> None:
    for one, two in zip(kits_volumes(1, SHAPE, seed=7), volumes[1], strict=True):
        np.testing.assert_array_equal(one, two)
    for different in (volumes[0], volumes[3], kits_volumes(1, SHAPE, seed=8)):
        assert not np.array_equal(different[0], volumes[1][0])


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 29, 23)])
def test_small_and_odd_sizes(shape: tuple[int, int, int]) -> None:
    for index in range(6):
        image, labels, _ = kits_volumes(index, shape)
        assert image.shape == labels.shape == shape
        assert (image.dtype, labels.dtype) == (np.int16, np.uint8)
        assert set(np.unique(labels)) == {0, 1, 2}


def test_a_size_is_drawn_for_each_case() -> None:
    sizes = {draw_grid(np.random.default_rng(seed), 160.0, None) for seed in range(30)}
    thicknesses = {spacing[0] for _, spacing in sizes}
    assert {shape[1:] for shape, _ in sizes} == {(512, 512)}
    assert len(thicknesses) > 4
    assert min(thicknesses) >= 0.5
    assert max(thicknesses) <= 5
    assert all(0.55 < spacing[1] < 1 for _, spacing in sizes)


def test_anatomy(volumes: list[Volumes]) -> None:
    for image, labels, affine in volumes:
        voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
        assert 150 < np.count_nonzero(labels) * voxel < 900  # ml of two kidneys and their tumours
        sides = np.array_split(labels > 0, 2, axis=2)
        assert all(side.sum() * voxel > 50 for side in sides)
        kidneys, count = components(labels > 0)
        sizes = np.sort(np.bincount(kidneys.flat)[1:])
        assert count >= 2
        assert sizes[-2:].sum() > 0.9 * sizes.sum()
        assert -1024 <= image.min() < -900
        assert 350 < image.max() < 1500  # bone
        assert 0 < image[labels > 0].mean() < 200


@pytest.mark.parametrize(("region", "limit"), [("kidney", 0.5), ("tumour", 0.3)])
def test_no_window_of_intensities_solves_it(
    volumes: list[Volumes], region: str, limit: float
) -> None:
    # The best interval in hindsight, per case.
    edges = np.r_[-2000, np.arange(-150, 500, 20), 4000]
    best = []
    for image, labels, _ in volumes:
        truth = np.isin(labels, KITS.labels[KITS.names.index(region)])
        below = np.r_[0, np.histogram(image, edges)[0].cumsum()]
        hits = np.r_[0, np.histogram(image[truth], edges)[0].cumsum()]
        high, low = np.triu_indices(len(below), 1)[::-1]
        best.append((2 * (hits[high] - hits[low]) / (below[high] - below[low] + truth.sum())).max())
    assert np.mean(best) < limit


def test_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for layout in ("brats", "kits", "nnunet"):
        folder = tmp_path / layout
        options = ("--layout", layout, "--cases", "2", "--shape", "16,18,20", "--seed", "5")
        assert run("phantom", folder, *options) == 0
        assert f"{folder}: 2 cases in the layout of {layout}" in capfd.readouterr().out
        dataset = find_dataset(folder)
        assert dataset.layout == layout
        reports = list(inspect_cases(dataset, images=True))
        assert [(report.labelled, report.problems) for report in reports] == [(True, ())] * 2
        assert all(min(report.labels.values()) > 0 for report in reports)
        assert run("phantom", folder, *options) == 1
        assert "is there already; expected a new" in capfd.readouterr().err
    assert run("phantom", tmp_path / "x", "--layout", "acdc") == 1
    assert "layout: 'acdc'; expected one of brats, kits, nnunet" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


def test_both_brain_layouts_hold_the_same_tumours(tmp_path: Path) -> None:
    """By the values of the labels in either, the same regions."""
    counts = []
    for layout in ("brats", "nnunet"):
        list(write_phantoms(layout, tmp_path / layout, 1, (16, 18, 20)))
        dataset = open_dataset(tmp_path / layout)
        labels = read_label(dataset.cases[0], dataset.regions).as_tensor()[None]
        counts.append(dataset.regions.masks(labels).sum((2, 3, 4)).tolist())
    assert counts[0] == counts[1]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cases: 0; expected at least 1"):
        list(write_phantoms("kits", tmp_path, 0))
    with pytest.raises(InputError, match=r"shape: \(64, 15, 64\); expected .* at least 16"):
        list(write_phantoms("kits", tmp_path, 1, (64, 15, 64)))
    with pytest.raises(InputError, match="seed: -1"):
        list(write_phantoms("kits", tmp_path, 1, seed=-1))
    assert list(tmp_path.iterdir()) == []
