"""nnU-Net's raw datasets: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from os.path import isfile  # False for names that no file can have
from pathlib import Path
from typing import Any

from egcnn.data.case import Case, Dataset, Layout, collect
from egcnn.data.decathlon import described_modalities, described_regions, read_description
from egcnn.data.nifti import SUFFIXES
from egcnn.errors import InputError, brief, shown
from egcnn.typed import typed

_FILE = "dataset.json"


def find_nnunet(root: Path) -> Dataset:
    """Read ``root/dataset.json`` and list the cases of ``imagesTr`` and, unlabelled, ``imagesTs``.

    ``channel_names`` names the modalities; if all are ``CT``, intensities are Hounsfield units.
    ``labels`` maps names to values, or to lists of values if the regions overlap;
    ``regions_class_order`` gives the value that predictions have in each region. The label
    ``ignore`` marks voxels that were not annotated. With an entry ``dataset``, which maps names to
    ``{"images": [...], "label": ...}``, these files are the training cases.

    Raises:
        InputError: the description is damaged or lacks an entry, its ``file_ending`` is not
            NIfTI's, or there is no case.
    """
    path = root / _FILE
    described = read_description(path)
    modalities = described_modalities(path, described)
    regions = described_regions(path, described)
    ending = described.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise InputError(
            f"{path}: 'file_ending' is {shown(ending)}; expected one of {', '.join(SUFFIXES)}"
        )
    listed = described.get("dataset")
    if listed is None:
        read_training = _reader(root, "Tr", ending, modalities)
        names = _names(root / "imagesTr", ending) | _names(root / "labelsTr", ending, "")
    else:
        read_training, names = _listed_reader(path, listed, modalities), set(listed)
    training, problems = collect(((name, name) for name in sorted(names)), read_training)
    test, more = collect(
        ((name, name) for name in sorted(_names(root / "imagesTs", ending) - names)),
        _reader(root, "Ts", ending, modalities),
    )
    if not (training or test or problems or more):
        raise InputError(
            f"{root}: no case; expected imagesTr/CASE_0000{ending} and labelsTr/CASE{ending}"
        )
    return Dataset(
        "nnunet", root, training + test, modalities, regions, problems={**problems, **more}
    )


def has_nnunet(root: Path) -> bool:
    """Whether ``root/dataset.json`` is one of nnU-Net and not of the Decathlon."""
    try:
        described = read_description(root / _FILE)
    except InputError:
        return False
    return "file_ending" in described or (
        "channel_names" in described and "training" not in described
    )


def _names(folder: Path, ending: str, channel: str = r"_\d{4}") -> set[str]:
    """The cases that have a file in a folder."""
    pattern = re.compile(rf"([^.].*){channel}{re.escape(ending)}")
    if not folder.is_dir():
        return set()
    return {match[1] for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}


def _reader(
    root: Path, part: str, ending: str, modalities: tuple[str, ...]
) -> Callable[[str], Case]:
    """A function from a name to the case among the files of ``imagesTr`` or ``imagesTs``."""

    def read(name: str) -> Case:
        images = tuple(
            root / f"images{part}" / f"{name}_{channel:04d}{ending}"
            for channel in range(len(modalities))
        )
        label = root / "labelsTr" / f"{name}{ending}" if part == "Tr" else None
        return _case(name, images, label, modalities)

    return read


def _listed_reader(path: Path, listed: Any, modalities: tuple[str, ...]) -> Callable[[str], Case]:
    """A function from a name to the case that ``dataset`` describes."""
    if not isinstance(listed, Mapping):
        raise InputError(f"{path}: 'dataset' is a {type(listed).__name__}; expected an object")

    for name in listed:
        # Predictions and cached cases are files of this name in another folder.
        typed(f"{path}: 'dataset'", name, str)
        if not name or "/" in name or "\0" in name:
            raise InputError(f"{path}: 'dataset' has {shown(name)}; expected the name of a case")

    def read(name: str) -> Case:
        entry = listed[name]
        files = entry.get("images") if isinstance(entry, Mapping) else None
        label = entry.get("label") if isinstance(entry, Mapping) else None
        if (
            not isinstance(files, list)
            or len(files) != len(modalities)
            or not all(isinstance(file, str) for file in [*files, label])
        ):
            raise InputError(
                f"{path}: 'dataset' describes {brief(name)} otherwise than by 'label' and "
                f"{len(modalities)} 'images', one per channel"
            )
        images = tuple(path.parent / file for file in files)
        return _case(name, images, path.parent / str(label), modalities)

    return read


def _case(
    name: str, images: tuple[Path, ...], label: Path | None, modalities: tuple[str, ...]
) -> Case:
    """The case of these files.

    Raises:
        InputError: one does not exist.
    """
    for file, modality in zip(images, modalities, strict=True):
        if not isfile(file):
            raise InputError(f"{file}: no such file; expected the channel {modality} of {name}")
    if label is not None and not isfile(label):
        raise InputError(f"{label}: no such file; expected the label map of {name}")
    return Case(name, images, label)


LAYOUT = Layout(
    looks_for="dataset.json with imagesTr and labelsTr (nnU-Net)",
    matches=has_nnunet,
    find=find_nnunet,
)
