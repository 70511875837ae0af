"""Synthetic cases: valid, repeatable, nested, and not separable by a threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as components

from egcnn.data import BRATS, open_dataset, read_image, read_label
from egcnn.data.phantom import brats, brats_volumes, write_brats
from egcnn.errors import InputError

REGIONS = dict(zip(BRATS.names, BRATS.labels, strict=True))


@pytest.fixture(scope="module")
def volumes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [brats_volumes(index, (40, 44, 36), seed=7) for index in range(4)]


def test_written_cases_are_a_brats_dataset(tmp_path: Path) -> None:
    written = write_brats(tmp_path, 2, (20, 24, 16), seed=3)
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "brats"
    assert dataset.cases == written
    case = dataset.cases[1]
    assert case.images[0] == tmp_path / "HGG/PHANTOM_001/PHANTOM_001_t1.nii.gz"
    image, label = read_image(case, 4), read_label(case, BRATS)
    images, labels = brats_volumes(1, (20, 24, 16), seed=3)
    np.testing.assert_array_equal(image.numpy(), images)
    np.testing.assert_array_equal(label[0].numpy(), labels)
    assert image.affine.diagonal().tolist() == [-1, -1, 1, 1]


def test_seed_and_index_decide(volumes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    again = brats_volumes(1, (40, 44, 36), seed=7)
    np.testing.assert_array_equal(again[0], volumes[1][0])
    np.testing.assert_array_equal(again[1], volumes[1][1])
    other = brats_volumes(1, (40, 44, 36), seed=8)
    for different in (volumes[0], volumes[2], other):
        assert not np.array_equal(different[0], again[0])
        assert not np.array_equal(different[1], again[1])


def test_anatomy_is_the_same_at_any_size() -> None:
    _, coarse = brats_volumes(0, (32, 32, 32))
    _, fine = brats_volumes(0, (64, 64, 64))
    mean = (fine > 0).reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5))
    overlap = 2 * mean[coarse > 0].sum() / (mean.sum() + (coarse > 0).sum())
    assert overlap > 0.9


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 29, 23)])
def test_small_and_odd_sizes(shape: tuple[int, int, int]) -> None:
    for index in range(3):
        images, labels = brats_volumes(index, shape)
        assert images.shape == (4, *shape)
        assert labels.shape == shape
        assert set(np.unique(labels)) == {0, 1, 2, 4}


def test_head_is_one_piece_amid_zeros(volumes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for images, labels in volumes:
        assert images.dtype == np.int16
        assert labels.dtype == np.uint8
        head = images > 0
        assert (head == head[0]).all()
        assert images.min() == 0
        assert not any(head[0].take(end, axis).any() for axis in range(3) for end in (0, -1))
        assert 0.2 < head[0].mean() < 0.6
        pieces, _ = components(head[0])
        assert np.bincount(pieces.flat)[1:].max() > 0.99 * head[0].sum()
        assert head[0][labels > 0].all()


def test_core_lies_within_oedema(volumes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, labels in volumes:
        sizes = [np.isin(labels, REGIONS[name]).sum() for name in ("WT", "TC", "ET")]
        assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2] > 0
        # The core hardly touches healthy tissue, since oedema lies between.
        core = np.isin(labels, REGIONS["TC"])
        beside = np.zeros_like(core)
        for axis in range(3):
            for step in (-1, 1):
                beside |= np.roll(core, step, axis)
        shell = beside & ~core
        assert (labels[shell] == 0).mean() < 0.4


def test_contrasts_are_those_of_a_glioma(volumes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    necrosis, oedema, enhancing = (
        np.array(
            [
                [m[labels == v].mean() / m[m > 0].mean() for m in images]
                for images, labels in volumes
            ]
        )
        for v in (1, 2, 4)
    )
    t1, t1ce, t2, flair = range(4)
    assert (oedema[:, flair] > 1.2).all()
    assert (oedema[:, t2] > 1.2).all()
    assert (necrosis[:, t1] < 0.95 * oedema[:, t1]).all()
    assert (necrosis[:, t2] > oedema[:, t2]).all()
    assert (enhancing[:, t1ce] > 1.15 * oedema[:, t1ce]).all()
    assert necrosis[:, t1ce].mean() < 0.95 * oedema[:, t1ce].mean()


@pytest.mark.parametrize(("region", "limit"), [("WT", 0.80), ("TC", 0.60), ("ET", 0.60)])
def test_no_threshold_solves_it(
    volumes: list[tuple[np.ndarray, np.ndarray]], region: str, limit: float
) -> None:
    # The best threshold in hindsight, per case and modality.
    best = []
    for images, labels in volumes:
        truth = np.isin(labels, REGIONS[region])
        scores = []
        for image in images:
            inside = image > 0
            for level in np.quantile(image[inside], np.linspace(0, 0.99, 50)):
                for guess in (image > level, inside & (image < level)):
                    scores.append(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
        best.append(max(scores))
    assert 0.05 < np.mean(best) < limit


def test_boundaries_of_large_volumes_fade_in_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over some millimetres, which in small volumes is less than a voxel."""
    shapes = ((40, 40, 32), (80, 80, 64))
    fading = [brats_volumes(0, shape) for shape in shapes]
    monkeypatch.setattr(brats, "_FADING", 0)
    sharp = [brats_volumes(0, shape) for shape in shapes]
    np.testing.assert_array_equal(fading[0][0], sharp[0][0])
    assert not np.array_equal(fading[1][0], sharp[1][0])
    np.testing.assert_array_equal(fading[1][1], sharp[1][1])


def test_outlines_of_large_volumes_have_small_lobes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((40, 40, 32), (112, 112, 100))
    rough = [brats_volumes(0, shape)[1] > 0 for shape in shapes]
    monkeypatch.setattr(brats, "_LOBES", 0)
    even = [brats_volumes(0, shape)[1] > 0 for shape in shapes]
    np.testing.assert_array_equal(rough[0], even[0])

    def surface(inside: np.ndarray) -> int:
        return sum(np.count_nonzero(np.diff(inside, axis=axis)) for axis in range(3))

    assert surface(rough[1]) > 1.05 * surface(even[1])
    assert 0.9 < rough[1].sum() / even[1].sum() < 1.1


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cases: 0; expected at least 1"):
        write_brats(tmp_path, 0)
    with pytest.raises(InputError, match=r"shape: \(64, 15, 64\); expected .* at least 16"):
        write_brats(tmp_path, 1, (64, 15, 64))
    with pytest.raises(InputError, match="seed: -1"):
        write_brats(tmp_path, 1, (16, 16, 16), seed=-1)
    assert list(tmp_path.iterdir()) == []
