"""The Medical Segmentation Decathlon layout: a folder described by its ``dataset.json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from os.path import isfile  # False for names that no file can have
from pathlib import Path
from typing import Any

from egcnn.data.case import Case, Dataset, Layout
from egcnn.data.nifti import common_name, stem
from egcnn.errors import InputError, shown
from egcnn.files import read_json
from egcnn.regions import Regions
from egcnn.typed import typed

#: Name of the label whose voxels were not annotated, as nnU-Net has it.
IGNORE = "ignore"


def find_decathlon(root: Path) -> Dataset:
    """Read ``root/dataset.json``.

    ``training`` lists ``{"image": ..., "label": ...}``, ``test`` (optional) lists images as strings
    or ``{"image": ...}``; an image is one file, with all modalities in its last axis, or a list of
    one file per modality. ``labels`` maps values to names, or names to values as nnU-Net v2 does,
    where a list of values defines a region, and ``regions_class_order`` the value that predictions
    have in each. The label "ignore" marks voxels that were not annotated (nnU-Net). Counts such as
    ``numTest`` are ignored.

    Raises:
        InputError: the file is missing, is not JSON or lacks an entry; two cases have the same
            name; or no case is listed.
    """
    path = root / "dataset.json"
    described = read_description(path)
    cases: dict[str, Case] = {}
    for case in _named_apart(
        [
            *(_training_case(path, entry) for entry in _list(path, described, "training")),
            *(_test_case(path, entry) for entry in _list(path, described, "test")),
        ]
    ):
        if case.name in cases:
            raise InputError(f"{path}: lists the case {case.name} twice; expected each once")
        cases[case.name] = case
    if not cases:
        raise InputError(f"{path}: 'training' lists no case; expected at least one")
    problems = {
        case.name: problem for case in cases.values() if (problem := _missing_file(path, case))
    }
    found = tuple(case for case in cases.values() if case.name not in problems)
    modalities, regions = described_modalities(path, described), described_regions(path, described)
    return Dataset("decathlon", root, found, modalities, regions, problems=problems)


def read_description(path: Path) -> dict[str, Any]:
    """Read a ``dataset.json``.

    Raises:
        InputError: it is missing, or holds no JSON object.
    """
    described = read_json(path)
    if not isinstance(described, dict):
        raise InputError(f"{path}: holds a {type(described).__name__}; expected an object")
    return described


def _named_apart(cases: list[Case]) -> list[Case]:
    """The cases, those of one name renamed after their folders if these tell them apart.

    ``case_1/imaging.nii.gz`` and ``case_2/imaging.nii.gz`` are ``case_1`` and ``case_2``.
    """
    count = Counter(case.name for case in cases)
    renamed = [
        case if count[case.name] == 1 else replace(case, name=case.images[0].parent.name)
        for case in cases
    ]
    return renamed if len({case.name for case in renamed}) == len(cases) else cases


def _list(path: Path, described: dict[str, Any], key: str) -> list[Any]:
    entries = described.get(key, [] if key == "test" else None)
    if not isinstance(entries, list):
        raise InputError(f"{path}: {key!r} is {shown(entries)}; expected a list of cases")
    return entries


def _training_case(path: Path, entry: Any) -> Case:
    if not isinstance(entry, dict) or "image" not in entry:
        raise InputError(
            f"{path}: 'training' holds {shown(entry)}; expected an object with 'image' and 'label'"
        )
    label = entry.get("label")
    if label is not None and not isinstance(label, str):
        raise InputError(f"{path}: 'label' is {shown(label)}; expected a file name")
    images = _images(path, entry["image"])
    named = path.parent / label if label else images[0]
    name = stem(images[0]) if len(images) == 1 else stem(named)
    return Case(name, images, path.parent / label if label else None)


def _test_case(path: Path, entry: Any) -> Case:
    images = _images(path, entry.get("image") if isinstance(entry, dict) else entry)
    return Case(common_name(images), images)


def _images(path: Path, entry: Any) -> tuple[Path, ...]:
    names = [entry] if isinstance(entry, str) else entry
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path}: 'image' is {shown(entry)}; expected a file name or several")
    return tuple(path.parent / name for name in names)


def _missing_file(path: Path, case: Case) -> str | None:
    """What is wrong with a case of which a file does not exist."""
    missing = [file for file in case.files if not isfile(file)]
    if not missing:
        return None
    return f"{path}: names {missing[0]}, which does not exist; expected every file it lists"


def described_modalities(path: Path, described: dict[str, Any]) -> tuple[str, ...]:
    """The modalities by ``modality`` or ``channel_names``, in the order of their numbers.

    Raises:
        InputError: the entry is missing or something else.
    """
    nnunet = "channel_names" in described and "modality" not in described
    key = "channel_names" if nnunet else "modality"
    names = described.get(key)
    if not isinstance(names, dict) or not names or not all(map(_is_number, names)):
        raise InputError(
            f"{path}: {key!r} is {shown(names)}; expected an object such as {{'0': 'MRI'}}"
        )
    try:
        return tuple(typed("name", names[number], str) for number in sorted(names, key=int))
    except InputError as error:
        raise InputError(f"{path}: {key!r} is {shown(names)}; {error}") from None


def described_regions(path: Path, described: dict[str, Any]) -> Regions:
    """The regions by ``labels`` and ``regions_class_order``; see :func:`find_decathlon`.

    Raises:
        InputError: an entry is missing or something else.
    """
    labels = described.get("labels")
    expected = "expected an object such as {'0': 'background', '1': 'liver'}"
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"{path}: 'labels' is {shown(labels)}; {expected}")
    named: list[tuple[str, tuple[int, ...]]]
    try:
        if all(map(_is_number, labels)):
            named = [(typed("name", name, str), (int(key),)) for key, name in labels.items()]
        else:
            named = [
                (
                    typed("name", name, str),
                    tuple(map(_label, value if isinstance(value, list) else [value])),
                )
                for name, value in labels.items()
            ]
    except ValueError:
        raise InputError(f"{path}: 'labels' is {shown(labels)}; {expected}") from None
    try:
        order = typed("regions_class_order", described.get("regions_class_order"), list[int] | None)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        return _named_regions(named, order)
    except InputError as error:
        raise InputError(f"{path}: 'labels' is {shown(labels)}; {error}") from None


def _is_number(key: str) -> bool:
    return key.isdecimal() and len(key) < 10


def _label(value: Any) -> int:
    """A label value, which may be written as text."""
    number: int = typed("label", int(value) if isinstance(value, str) else value, int)
    return number


def _named_regions(named: list[tuple[str, tuple[int, ...]]], order: list[int] | None) -> Regions:
    ignored = [values for name, values in named if name == IGNORE]
    if any(len(values) != 1 for values in ignored):
        raise InputError(f"{IGNORE!r} has the values {ignored[0]}; expected one")
    ignore_index = ignored[0][0] if ignored else None
    named = [(name, values) for name, values in named if name != IGNORE]
    foreground = [(name, values) for name, values in named if values != (0,)]
    if any(len(values) != 1 for _, values in foreground):
        names, sets = zip(*foreground, strict=True)
        class_order = None if order is None else tuple(order)
        return Regions(names, sets, "sigmoid", ignore_index, class_order)
    background = next((name for name, values in named if values == (0,)), "background")
    foreground.sort(key=lambda item: item[1])
    names, sets = zip((background, (0,)), *foreground, strict=True)
    return Regions(names, sets, "softmax", ignore_index)


LAYOUT = Layout(
    looks_for="dataset.json (Decathlon)",
    matches=lambda root: (root / "dataset.json").exists(),
    find=find_decathlon,
)
