"""Reading and writing a case, and the error message for every kind of unusable file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from egcnn.data import BRATS, Case, read_image, read_label, write_volume
from egcnn.data import case as case_module
from egcnn.data.case import Dataset, read_edges
from egcnn.data.nifti import open_volume
from egcnn.errors import InputError
from egcnn.regions import Regions

from ..tolerances import HEADER

AFFINE = np.array([[-1.0, 0, 0, 5], [0, 0, -2.5, 7], [0, 0.5, 0, -3], [0, 0, 0, 1]])
CLASSES = Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def varied(*shape: int) -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def refused(*words: str) -> pytest.RaisesExc:
    """Expect an InputError of one line that contains every word."""

    def check(error: BaseException) -> bool:
        return "\n" not in str(error) and all(word in str(error) for word in words)

    return pytest.raises(InputError, check=check)


def test_the_images_header_is_read_once_for_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save(tmp_path / "x.nii", varied(2, 3, 5))
    label = save(tmp_path / "y.nii", np.ones((2, 3, 5), np.uint8))
    edges = save(tmp_path / "z.nii", np.zeros((2, 3, 5), np.float32))
    opened = []
    monkeypatch.setattr(case_module, "open_volume", lambda p: opened.append(p) or open_volume(p))
    case = Case("x", (image,), label)
    case.grid[1].flags.writeable = False
    one, two = read_label(case, CLASSES), read_label(case, CLASSES, edges)
    read_edges(case, edges, CLASSES)
    assert opened == [image, label, edges, edges]
    assert one[0, 0, 0, 0] == 1
    assert two[0, 0, 0, 0] == 0
    one.affine[0, 3] += 1
    np.testing.assert_array_equal(case.grid[1], AFFINE)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "float32", "float64", ">f4"])
def test_image_keeps_array_order_and_affine(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = varied(2, 3, 5)
    path = save(tmp_path / f"x{suffix}", values.astype(dtype))
    image = read_image(path)
    assert image.dtype == torch.float32
    assert image.shape == (1, 2, 3, 5)
    np.testing.assert_array_equal(image[0].numpy(), values)
    np.testing.assert_array_equal(image.affine.numpy(), AFFINE)


def test_scaled_integers_are_read_as_what_they_mean(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(6, dtype=np.int16).reshape(1, 2, 3), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "x.nii.gz")
    assert read_image(tmp_path / "x.nii.gz").flatten().tolist() == [10, 10.5, 11, 11.5, 12, 12.5]


def test_modalities_come_from_several_files_or_the_last_axis(tmp_path: Path) -> None:
    values = varied(2, 3, 5, 2)
    parts = tuple(save(tmp_path / f"{i}.nii.gz", values[..., i]) for i in range(2))
    whole = save(tmp_path / "all.nii.gz", values)
    from_parts = read_image(Case("x", parts), modalities=2)
    from_whole = read_image(Case("x", (whole,)), modalities=2)
    np.testing.assert_array_equal(from_parts.numpy(), np.moveaxis(values, 3, 0))
    np.testing.assert_array_equal(from_parts.numpy(), from_whole.numpy())


def test_wrong_number_of_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "all.nii.gz", varied(2, 3, 5, 3))
    with refused("all.nii.gz", "3 channels", "expected 4", "joined by commas"):
        read_image(path, modalities=4)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 2, 2)])
def test_wrong_rank_of_an_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "x.nii.gz", varied(*shape))
    with refused("x.nii.gz", str(shape), "expected three axes"):
        read_image(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with refused("none.nii.gz", "no such file"):
        read_image(tmp_path / "none.nii.gz")
    for name in ("empty.nii.gz", "empty.nii"):
        (tmp_path / name).touch()
        with refused(name, "empty"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    path = save(tmp_path / f"x{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with refused(path.name, "truncated"):
        read_image(path)


def test_corrupt_deflate_stream(tmp_path: Path) -> None:
    # Noise is stored uncompressed, so the damaged stream decodes and only its checksum is wrong.
    noise = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    path = save(tmp_path / "x.nii.gz", noise)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    with refused("x.nii.gz", "truncated or not NIfTI", "CRC"):
        read_image(path)


def test_text_under_a_nifti_name(tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(b"not a volume" * 100))
    (tmp_path / "y.nii.gz").write_text("not compressed either")
    for name in ("x.nii.gz", "y.nii.gz"):
        with refused(name, "not NIfTI"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_counted(tmp_path: Path, value: float) -> None:
    values = varied(3, 3, 3)
    values[0, 1, :2] = value
    path = save(tmp_path / "x.nii.gz", values)
    with refused("x.nii.gz", "2 of 27 voxels", "NaN or infinite"):
        read_image(path)


def test_values_beyond_float32_are_infinite(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", np.array([[[1.0, 1e300, 2.0]]]))
    with refused("1 of 3 voxels"):
        read_image(path)


def test_constant_images(tmp_path: Path) -> None:
    save(tmp_path / "zero.nii.gz", np.zeros((2, 2, 2), np.float32))
    with refused("zero.nii.gz", "every voxel is 0"):
        read_image(tmp_path / "zero.nii.gz")
    values = varied(2, 2, 2, 2)
    values[..., 1] = 0
    values[0, :, :, 1] = 7
    save(tmp_path / "flat.nii.gz", values)
    with refused("flat.nii.gz (channel 1)", "all of its 4 non-zero voxels are 7"):
        read_image(tmp_path / "flat.nii.gz")


def test_complex_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", varied(2, 2, 2).astype(np.complex64))
    with refused("x.nii.gz", "complex64", "real numbers"):
        read_image(path)


def test_affine_without_inverse(tmp_path: Path) -> None:
    image = nib.Nifti1Image(varied(2, 2, 2), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(image, tmp_path / "x.nii.gz")
    with refused("x.nii.gz", "no inverse"):
        read_image(tmp_path / "x.nii.gz")


def test_modalities_on_different_grids(tmp_path: Path) -> None:
    first = save(tmp_path / "a.nii.gz", varied(2, 3, 4))
    other_shape = save(tmp_path / "b.nii.gz", varied(2, 4, 3))
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    other_place = save(tmp_path / "c.nii.gz", varied(2, 3, 4), shifted)
    with refused("b.nii.gz", "(2, 4, 3)", "(2, 3, 4)", "a.nii.gz"):
        read_image((first, other_shape))
    with refused("c.nii.gz", "1 mm", "a.nii.gz"):
        read_image((first, other_place))


def test_label_is_read_on_the_grid_of_the_image(tmp_path: Path) -> None:
    # Rounding in the header must not give image and label different shapes after resampling.
    image = save(tmp_path / "i.nii.gz", varied(2, 3, 4))
    classes = np.arange(24).reshape(2, 3, 4) % 3
    rounded = AFFINE + 1e-4
    rounded[3] = AFFINE[3]
    path = save(tmp_path / "l.nii.gz", classes.astype(np.int16), rounded)
    label = read_label(Case("x", (image,), path), CLASSES)
    assert label.dtype == torch.uint8
    np.testing.assert_array_equal(label[0].numpy(), classes)
    np.testing.assert_array_equal(label.affine.numpy(), AFFINE)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_label_types(tmp_path: Path, dtype: str) -> None:
    image = save(tmp_path / "i.nii.gz", varied(1, 1, 4))
    path = save(tmp_path / "l.nii.gz", np.array([[[0, 1, 2, 4]]], dtype=dtype))
    label = read_label(Case("x", (image,), path), BRATS)
    assert label.dtype == torch.uint8
    assert label.flatten().tolist() == [0, 1, 2, 4]


def test_large_label_values_take_int16(tmp_path: Path) -> None:
    regions = Regions(("background", "x"), ((0,), (1000,)), "softmax")
    image = save(tmp_path / "i.nii.gz", varied(1, 1, 2))
    path = save(tmp_path / "l.nii.gz", np.array([[[0, 1000]]], dtype=np.int16))
    label = read_label(Case("x", (image,), path), regions)
    assert label.dtype == torch.int16
    assert label.flatten().tolist() == [0, 1000]


def test_scaled_label_is_rounded(tmp_path: Path) -> None:
    scaled = nib.Nifti1Image(np.array([[[0, 2**30, 2**31 - 1]]], dtype=np.int32), AFFINE)
    scaled.header.set_slope_inter(2 / (2**31 - 1), 0)
    nib.save(scaled, tmp_path / "l.nii.gz")
    image = save(tmp_path / "i.nii.gz", varied(1, 1, 3))
    assert np.asanyarray(nib.load(tmp_path / "l.nii.gz").dataobj).max() != 2  # the case is real
    label = read_label(Case("x", (image,), tmp_path / "l.nii.gz"), CLASSES)
    assert label.flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 3, 3, 1], ("value 3 in 2 voxels", "only 0, 1, 2, 4")),
        ([5, 3, 300, 1], ("values 3, 5, 300 in 3 voxels", "only 0, 1, 2, 4")),
        ([-1, 0, 0, 0], ("value -1 in 1 voxels",)),
        ([0.5, 1.25, 1, 0], ("2 label voxels are no whole number", "0.5", "0, 1, 2, 4")),
        ([np.nan, 1, 1, 0], ("1 label voxels are no whole number", "nan")),
        ([np.inf, 1, 1, 0], ("1 label voxels are no whole number", "inf")),
    ],
)
def test_foreign_label_values(tmp_path: Path, values: list[float], words: tuple[str, ...]) -> None:
    image = save(tmp_path / "i.nii.gz", varied(1, 2, 2))
    dtype = np.int16 if all(float(v).is_integer() for v in values) else np.float32
    path = save(tmp_path / "l.nii.gz", np.array(values, dtype=dtype).reshape(1, 2, 2))
    with refused("l.nii.gz", *words):
        read_label(Case("x", (image,), path), BRATS)


def test_label_on_another_grid(tmp_path: Path) -> None:
    image = save(tmp_path / "i.nii.gz", varied(2, 3, 4))
    classes = np.zeros((2, 3, 4), np.uint8)
    short = save(tmp_path / "short.nii.gz", classes[:, :, :3])
    with refused("short.nii.gz", "(2, 3, 3)", "(2, 3, 4)", "i.nii.gz"):
        read_label(Case("x", (image,), short), CLASSES)
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    other = save(tmp_path / "other.nii.gz", classes, mirrored)
    with refused("other.nii.gz", "affine", "i.nii.gz"):
        read_label(Case("x", (image,), other), CLASSES)


def test_spacing_differs_in_a_volume_of_one_voxel(tmp_path: Path) -> None:
    image = save(tmp_path / "i.nii.gz", varied(1, 1, 1, 2), np.diag([1.0, 1, 1, 1]))
    label = save(tmp_path / "l.nii.gz", np.ones((1, 1, 1), np.uint8), np.diag([2.0, 1, 1, 1]))
    with refused("l.nii.gz", "affine"):
        read_label(Case("x", (image,), label), CLASSES)


def test_label_of_wrong_rank_and_absent_label(tmp_path: Path) -> None:
    image = save(tmp_path / "i.nii.gz", varied(2, 3, 4))
    channels = save(tmp_path / "l.nii.gz", np.zeros((2, 3, 4, 2), np.uint8))
    with refused("l.nii.gz", "(2, 3, 4, 2)", "three axes"):
        read_label(Case("x", (image,), channels), CLASSES)
    with refused("x: no label file"):
        read_label(Case("x", (image,)), CLASSES)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.bool, np.uint8),
        (torch.uint8, np.uint8),
        (torch.int16, np.int16),
        (torch.int64, np.uint8),
        (torch.float32, np.float32),
        (torch.float64, np.float32),
    ],
)
def test_written_volume_comes_back(
    tmp_path: Path, suffix: str, dtype: torch.dtype, stored: type
) -> None:
    values = (torch.arange(30).reshape(2, 3, 5) % 2).to(dtype)
    path = tmp_path / "new" / f"x{suffix}"
    write_volume(values, torch.from_numpy(AFFINE), path)
    back = nib.load(path)
    assert back.get_data_dtype() == stored
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), values.numpy())
    np.testing.assert_array_equal(back.affine, AFFINE)
    np.testing.assert_allclose(back.get_qform(), AFFINE, atol=HEADER)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("values", "stored"), [([0, 300], np.int16), ([-1, 4], np.int16), ([0, 70000], np.int32)]
)
def test_wide_integers_are_written_small(tmp_path: Path, values: list[int], stored: type) -> None:
    write_volume(np.array([[values]], dtype=np.int64), AFFINE, tmp_path / "x.nii.gz")
    back = nib.load(tmp_path / "x.nii.gz")
    assert back.get_data_dtype() == stored
    assert np.asanyarray(back.dataobj).flatten().tolist() == values


def test_sheared_affine_is_not_given_a_quaternion(tmp_path: Path) -> None:
    sheared = np.array([[1.0, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_volume(varied(2, 2, 2), sheared, tmp_path / "x.nii.gz")
    back = nib.load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(back.affine, sheared, atol=HEADER)
    assert back.header["qform_code"] == 0


def test_equal_volumes_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_volume(varied(3, 3, 3), AFFINE, tmp_path / name / "x.nii.gz")
    assert (tmp_path / "a/x.nii.gz").read_bytes() == (tmp_path / "b/x.nii.gz").read_bytes()


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.nii.gz"
    write_volume(varied(2, 2, 2), AFFINE, path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused("x.nii.gz", "No space left on device"):
        write_volume(varied(5, 5, 5), AFFINE, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(varied(2, 2, 2), AFFINE, tmp_path / "x.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_written_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_volume(varied(2, 2, 2), AFFINE, tmp_path / "x.nii.gz")
    finally:
        os.umask(old)
    assert (tmp_path / "x.nii.gz").stat().st_mode & 0o777 == 0o640


def test_write_refuses_other_endings_and_ranks(tmp_path: Path) -> None:
    with refused("x.png", "expected .nii or .nii.gz"):
        write_volume(varied(2, 2, 2), AFFINE, tmp_path / "x.png")
    with refused("x.nii.gz", "(2, 2)", "(D, H, W)"):
        write_volume(varied(2, 2), AFFINE, tmp_path / "x.nii.gz")
    (tmp_path / "file").touch()
    with refused("x.nii.gz", "cannot be written"):
        write_volume(varied(2, 2, 2), AFFINE, tmp_path / "file" / "x.nii.gz")


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [(("CT",), "ct"), ((" ct ",), "ct"), (("MRI",), "zscore"), (("CT", "PET"), "zscore")],
)
def test_normalization_follows_the_modalities(modalities: tuple[str, ...], expected: str) -> None:
    assert Dataset("x", Path(), (), modalities, CLASSES).normalization == expected
