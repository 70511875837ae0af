"""dataset.json in its variants, and with errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from egcnn.data import find_dataset, open_dataset
from egcnn.data.decathlon import find_decathlon
from egcnn.errors import InputError
from egcnn.regions import Regions

BASE: dict[str, Any] = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
    "numTraining": 2,
    "numTest": 0,
    "training": [
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
        {"image": "./imagesTr/b.nii", "label": "./labelsTr/b.nii"},
    ],
}


def make(root: Path, **changes: Any) -> Path:
    """A folder with the base's files and its dataset.json, entries changed or (None) left out."""
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir()
        for name in ("a.nii.gz", "b.nii", "t.nii.gz"):
            (root / part / name).touch()
    described = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_plain(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path))
    assert dataset.layout == "decathlon"
    assert dataset.modalities == ("MRI",)
    assert dataset.regions == Regions(
        ("background", "Anterior", "Posterior"), ((0,), (1,), (2,)), "softmax"
    )
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[0].images == (tmp_path / "imagesTr/a.nii.gz",)
    assert dataset.cases[1].label == tmp_path / "labelsTr/b.nii"


def test_byte_order_mark(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(find_decathlon(tmp_path).cases) == 2


@pytest.mark.parametrize("entry", ["./imagesTs/t.nii.gz", {"image": "imagesTs/t.nii.gz"}])
def test_test_cases_are_unlabelled(tmp_path: Path, entry: Any) -> None:
    dataset = find_decathlon(make(tmp_path, test=[entry]))
    assert [(case.name, case.label is None) for case in dataset.cases] == [
        ("a", False),
        ("b", False),
        ("t", True),
    ]


def test_several_modalities_are_in_numerical_order(tmp_path: Path) -> None:
    names = {str(i): f"m{i}" for i in (10, 2, 1, 0)}
    assert find_decathlon(make(tmp_path, modality=names)).modalities == ("m0", "m1", "m2", "m10")


def test_one_file_per_modality(tmp_path: Path) -> None:
    entry = {"image": ["imagesTr/a.nii.gz", "imagesTr/b.nii"], "label": "labelsTr/t.nii.gz"}
    (case,) = find_decathlon(make(tmp_path, training=[entry])).cases
    assert case.name == "t"
    assert case.images == (tmp_path / "imagesTr/a.nii.gz", tmp_path / "imagesTr/b.nii")


def test_names_to_values_as_in_nnunet(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 2, "tumour": 1}
    dataset = find_decathlon(
        make(tmp_path, labels=labels, modality=None, channel_names={"0": "CT"})
    )
    assert dataset.regions == Regions(
        ("background", "tumour", "liver"), ((0,), (1,), (2,)), "softmax"
    )
    assert dataset.normalization == "ct"


def test_lists_of_values_are_nested_regions(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    assert find_decathlon(make(tmp_path, labels=labels)).regions == Regions(
        ("whole", "core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), "sigmoid"
    )


@pytest.mark.parametrize(
    "labels", [{"background": 0, "a": 1, "ignore": 2}, {"0": "background", "1": "a", "2": "ignore"}]
)
def test_the_label_ignore_is_no_class(tmp_path: Path, labels: dict[str, Any]) -> None:
    regions = find_decathlon(make(tmp_path, labels=labels)).regions
    assert regions == Regions(("background", "a"), ((0,), (1,)), "softmax", ignore_index=2)


def test_background_is_added_where_it_is_not_listed(tmp_path: Path) -> None:
    regions = find_decathlon(make(tmp_path, labels={"2": "b", "1": "a"})).regions
    assert regions == Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")


@pytest.mark.parametrize("part", ["imagesTr/a.nii.gz", "labelsTr/b.nii", "imagesTs/t.nii.gz"])
def test_missing_file_is_named(tmp_path: Path, part: str) -> None:
    make(tmp_path, test=["imagesTs/t.nii.gz"])
    (tmp_path / part).unlink()
    with pytest.raises(InputError, match=rf"dataset\.json: names .*{part}, which does not exist"):
        open_dataset(tmp_path)


def test_every_case_of_a_missing_file_is_found(tmp_path: Path) -> None:
    make(tmp_path, test=["imagesTs/t.nii.gz"])
    for part in ("imagesTr/a.nii.gz", "imagesTs/t.nii.gz"):
        (tmp_path / part).unlink()
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["b"]
    assert list(dataset.problems) == ["a", "t"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": []}, "'training' lists no case"),
        ({"training": None}, "'training' is None; expected a list"),
        ({"training": {"a": 1}}, "'training' is {'a': 1}; expected a list"),
        (
            {"training": ["imagesTr/a.nii.gz"]},
            "'training' holds 'imagesTr/a.nii.gz'; expected an",
        ),
        ({"training": [{"image": 3}]}, "'image' is 3; expected a file name"),
        ({"training": [{"image": []}]}, "'image' is []; expected a file name"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": 1}]}, "'label' is 1; expected a"),
        ({"training": BASE["training"] * 2}, "lists the case a twice"),
        ({"modality": None}, "'modality' is None"),
        ({"modality": {}}, "'modality' is {}"),
        ({"modality": ["MRI"]}, "'modality' is ['MRI']"),
        ({"modality": {"first": "MRI"}}, "'modality' is {'first': 'MRI'}"),
        ({"labels": None}, "'labels' is None"),
        ({"labels": {"a": "b"}}, "'labels' is {'a': 'b'}; expected an object such as"),
        ({"labels": {"a": 40000}}, "expected values from 0 to 32767"),
        ({"labels": {"a": 1, "ignore": [2, 3]}}, "'ignore' has the values (2, 3); expected one"),
        ({"labels": {"0": "background"}}, "regions: softmax over one class"),
        ({"test": "none"}, "'test' is 'none'; expected a list"),
    ],
)
def test_bad_entries(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path, **changes)
    if changes.get("training") is None and "training" in changes:
        assert "training" not in json.loads((tmp_path / "dataset.json").read_text())
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[1, 2]"])
def test_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"dataset\.json: (cannot be read as JSON|holds a list)"):
        open_dataset(tmp_path)


def test_no_description(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json: no such file"):
        find_decathlon(tmp_path)
