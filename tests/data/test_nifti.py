"""NIfTI files that lie, and grids that are carried over."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from egcnn import checks
from egcnn.data import read_image, write_volume
from egcnn.data.nifti import affine, open_volume

from ..mutate import mutated_bytes, refusable
from .test_case import AFFINE, refused, save, varied


def claiming(path: Path, voxels: bytes = b"", **fields: object) -> Path:
    """A file with a header of these fields before the voxels."""
    header = nib.Nifti1Header()
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header.set_sform(np.eye(4), 1)
    for name, value in fields.items():
        header[name] = value
    data = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_claims_beyond_the_file(tmp_path: Path, suffix: str) -> None:
    path = claiming(tmp_path / f"x{suffix}", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1], datatype=2)
    with refused(path.name, "truncated", "35181150961663 bytes"):
        read_image(path)


def test_claims_beyond_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.nii.gz", np.zeros((100, 100, 100), np.uint8))
    monkeypatch.setattr(checks, "free_memory", lambda: 11e6)
    with refused("x.nii.gz", "0.012 GB in memory", "0.011 GB that are free"):
        read_image(path)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30, -8.0])
def test_impossible_offsets(tmp_path: Path, value: float) -> None:
    path = claiming(tmp_path / "x.nii", bytes(8), dim=[3, 2, 2, 2, 1, 1, 1, 1], vox_offset=value)
    with refused("x.nii", "its voxels begin at byte"):
        open_volume(path)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_impossible_voxel_sizes(tmp_path: Path, value: float) -> None:
    path = claiming(
        tmp_path / "x.nii",
        bytes(8),
        dim=[3, 2, 2, 2, 1, 1, 1, 1],
        datatype=2,
        sform_code=0,
        pixdim=[1, value, value, value, 1, 1, 1, 1],
    )
    with refused("x.nii"):
        open_volume(path)


@pytest.mark.parametrize("row", [[0, 1, 0, np.inf], [0, 1, 0, np.nan], [0, 1, 1e38, 0]])
def test_impossible_affines(tmp_path: Path, row: list[float]) -> None:
    rows = {f"srow_{axis}": row for axis, row in zip("xyz", np.eye(4)[:3], strict=True)}
    path = claiming(
        tmp_path / "x.nii",
        bytes(8),
        dim=[3, 2, 2, 2, 1, 1, 1, 1],
        datatype=2,
        **{**rows, "srow_y": row},
    )
    with refused("x.nii", "is not finite"):
        open_volume(path)


def test_endless_zeros_after_the_voxels_are_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", varied(2, 2, 2))
    with path.open("ab") as stream:
        stream.write(gzip.compress(bytes(64 << 20), 1))
    with refused("x.nii.gz", "16 MB follow the voxels"):
        read_image(path)


def test_some_padding_is_no_harm(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", varied(2, 2, 2))
    with path.open("ab") as stream:
        stream.write(gzip.compress(bytes(4096)))
    np.testing.assert_array_equal(read_image(path)[0].numpy(), varied(2, 2, 2))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_mutated_files(tmp_path: Path, suffix: str, kind: type[nib.Nifti1Image]) -> None:
    """Read, or refused with a sentence; never slow, never large."""
    path = tmp_path / f"x{suffix}"
    image = kind(varied(5, 4, 3), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a word"))
    plain = image.to_bytes()
    kinds = [("header", mutated_bytes(plain, 100, upto=image.header.sizeof_hdr + 32))]
    if suffix == ".nii.gz":
        kinds.append(("stream", mutated_bytes(gzip.compress(plain), 50)))
    for what, copies in kinds:
        for data in copies:
            compressed = suffix == ".nii.gz" and what == "header"
            path.write_bytes(gzip.compress(data, 1) if compressed else data)
            with refusable(path):
                found = read_image(path)
                assert found.affine.isfinite().all()
                assert found.as_tensor().isfinite().all()


def test_both_affines_their_codes_and_units_are_carried(tmp_path: Path) -> None:
    scanner, aligned = np.diag([2.0, 2, 2, 1]), AFFINE
    image = nib.Nifti1Image(varied(2, 3, 5), aligned)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(scanner, 1)
    image.set_sform(aligned, 4)
    nib.save(image, tmp_path / "in.nii.gz")
    read = read_image(tmp_path / "in.nii.gz")
    write_volume(read[0], read.affine, tmp_path / "out.nii.gz", read.meta["header"])
    back = nib.load(tmp_path / "out.nii.gz")
    for form, matrix, code in (("qform", scanner, 1), ("sform", aligned, 4)):
        found, found_code = getattr(back, f"get_{form}")(coded=True)
        np.testing.assert_array_equal(found, matrix)
        assert found_code == code
    assert back.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(back.get_fdata(), varied(2, 3, 5))


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 1e-3), ("mm", 1)])
def test_units_other_than_mm(tmp_path: Path, unit: str, factor: float) -> None:
    image = nib.Nifti1Image(varied(2, 3, 5), np.diag([0.5, 0.5, 2, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "in.nii.gz")
    read = read_image(tmp_path / "in.nii.gz")
    sizes = [0.5 * factor, 0.5 * factor, 2 * factor, 1]
    torch.testing.assert_close(read.affine.diag(), torch.tensor(sizes, dtype=torch.float64))
    write_volume(read[0], read.affine, tmp_path / "out.nii.gz", read.meta["header"])
    np.testing.assert_array_equal(affine(nib.load(tmp_path / "out.nii.gz")), read.affine.numpy())
