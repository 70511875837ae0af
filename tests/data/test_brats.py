"""The BraTS layout, complete and with errors."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from egcnn.data import (
    BRATS,
    find_dataset,
    open_dataset,
    read_cases,
    read_label,
    write_volume,
)
from egcnn.data.brats import MODALITIES, brats_case, find_brats
from egcnn.data.phantom import write_brats
from egcnn.errors import InputError


def make(folder: Path, parts: tuple[str, ...] = (*MODALITIES, "seg"), end: str = ".nii.gz") -> None:
    folder.mkdir(parents=True)
    for part in parts:
        (folder / f"{folder.name}_{part}{end}").touch()


def test_grades_and_root_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    make(tmp_path / "LGG" / "B")
    make(tmp_path / "HGG" / "C", end=".nii")
    make(tmp_path / "A")
    (tmp_path / "notes").mkdir()
    (tmp_path / "name_mapping.csv").touch()
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "brats"
    assert dataset.modalities == ("t1", "t1ce", "t2", "flair")
    assert dataset.regions == BRATS
    assert dataset.spacing == (1, 1, 1)
    assert dataset.normalization == "zscore"
    assert [case.name for case in dataset.cases] == ["A", "B", "C"]
    assert [path.name for path in dataset.cases[2].images] == [
        "C_t1.nii",
        "C_t1ce.nii",
        "C_t2.nii",
        "C_flair.nii",
    ]
    assert dataset.cases[1].label == tmp_path / "LGG/B/B_seg.nii.gz"


def test_case_without_segmentation_is_unlabelled(tmp_path: Path) -> None:
    make(tmp_path / "X", MODALITIES)
    assert brats_case(tmp_path / "X").label is None
    assert len(find_brats(tmp_path).cases) == 1


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["W39_1998.09.19_Segm.nii"], "W39_1998.09.19_Segm.nii"),  # case 355 of BraTS 2020
        (["other_seg.nii.gz"], "other_seg.nii.gz"),
        (["X_pred_seg.nii.gz"], None),
        (["a_seg.nii.gz", "b_seg.nii.gz"], None),
        (["unseg.nii.gz", "._a_seg.nii", "a_seg.txt"], None),
    ],
)
def test_a_segmentation_of_another_name(
    tmp_path: Path, names: list[str], label: str | None
) -> None:
    make(tmp_path / "X", MODALITIES)
    for name in names:
        (tmp_path / "X" / name).touch()
    assert brats_case(tmp_path / "X").label == (label and tmp_path / "X" / label)
    (tmp_path / "X" / "X_seg.nii").touch()
    assert brats_case(tmp_path / "X").label == tmp_path / "X" / "X_seg.nii"


@pytest.mark.parametrize("missing", MODALITIES)
def test_missing_modality_is_named(tmp_path: Path, missing: str) -> None:
    make(tmp_path / "HGG" / "X", tuple(m for m in (*MODALITIES, "seg") if m != missing))
    with pytest.raises(InputError, match=rf"HGG/X: modality {missing} .*X_{missing}\.nii\.gz"):
        open_dataset(tmp_path)


def test_one_name_in_both_grades(tmp_path: Path) -> None:
    make(tmp_path / "HGG" / "X")
    make(tmp_path / "LGG" / "X")
    with pytest.raises(InputError, match=r"LGG/X: same name as .*HGG/X"):
        open_dataset(tmp_path)


def test_both_cases_of_one_name_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "HGG" / "X", ("t1", "flair"))
    make(tmp_path / "LGG" / "X")
    problems = find_dataset(tmp_path).problems
    assert list(problems) == ["X", "LGG/X"]
    assert "HGG/X: t1ce, t2 are missing" in problems["X"]


def test_every_bad_case_is_found(tmp_path: Path) -> None:
    make(tmp_path / "A", ("t1", "flair"))
    make(tmp_path / "B", ("seg",))
    make(tmp_path / "C")
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["C"]
    assert list(dataset.problems) == ["A", "B"]
    assert "A: t1ce, t2 are missing; expected A_t1ce.nii.gz" in dataset.problems["A"]
    assert "B: t1, t1ce, t2, flair are missing" in dataset.problems["B"]
    with pytest.raises(InputError, match=r"A: t1ce, t2 are .* \(1 more: egcnn inspect .*\)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("folder", "end"),
    [
        ("HGG/Brats18_2013_2_1", ".nii.gz"),
        ("LGG/BraTS19_TCIA13_615_1", ".nii.gz"),
        ("BraTS20_Training_001", ".nii"),
        ("BraTS20_Validation_001", ".nii"),
        ("BraTS2021_00000", ".nii.gz"),
    ],
)
def test_names_of_the_years(tmp_path: Path, folder: str, end: str) -> None:
    parts = MODALITIES if "Validation" in folder else (*MODALITIES, "seg")
    make(tmp_path / folder, parts, end)
    for stray in ("mask.nii.gz", "notes.txt", "survival_info.csv"):
        (tmp_path / folder / stray).touch()
    (tmp_path / "name_mapping.csv").touch()
    (case,) = open_dataset(tmp_path).cases
    name = folder.split("/")[-1]
    assert case.name == name
    assert [path.name for path in case.images] == [f"{name}_{m}{end}" for m in MODALITIES]
    assert (case.label is None) == ("Validation" in name)
    assert read_cases(tmp_path / folder) == (case,)


def test_label_3_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """The non-enhancing core of 2015, and the enhancing tumour since 2023."""
    (case,) = write_brats(tmp_path, 1, (16, 16, 16))
    assert case.label is not None
    volume = nib.load(case.label)
    labels = np.asanyarray(volume.dataobj)
    labels[labels == 4] = 3
    write_volume(labels, volume.affine, case.label)
    with pytest.raises(
        InputError, match=r"_seg\.nii\.gz: label value 3 in \d+ voxels; expected only 0, 1, 2, 4$"
    ):
        read_label(case, BRATS)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "HGG").mkdir()
    with pytest.raises(InputError, match="no BraTS case"):
        find_brats(tmp_path)
