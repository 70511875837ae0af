"""The registry of layouts, and their detection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from egcnn.data import brats, decathlon, kits, nnunet
from egcnn.data.case import Case, Dataset, Layout, check_problems
from egcnn.data.nifti import stem, volumes_by_stem
from egcnn.errors import InputError

#: All layouts by name, in the order in which they are tried.
LAYOUTS: dict[str, Layout] = {
    "nnunet": nnunet.LAYOUT,
    "decathlon": decathlon.LAYOUT,
    "brats": brats.LAYOUT,
    "kits": kits.LAYOUT,
}


def open_dataset(root: Path) -> Dataset:
    """Detect the layout of ``root`` and list its cases.

    Raises:
        InputError: as :func:`find_dataset`, or a case that cannot be listed, such as one that lacks
            a modality.
    """
    dataset = find_dataset(root)
    check_problems(root, list(dataset.problems.values()))
    return dataset


def find_dataset(root: Path) -> Dataset:
    """As :func:`open_dataset`, but cases that cannot be listed are in the dataset's ``problems``.

    Raises:
        InputError: no such folder, an unknown layout, or no case.
    """
    root = Path(root)
    if not root.is_dir():
        came = "a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: {came}; expected the folder of a dataset")
    for layout in LAYOUTS.values():
        if layout.matches(root):
            return _with_texts_as_names(layout.find(root))
    *others, last = (layout.looks_for for layout in LAYOUTS.values())
    raise InputError(f"{root}: no known dataset; looked for {', '.join(others)} and {last}")


def shown_modality(dataset: Dataset) -> str:
    """The modality that pictures of a dataset's cases show."""
    layout = LAYOUTS.get(dataset.layout)
    return layout.shown if layout is not None and layout.shown else dataset.modalities[0]


def shown_channel(dataset: Dataset) -> int:
    """The channel of an image that holds :func:`shown_modality`."""
    return dataset.modalities.index(shown_modality(dataset))


def shown_colours(dataset: Dataset) -> Mapping[str, str]:
    """Colours of regions by name in pictures; those that are not named take a palette's."""
    layout = LAYOUTS.get(dataset.layout)
    return {} if layout is None else layout.colours


def _with_texts_as_names(dataset: Dataset) -> Dataset:
    """The dataset, in which cases whose names no table or JSON file can hold are problems."""
    bad = {
        case.name: f"{case.images[0]}: the name of its case is not UTF-8; expected another name"
        for case in dataset.cases
        if case.name.encode(errors="replace").decode() != case.name
    }
    if not bad:
        return dataset
    cases = tuple(case for case in dataset.cases if case.name not in bad)
    return replace(dataset, cases=cases, problems={**dataset.problems, **bad})


def read_cases(folder: Path, modalities: int = 1) -> tuple[Case, ...]:
    """The cases of a folder, which may be one case, a dataset, or a folder of scans.

    Args:
        folder: without a known layout, each of its NIfTI files is a case; where there is a file
            per modality, named ``CASE_0000.nii.gz`` and so on as nnU-Net does, each ``CASE`` is.
            Other numbers, such as years, belong to the names.
        modalities: number of files of a case that has one per modality.

    Raises:
        InputError: as :func:`open_dataset`.
    """
    for layout in LAYOUTS.values():
        if (case := layout.read_case(folder)) is not None:
            return (case,)
    known = any(layout.matches(folder) for layout in LAYOUTS.values())
    if not known and folder.is_dir() and (files := volumes_by_stem(folder)):
        return _scans(files, modalities)
    return open_dataset(folder).cases


def _scans(files: Mapping[str, Path], modalities: int) -> tuple[Case, ...]:
    """Cases of a folder of scans; a file per case, or per modality as nnU-Net names them.

    Raises:
        InputError: a modality of a case is missing, and another case has all.
    """
    cases: list[Case] = []
    channels: dict[str, dict[int, Path]] = {}
    for name, file in files.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        # Scans that are counted on beyond the channels are numbered themselves.
        series = match and f"{match[1]}_{modalities:04d}" in files
        if match and int(match[2]) < modalities and not series:
            channels.setdefault(match[1], {})[int(match[2])] = file
        else:  # its number is no channel's, such as a year
            cases.append(Case(name, (file,)))
    whole = [name for name, found in channels.items() if len(found) == modalities]
    for name, found in channels.items():
        if name in whole:
            cases.append(Case(name, tuple(found[channel] for channel in range(modalities))))
        elif whole:
            missing = next(channel for channel in range(modalities) if channel not in found)
            raise InputError(
                f"{next(iter(found.values()))}: {name}_{missing:04d} is missing; expected "
                f"{modalities} files, as {whole[0]} has"
            )
        else:
            cases += [Case(stem(file), (file,)) for file in found.values()]
    return tuple(sorted(cases, key=lambda case: case.name))
