"""Preprocessing and augmentation, against values worked out by hand and in world coordinates."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose

from egcnn.data import BRATS, Case, open_dataset, read_image, split, write_volume
from egcnn.data.transforms import (
    PreprocessingSettings,
    ReadCase,
    augmentation,
    prepared_shape,
    preprocessing,
)
from egcnn.errors import InputError
from egcnn.regions import Regions

from ..tolerances import BY_HAND, BY_SUM, HEADER

CLASSES = Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")


def meta(values: Any, affine: Any = None) -> MetaTensor:
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    return MetaTensor(torch.as_tensor(values), affine=torch.from_numpy(matrix))


def prepare(spacing: Any, normalization: Any, regions: Regions | None) -> Compose:
    return preprocessing(PreprocessingSettings((8, 8, 8), spacing, normalization), regions)


def world(tensor: MetaTensor) -> torch.Tensor:
    """World coordinates of every voxel, (3, D, H, W)."""
    axes = torch.meshgrid(*(torch.arange(n).double() for n in tensor.shape[1:]), indexing="ij")
    points = torch.stack([*axes, torch.ones(tensor.shape[1:]).double()])
    return torch.einsum("ij,jdhw->idhw", tensor.affine, points)[:3]


def test_read_case(tmp_path: Path) -> None:
    write_volume(np.arange(8.0).reshape(2, 2, 2), np.eye(4), tmp_path / "i.nii.gz")
    write_volume(np.ones((2, 2, 2), np.uint8), np.eye(4), tmp_path / "l.nii.gz")
    case = Case("x", (tmp_path / "i.nii.gz",), tmp_path / "l.nii.gz")
    assert sorted(ReadCase(CLASSES, 1)(case)) == ["image", "label", "name"]
    assert sorted(ReadCase(None)(case)) == ["image", "name"]
    unlabelled = ReadCase(CLASSES)(Case("x", case.images))
    assert sorted(unlabelled) == ["image", "name"]
    assert unlabelled["name"] == "x"
    with pytest.raises(InputError, match="1 channels; expected 2"):
        ReadCase(None, 2)(case)


def test_input_error_is_the_cause_within_a_chain(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        Compose([ReadCase(CLASSES)])(Case("x", (tmp_path / "none.nii",)))
    assert isinstance(caught.value.__cause__, InputError)


def test_zscore_by_hand() -> None:
    image = meta([[[[0.0, 1, 3]]], [[[5.0, 0, 5.5]]], [[[0.0, 0, 2]]]])
    before = image.clone()
    scored = prepare(None, "zscore", None)({"image": image})["image"]
    assert scored.dtype == torch.float32
    assert scored.flatten(1).tolist() == [[0, -1, 1], [-1, 0, 1], [0, 0, 0]]
    assert torch.equal(image.as_tensor(), before.as_tensor())


def test_zscore_of_large_offsets_is_precise() -> None:
    values = 1e6 + torch.rand(1, 40, 40, 40, generator=torch.Generator().manual_seed(0)) * 100
    scored = prepare(None, "zscore", None)({"image": meta(values)})["image"].double()
    assert scored.mean().abs() < 1e-5
    assert (scored.std(correction=0) - 1).abs() < 1e-5


def test_ct_by_hand() -> None:
    image = meta([[[[-3000.0, -1000, -500, 0, 250, 1000, 3071]]]])
    scaled = prepare(None, "ct", None)({"image": image})["image"]
    assert scaled.flatten().tolist() == pytest.approx([-1, -1, -0.5, 0, 0.25, 1, 1], abs=BY_HAND)


def test_orientation_becomes_ras() -> None:
    # Axes on disk: superior to inferior, anterior to posterior, right to left.
    affine = [[0, 0, -1, 9], [0, -1, 0, 8], [-1, 0, 0, 7], [0, 0, 0, 1]]
    image = meta(torch.arange(24.0).reshape(1, 2, 3, 4), affine)
    label = meta((torch.arange(24) % 3).reshape(1, 2, 3, 4).to(torch.uint8), affine)
    out = prepare((1, 1, 1), "ct", CLASSES)({"image": image, "label": label})
    expected = image.as_tensor().permute(0, 3, 2, 1).flip(1, 2, 3) / 1000
    torch.testing.assert_close(out["image"].as_tensor(), expected)
    assert out["label"].dtype == torch.uint8
    assert torch.equal(
        out["label"].as_tensor(), label.as_tensor().permute(0, 3, 2, 1).flip(1, 2, 3)
    )
    expected = torch.tensor([[1.0, 0, 0, 6], [0, 1, 0, 6], [0, 0, 1, 6], [0, 0, 0, 1]])
    torch.testing.assert_close(out["image"].affine, expected.double())


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1.0, 1.0, 1.0]),
        np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_matching_spacing_is_not_resampled(affine: np.ndarray) -> None:
    values = torch.rand(1, 5, 7, 3, generator=torch.Generator().manual_seed(0)) * 900
    out = prepare((1, 1, 1), "ct", None)({"image": meta(values, affine)})["image"]
    torch.testing.assert_close(out.as_tensor(), values / 1000, rtol=0, atol=BY_HAND)
    np.testing.assert_array_equal(out.affine.numpy(), affine)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 1.3)])
def test_resampling_keeps_world_coordinates(spacing: tuple[float, float, float]) -> None:
    # A linear ramp in the world is reproduced by linear interpolation wherever it is not clamped.
    affine = np.array([[-2.0, 0, 0, 30], [0, 0, 0.5, -9], [0, 1.7, 0, 4], [0, 0, 0, 1]])
    source = meta(torch.zeros(1, 17, 13, 31), affine)
    ramp = torch.tensor([3.0, -2.0, 5.0]).double()
    source = meta(torch.einsum("i,idhw->dhw", ramp, world(source))[None].float(), affine)
    out = prepare(spacing, "ct", None)({"image": source})["image"]
    found = np.linalg.norm(out.affine[:3, :3].numpy(), axis=0)
    np.testing.assert_allclose(found, spacing, rtol=HEADER)
    points = world(out)
    low = world(source).flatten(1).min(1).values[:, None, None, None]
    high = world(source).flatten(1).max(1).values[:, None, None, None]
    inside = ((points >= low) & (points <= high)).all(0)
    assert inside.double().mean() > 0.8
    expected = torch.einsum("i,idhw->dhw", ramp, points) / 1000
    torch.testing.assert_close(out[0][inside].double(), expected[inside], rtol=0, atol=BY_SUM)
    extent = np.array(out.shape[1:]) * np.array(spacing)
    np.testing.assert_allclose(extent, [17 * 2, 31 * 0.5, 13 * 1.7], atol=2.6)


def test_label_is_resampled_to_nearest_values() -> None:
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    label = meta(torch.tensor([0, 2, 0], dtype=torch.int16).reshape(1, 3, 1, 1), affine)
    image = meta(torch.tensor([10.0, 40, 70]).reshape(1, 3, 1, 1), affine)
    out = prepare((1, 1, 1), "ct", CLASSES)({"image": image, "label": label})
    assert out["label"].dtype == torch.uint8
    assert out["label"].flatten().tolist() == [0, 0, 2, 2, 2, 0, 0]
    assert out["image"].flatten().tolist() == pytest.approx(
        [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07], abs=BY_HAND
    )


def test_one_voxel() -> None:
    item = {"image": meta([[[[5.0]]]]), "label": meta(torch.ones(1, 1, 1, 1, dtype=torch.uint8))}
    out = augmentation((3, 2, 1))(prepare((1, 1, 1), "ct", CLASSES)(item))
    assert out["image"].shape == (1, 3, 2, 1)
    assert out["label"].sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 1, 0), "ct", None), "spacing: .*three positive"),
        (((1, 1, 1e300), "ct", None), "spacing: .*three positive"),
        (((1, 1), "ct", None), "spacing: .*3 finite numbers"),
        (((1, 1, float("nan")), "ct", None), "spacing: .*3 finite numbers"),
        ((None, "minmax", None), "normalization: 'minmax'"),
    ],
)
def test_bad_preprocessing(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(*arguments)


@pytest.mark.parametrize("patch", [(0, 4, 4), (4, 4)])
def test_bad_patch(patch: Any) -> None:
    with pytest.raises(InputError, match=r"patch: .*(3 integers|at least 1)"):
        PreprocessingSettings(patch)


def test_prepared_shape_turns_and_resamples(tmp_path: Path) -> None:
    # Array axes point up, back, right with 5, 2, 1 mm: in RAS order 30, 20 x 2, 10 x 5 mm.
    affine = np.array([[0, 0, 1.0, 0], [0, -2.0, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    path = tmp_path / "a.nii.gz"
    write_volume(np.zeros((10, 20, 30), np.uint8), affine, path)
    case = Case("a", (path,))
    assert prepared_shape(case, (1.0, 1.0, 1.0)) == (30, 40, 50)
    # Read once.
    path.unlink()
    assert prepared_shape(case, None) == (30, 20, 10)


def item(*shape: int, channels: int = 2) -> dict[str, Any]:
    """Distinct image values, and a label that says which image voxel it belongs to."""
    size = int(np.prod(shape))
    numbers = torch.arange(1, size + 1).reshape(1, *shape)
    return {
        "image": meta(torch.cat([numbers.float() * (c + 1) for c in range(channels)])),
        "label": meta(numbers.to(torch.int16)),
    }


EXACT: dict[str, Any] = {"intensity_shift": 0.0, "intensity_scale": 0.0}


@pytest.mark.parametrize("patch", [(3, 5, 2), (7, 7, 7), (11, 13, 9), (1, 1, 1), (4, 20, 3)])
def test_image_and_label_stay_together(patch: tuple[int, int, int]) -> None:
    source = item(7, 8, 5)
    transform = augmentation(patch, flip_axes=(0, 1, 2), **EXACT).set_random_state(1)
    for _ in range(5):
        out = transform(source)
        for key in ("image", "label"):
            assert type(out[key]) is torch.Tensor
        assert out["image"].shape == (2, *patch)
        assert out["image"].dtype == torch.float32
        assert out["label"].shape == (1, *patch)
        assert out["label"].dtype == torch.int16
        assert torch.equal(out["image"][:1], out["label"].float())
        assert torch.equal(out["image"][1:], 2 * out["label"].float())
        # No voxel that fits is lost, and the padding is zero.
        kept = np.prod([min(p, n) for p, n in zip(patch, (7, 8, 5), strict=True)])
        assert (out["label"] > 0).sum() == kept


def test_transforms_travel_to_workers() -> None:
    for transform in (
        Compose([ReadCase(CLASSES), prepare((1, 1, 1), "zscore", CLASSES)]),
        augmentation((3, 3, 3)),
    ):
        assert isinstance(pickle.loads(pickle.dumps(transform)), Compose)


def test_padding_is_on_both_sides() -> None:
    out = augmentation((4, 1, 1), flip_axes=(), **EXACT)(item(2, 1, 1))
    assert out["label"].flatten().tolist() == [0, 1, 2, 0]


def test_only_the_given_axes_are_mirrored() -> None:
    source = item(3, 3, 3)["label"].as_tensor()
    transform = augmentation((3, 3, 3), flip_axes=(1,), **EXACT).set_random_state(0)
    drawn = [transform(item(3, 3, 3))["label"] for _ in range(40)]
    mirrored = [torch.equal(label, source.flip(2)) for label in drawn]
    as_it_was = [torch.equal(label, source) for label in drawn]
    assert all(a != b for a, b in zip(mirrored, as_it_was, strict=True))
    assert 8 <= sum(mirrored) <= 32


def test_intensities_change_per_channel_within_their_ranges() -> None:
    transform = augmentation((2, 2, 2), flip_axes=()).set_random_state(0)
    source = item(2, 2, 2)
    found = []
    for _ in range(60):
        image = transform(source)["image"].double()
        for channel, before in zip(image, source["image"].as_tensor().double(), strict=True):
            x, y = before.flatten(), channel.flatten()
            scale = (y[-1] - y[0]) / (x[-1] - x[0])
            shift = y[0] - scale * x[0]
            torch.testing.assert_close(y, scale * x + shift, atol=BY_SUM, rtol=0)
            found.append((scale.item(), shift.item()))
    scales, shifts = np.array(found).T
    assert scales.min() < 0.92 < 1.08 < scales.max()
    assert scales.min() >= 0.9 - 1e-5
    assert scales.max() <= 1.1 + 1e-5
    assert shifts.min() < -0.08 < 0.08 < shifts.max()
    assert np.abs(shifts).max() <= 0.1 + 1e-4
    assert len({round(s, 6) for s in scales}) > 100  # every channel draws its own


def test_same_seed_same_patches_and_the_source_is_kept() -> None:
    source = item(9, 9, 9)
    before = {key: value.clone() for key, value in source.items()}
    runs = []
    for seed in (5, 5, 6):
        transform = augmentation((4, 4, 4), foreground=0.5).set_random_state(seed)
        runs.append(torch.stack([transform(source)["image"] for _ in range(8)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])
    for key, value in before.items():
        assert torch.equal(source[key].as_tensor(), value.as_tensor())


def single_voxel(position: tuple[int, int, int]) -> dict[str, Any]:
    label = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    label[0][position] = 2
    return {"image": meta(torch.rand(1, 20, 20, 20)), "label": meta(label)}


@pytest.mark.parametrize("position", [(0, 0, 0), (19, 19, 19), (10, 3, 17)])
def test_foreground_patches_hold_foreground(position: tuple[int, int, int]) -> None:
    source = single_voxel(position)
    transform = augmentation((5, 5, 5), foreground=1.0).set_random_state(0)
    assert all(transform(source)["label"].sum() == 2 for _ in range(25))
    rarely = augmentation((5, 5, 5)).set_random_state(0)
    assert sum(bool(rarely(source)["label"].any()) for _ in range(25)) < 10


def test_foreground_share_and_its_place_in_the_patch() -> None:
    source = single_voxel((10, 10, 10))
    transform = augmentation((3, 3, 3), flip_axes=(), foreground=0.5).set_random_state(0)
    labels = [transform(source)["label"][0] for _ in range(300)]
    found = [label.nonzero()[0].tolist() for label in labels if label.any()]
    assert len(found) / 300 == pytest.approx(0.5, abs=0.1)
    assert {place[0] for place in found} == {0, 1, 2}


def test_foreground_without_any_or_without_label() -> None:
    source = single_voxel((0, 0, 0))
    source["label"] = source["label"] * 0
    transform = augmentation((5, 5, 5), foreground=1.0)
    assert transform(source)["label"].shape == (1, 5, 5, 5)
    del source["label"]
    assert transform(source)["image"].shape == (1, 5, 5, 5)


@pytest.mark.parametrize(
    ("patch", "options", "message"),
    [
        ((4, 4, 4), {"flip_axes": (3,)}, "flip_axes: .*some of 0, 1, 2"),
        ((4, 4, 4), {"intensity_shift": -1}, "intensity_shift.*no negative"),
        ((4, 4, 4), {"foreground": 1.5}, "foreground: 1.5; expected a probability"),
    ],
)
def test_bad_augmentation(patch: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        augmentation(patch, **options)


def test_hippocampus(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "hippocampus")
    assert len(dataset.cases) == 185
    assert {c.name for side in split(dataset) for c in side} == {c.name for c in dataset.cases}
    load = Compose([ReadCase(dataset.regions, 1), prepare((1, 1, 1), "zscore", dataset.regions)])
    crop = augmentation((40, 56, 40), flip_axes=(0,))
    for case in dataset.cases[::20]:
        ready = load(case)
        assert ready["image"].shape == ready["label"].shape
        assert set(ready["label"].unique().tolist()) == {0, 1, 2}
        inside = ready["image"][ready["image"] != 0]
        assert abs(inside.mean()) < 1e-4
        assert abs(inside.std() - 1) < 1e-3
        assert crop(ready)["image"].shape == (1, 40, 56, 40)


def test_brats2015(shared_data: Path) -> None:
    folder = sorted((shared_data / "brats2015").iterdir())[0]
    files = tuple(folder / f"{name}_subtrMeanDivStd.nii.gz" for name in ("Flair", "T1c"))
    image = read_image(Case("x", files), modalities=2)
    assert image.shape == (2, 240, 240, 155)
    ready = prepare((1, 1, 1), "zscore", None)({"image": image})["image"]
    assert ready.affine.diagonal().tolist() == [1, 1, 1, 1]
    flipped = image.as_tensor().flip(1, 2)
    assert torch.equal(flipped == 0, ready.as_tensor() == 0)
    with pytest.raises(InputError, match=r"OTMultiClass.*label value 3 in .* only 0, 1, 2, 4"):
        ReadCase(BRATS)(Case("x", files, folder / "OTMultiClass.nii.gz"))


def test_kits_masks_keep_volume_and_place(shared_data: Path) -> None:
    # Slice-first, anti-diagonal affine, 3 mm slices.
    path = shared_data / "kits19_masks/data/case_00090/segmentation.nii.gz"
    source = ReadCase(CLASSES)(Case("x", (path,), path))
    out = prepare((2, 2, 2), "ct", CLASSES)(source)["label"]
    label = source["label"]
    before = (label > 0).sum() * abs(np.linalg.det(label.affine[:3, :3].numpy()))
    assert (out > 0).sum() * 2**3 / before == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(out.affine[:3, :3].numpy(), 2 * np.eye(3), atol=HEADER)
    centres = []
    for tensor in (label, out):
        inside = (tensor.as_tensor()[0] > 0).nonzero().double().mean(0)
        centres.append(tensor.affine[:3, :3] @ inside + tensor.affine[:3, 3])
    torch.testing.assert_close(centres[0], centres[1], rtol=0, atol=0.3)


def test_a_result_beyond_memory_is_refused() -> None:
    """A file of 60 bytes may claim voxels of a kilometre."""
    image = meta(torch.rand(1, 4, 5, 6), np.diag([1e6, 1e6, 1e30, 1]))
    image.meta["filename_or_obj"] = "far.nii.gz"
    with pytest.raises(RuntimeError) as caught:
        prepare((1.0, 1.0, 1.0), "zscore", None)({"image": image})
    cause: Any = caught.value
    while not isinstance(cause, InputError):
        cause = cause.__cause__
    assert re.match(
        r"far.nii.gz: resampled to 1x1x1 mm, shape .* takes .* GB in memory", str(cause)
    )
