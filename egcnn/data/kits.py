"""The KiTS 2019 layout: ``case_00000/{imaging,segmentation}.nii.gz``, in ``data`` or directly."""

from __future__ import annotations

from pathlib import Path

from egcnn.data.case import Case, Dataset, Layout, collect
from egcnn.data.nifti import find_volume
from egcnn.errors import InputError
from egcnn.regions import KITS

_IMAGE, _LABEL = "imaging", "segmentation"


def find_kits(root: Path) -> Dataset:
    """List the cases in ``root`` or in ``root/data``.

    A case without ``segmentation`` is unlabelled (the challenge's test cases). ``kits.json``, which
    describes the patients, is not read.

    Raises:
        InputError: there is no case.
    """
    folders = _case_folders(root)
    if not folders:
        raise InputError(
            f"{root}: no KiTS case; expected folders case_00000, case_00001, ... with "
            "imaging.nii.gz, in data or directly in it"
        )
    cases, problems = collect(((folder.name, folder) for folder in folders), kits_case)
    return Dataset("kits", root, cases, ("CT",), KITS, problems=problems)


def has_kits(root: Path) -> bool:
    """Whether ``root`` or ``root/data`` holds at least one folder that looks like a KiTS case."""
    return bool(_case_folders(root))


def kits_case(folder: Path) -> Case:
    """The case in ``folder``, which is named after it.

    Raises:
        InputError: there is no image.
    """
    image = find_volume(folder, _IMAGE)
    if image is None:
        raise InputError(
            f"{folder}: {_IMAGE}.nii.gz is missing; expected the CT beside {_LABEL}.nii.gz "
            "(the challenge's get_imaging script downloads it)"
        )
    return Case(folder.absolute().name, (image,), find_volume(folder, _LABEL))


def _single_case(folder: Path) -> Case | None:
    return kits_case(folder) if _is_case(folder) else None


def _is_case(folder: Path) -> bool:
    return folder.is_dir() and any(find_volume(folder, part) for part in (_IMAGE, _LABEL))


def _case_folders(root: Path) -> list[Path]:
    for parent in (root, root / "data"):
        if parent.is_dir() and (found := sorted(filter(_is_case, parent.iterdir()))):
            return found
    return []


#: The paper's colours (Figure 3), as those of :mod:`egcnn.data.brats`.
LAYOUT = Layout(
    looks_for="folders case_00000, ... with imaging.nii.gz in data or directly in it (KiTS)",
    matches=has_kits,
    find=find_kits,
    read_case=_single_case,
    largest_patch=(176, 176, 176),
    colours={"kidney": "#d55e00", "tumour": "#009e73"},
)
