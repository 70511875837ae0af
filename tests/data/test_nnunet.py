"""nnU-Net's raw datasets as they lie, with regions, and with errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from egcnn.data import find_dataset, open_dataset, read_cases
from egcnn.errors import InputError
from egcnn.regions import Regions

BASE: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


def make(root: Path, channels: int = 2, **changes: Any) -> Path:
    """Two training cases and a test case, and the base's dataset.json with changes."""
    described = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    end = described.get("file_ending", ".nii.gz")
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir()
    for name in ("x_2", "x_10"):
        (root / "labelsTr" / f"{name}{end}").touch()
    for part, name in (("Tr", "x_2"), ("Tr", "x_10"), ("Ts", "t")):
        for channel in range(channels):
            (root / f"images{part}" / f"{name}_{channel:04d}{end}").touch()
    (root / "dataset.json").write_text(json.dumps(described))
    return root


@pytest.mark.parametrize("end", [".nii.gz", ".nii"])
def test_as_it_lies(tmp_path: Path, end: str) -> None:
    dataset = open_dataset(make(tmp_path, file_ending=end))
    assert dataset.layout == "nnunet"
    assert dataset.modalities == ("T1", "T2")
    assert dataset.normalization == "zscore"
    assert dataset.regions == Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")
    assert [case.name for case in dataset.cases] == ["x_10", "x_2", "t"]
    assert dataset.cases[1].images == tuple(
        tmp_path / f"imagesTr/x_2_{channel:04d}{end}" for channel in range(2)
    )
    assert dataset.cases[1].label == tmp_path / f"labelsTr/x_2{end}"
    assert dataset.cases[2].label is None
    assert read_cases(tmp_path / "imagesTs", 2) == dataset.cases[2:]


def test_ct(tmp_path: Path) -> None:
    assert open_dataset(make(tmp_path, 1, channel_names={"0": "CT"})).normalization == "ct"


def test_regions_are_written_as_the_description_says(tmp_path: Path) -> None:
    regions = open_dataset(make(tmp_path, **REGIONS)).regions
    assert regions == Regions(
        ("whole", "core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), "sigmoid", 4, (1, 2, 3)
    )
    assert Regions.from_dict(json.loads(json.dumps(regions.to_dict()))) == regions
    # Later regions paint over earlier ones, also where these are not nested.
    present = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 1, 0.0]])
    labels = regions.decode(present.T.reshape(1, 3, 6, 1, 1))
    assert labels.flatten().tolist() == [0, 1, 2, 3, 3, 2]


def test_the_order_decides_the_values(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": [1, 2], "lesion": [2, 3]}
    regions = open_dataset(make(tmp_path, labels=labels, regions_class_order=[1, 3])).regions
    present = torch.tensor([[1, 0], [1, 1], [0, 1.0]])
    assert regions.decode(present.T.reshape(1, 2, 3, 1, 1)).flatten().tolist() == [1, 3, 3]


def test_files_listed_by_the_description(tmp_path: Path) -> None:
    entry = {
        "images": ["imagesTr/x_2_0000.nii.gz", "imagesTs/t_0001.nii.gz"],
        "label": "labelsTr/x_2.nii.gz",
    }
    dataset = find_dataset(make(tmp_path, dataset={"case": entry, "bad": {"images": []}}))
    assert [case.name for case in dataset.cases] == ["case", "t"]
    assert dataset.cases[0].images[1] == tmp_path / "imagesTs/t_0001.nii.gz"
    assert "'dataset' describes bad otherwise" in dataset.problems["bad"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x\0y", "\ud800"])
def test_a_case_has_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    entry = {"images": ["imagesTr/x_2_0000.nii.gz"] * 2, "label": "labelsTr/x_2.nii.gz"}
    with pytest.raises(InputError, match=r"dataset\.json: 'dataset'.*; expected"):
        find_dataset(make(tmp_path, dataset={name: entry}))


@pytest.mark.parametrize("name", ["a" * 300, "x\0y"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    entry = {"images": [name, "imagesTs/t_0001.nii.gz"], "label": "labelsTr/x_2.nii.gz"}
    problems = find_dataset(make(tmp_path, dataset={"case": entry})).problems
    assert "no such file; expected the channel T1 of case" in problems["case"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("imagesTr/x_10_0001.nii.gz", "no such file; expected the channel T2 of x_10"),
        ("imagesTs/t_0000.nii.gz", "no such file; expected the channel T1 of t"),
        ("labelsTr/x_2.nii.gz", "no such file; expected the label map of x_2"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, file: str, message: str) -> None:
    (make(tmp_path) / file).unlink()
    with pytest.raises(InputError, match=f"{file}: {message}"):
        open_dataset(tmp_path)
    assert len(find_dataset(tmp_path).cases) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_ending": ".png"}, "'file_ending' is '.png'; expected one of .nii.gz, .nii"),
        ({"file_ending": 3}, "'file_ending' is 3; expected"),
        ({"channel_names": None}, "'channel_names' is None"),
        ({"labels": {"background": 0, "\ud800": 1}}, "'labels' is {'background': 0, "),
        ({"file_ending": "x" * 9999}, "...; expected one of"),
        ({**REGIONS, "regions_class_order": [1, 2]}, "class_order is (1, 2) for 3 regions"),
        ({**REGIONS, "regions_class_order": [1, 2, 9]}, "class_order is (1, 2, 9) for 3 regions"),
        ({**REGIONS, "regions_class_order": "123"}, "regions_class_order: '123'; expected"),
        ({"dataset": ["x"]}, "'dataset' is a list; expected an object"),
    ],
)
def test_bad_entries(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    described = {**BASE, **changes}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_no_case(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(BASE))
    with pytest.raises(InputError, match=r"no case; expected imagesTr/CASE_0000\.nii\.gz and"):
        open_dataset(tmp_path)
