"""Detection of layouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egcnn.data import find_dataset, open_dataset, read_cases
from egcnn.errors import InputError


def test_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no known dataset; looked for dataset\.json .*CASE_t1\..*case_00000"
    ):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file; expected the folder"):
        open_dataset(tmp_path / "file")


def scans(folder: Path, modalities: int, *names: str) -> dict[str, list[str]]:
    """The files of the cases of a folder of scans, by name."""
    for name in names:
        (folder / name).touch()
    cases = read_cases(folder, modalities)
    return {case.name: [path.name for path in case.images] for case in cases}


def test_a_folder_of_scans(tmp_path: Path) -> None:
    names = ["b.nii", "a_0000.nii.gz", "a_2019.nii.gz", "a_0001.nii.gz", "a_12.nii"]
    # A year is no channel, and if there is one modality, 0 and 1 count scans.
    assert scans(tmp_path, 1, *names) == {name.split(".")[0]: [name] for name in names}
    assert scans(tmp_path, 2, *names)["a"] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert "a_2019" in scans(tmp_path, 2)
    with pytest.raises(InputError, match=r"c_0000\.nii: c_0001 is missing; expected 2 .* as a has"):
        scans(tmp_path, 2, "c_0000.nii")


def test_numbered_scans_of_all_modalities(tmp_path: Path) -> None:
    names = ["scan_0001.nii.gz", "scan_0002.nii.gz"]
    assert list(scans(tmp_path, 4, *names)) == ["scan_0001", "scan_0002"]


def test_a_scan_in_two_forms(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.nii\.gz: x\.nii has the same name; expected one"):
        scans(tmp_path, 2, "x.nii", "x.nii.gz")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for folder in ("case_00000", name):
        (tmp_path / folder).mkdir()
        for part in ("imaging", "segmentation"):
            (tmp_path / folder / f"{part}.nii.gz").touch()
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["case_00000"]
    assert "the name of its case is not UTF-8; expected another" in dataset.problems[name]
