"""Cases under unusual names: links, brackets, upper case, hidden files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from egcnn.data import open_dataset, read_cases, read_image
from egcnn.data.brats import MODALITIES
from egcnn.data.nifti import common_name, stem, volumes

from .test_brats import make
from .test_case import varied


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["case_0000", "case_0001"], "case"),
        (["case_1_0000", "case_1_0001"], "case_1"),
        (["A_t1", "A_t1ce"], "A"),
        (["A-t1", "A-t2"], "A"),
        (["t1", "t2"], "t1"),
        (["only_0000"], "only_0000"),
    ],
)
def test_the_common_name_ends_with_a_word(names: list[str], expected: str) -> None:
    assert common_name([Path(f"{name}.nii.gz") for name in names]) == expected


def test_a_linked_case_folder(tmp_path: Path) -> None:
    make(tmp_path / "store" / "CASE")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "store" / "CASE")
    assert [case.name for case in open_dataset(tmp_path / "data").cases] == ["CASE"]
    assert read_cases(tmp_path / "data" / "link")[0].name == "CASE"


def test_a_folder_with_brackets(tmp_path: Path) -> None:
    make(tmp_path / "B[1]")
    assert read_cases(tmp_path / "B[1]")[0].name == "B[1]"


def test_endings_in_upper_case(tmp_path: Path) -> None:
    make(tmp_path / "C", end=".NII.GZ")
    assert len(open_dataset(tmp_path).cases[0].images) == len(MODALITIES)
    nib.save(nib.Nifti1Image(varied(2, 3, 4), np.eye(4)), tmp_path / "x.nii.gz")
    upper = (tmp_path / "x.nii.gz").rename(tmp_path / "X.NII.GZ")
    assert stem(upper) == "X"
    np.testing.assert_array_equal(read_image(upper)[0].numpy(), varied(2, 3, 4))


def test_hidden_files_are_no_volumes(tmp_path: Path) -> None:
    for name in ("._a.nii.gz", ".part-a.nii.gz", "a.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in volumes(tmp_path)] == ["a.nii.gz"]


def test_cases_named_by_their_folders(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / f"case_{number}"
        folder.mkdir()
        for name in ("imaging", "segmentation"):
            (folder / f"{name}.nii.gz").touch()
    described = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "kidney"},
        "training": [
            {"image": f"case_{n}/imaging.nii.gz", "label": f"case_{n}/segmentation.nii.gz"}
            for n in (1, 2)
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert [case.name for case in open_dataset(tmp_path).cases] == ["case_1", "case_2"]


@pytest.mark.parametrize(
    ("names", "modalities", "expected"),
    [
        (["a", "b"], 1, {"a": 1, "b": 1}),
        (["a_0000", "a_0001", "b_0000", "b_0001"], 2, {"a": 2, "b": 2}),
        (["scan_0000", "scan_0001"], 1, {"scan_0000": 1, "scan_0001": 1}),
        (["a_0000"], 1, {"a": 1}),
    ],
)
def test_a_folder_of_scans(
    tmp_path: Path, names: list[str], modalities: int, expected: dict[str, int]
) -> None:
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    found = read_cases(tmp_path, modalities)
    assert {case.name: len(case.images) for case in found} == expected
