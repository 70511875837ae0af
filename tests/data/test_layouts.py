"""Detection of layouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egcnn.data import find_dataset, open_dataset
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


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for folder in ("case_00000", name):
        (tmp_path / folder).mkdir()
        for part in ("imaging", "segmentation"):
            (tmp_path / folder / f"{part}.nii.gz").touch()
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["case_00000"]
    assert "the name of its case is not UTF-8; expected another" in dataset.problems[name]
