"""The layout of BraTS 2019: ``{HGG,LGG}/CASE/CASE_{t1,t1ce,t2,flair,seg}.nii[.gz]``.

BraTS 2018, 2020 and 2021 have the same files, the latter two without the folders of grades.
"""

from __future__ import annotations

import re
from pathlib import Path

from egcnn.data.case import Case, Dataset, Layout, collect
from egcnn.data.nifti import find_volume, stem, volumes
from egcnn.errors import InputError
from egcnn.regions import BRATS

#: Channel order of every image read from this layout.
MODALITIES = ("t1", "t1ce", "t2", "flair")

_GRADES = ("HGG", "LGG")


def find_brats(root: Path) -> Dataset:
    """List the cases below ``root``, in ``HGG`` and ``LGG`` or directly in it.

    A case without ``_seg`` is unlabelled (the challenge's validation and test cases), unless one
    other file there is a segmentation by its name, as in case 355 of BraTS 2020. Cases that lack a
    modality or have the name of another are problems.

    Raises:
        InputError: there is no case.
    """
    folders: dict[str, Path] = {}
    doubles: dict[str, str] = {}
    for folder, name in _case_folders(root):
        if name in folders:
            # Under a name of its own: the first case may have a problem too.
            doubles[str(folder.relative_to(root))] = (
                f"{folder}: same name as {folders[name]}; expected every name once"
            )
        folders.setdefault(name, folder)
    if not folders:
        raise InputError(
            f"{root}: no BraTS case; expected folders CASE with CASE_t1.nii.gz, CASE_t1ce.nii.gz, "
            "CASE_t2.nii.gz and CASE_flair.nii.gz, in HGG, LGG or directly in it"
        )
    cases, problems = collect(sorted(folders.items()), brats_case)
    return Dataset("brats", root, cases, MODALITIES, BRATS, problems={**problems, **doubles})


def has_brats(root: Path) -> bool:
    """Whether ``root`` holds at least one folder that looks like a BraTS case."""
    return bool(_case_folders(root))


def brats_case(folder: Path) -> Case:
    """The case in ``folder``, whose name is the prefix of every file.

    Raises:
        InputError: a modality is missing.
    """
    name = _prefix(folder) or folder.name
    found = {modality: _file(folder, name, modality) for modality in MODALITIES}
    if missing := [modality for modality, path in found.items() if path is None]:
        what = f"modality {missing[0]} is" if len(missing) == 1 else f"{', '.join(missing)} are"
        raise InputError(f"{folder}: {what} missing; expected {name}_{missing[0]}.nii.gz or .nii")
    images = tuple(path for path in found.values() if path is not None)
    return Case(name, images, _file(folder, name, "seg") or _segmentation(folder, name))


def _segmentation(folder: Path, name: str) -> Path | None:
    """The segmentation under a name of its own, if there is exactly one.

    BraTS 2020 has ``BraTS20_Training_355/W39_1998.09.19_Segm.nii``. A file that begins with the
    case's name is something else, such as a prediction ``CASE_pred_seg.nii.gz``.
    """
    found = [
        path
        for path in volumes(folder)
        if re.search(r"[_.-]segm?$", stem(path), re.IGNORECASE) and not path.name.startswith(name)
    ]
    return found[0] if len(found) == 1 else None


def _single_case(folder: Path) -> Case | None:
    return brats_case(folder) if _prefix(folder) else None


def _case_folders(root: Path) -> list[tuple[Path, str]]:
    """Folders of cases with the prefix of their files."""
    parents = [root, *(root / grade for grade in _GRADES)]
    return [
        (folder, name)
        for parent in parents
        if parent.is_dir()
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and (name := _prefix(folder))
    ]


def _prefix(folder: Path) -> str | None:
    """The name that files of a case begin with: the folder's, or that of what a link points to."""
    for name in (folder.absolute().name, folder.resolve().name):
        if any(_file(folder, name, part) for part in (*MODALITIES, "seg")):
            return name
    return None


def _file(folder: Path, name: str, part: str) -> Path | None:
    return find_volume(folder, f"{name}_{part}")


#: The paper's patch (section 3.2) and colours (Figure 2), in the green, red and yellow that
#: colour-blind readers can tell apart (Okabe and Ito, 2008).
LAYOUT = Layout(
    looks_for=(
        "folders CASE with CASE_t1.nii.gz, CASE_t1ce.nii.gz, CASE_t2.nii.gz, CASE_flair.nii.gz in "
        "HGG, LGG or directly in it (BraTS)"
    ),
    matches=has_brats,
    find=find_brats,
    read_case=_single_case,
    largest_patch=(160, 192, 128),
    colours={"WT": "#009e73", "TC": "#d55e00", "ET": "#f0e442"},
    shown="flair",
)
