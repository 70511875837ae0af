"""The BraTS 2019 layout: ``{HGG,LGG}/CASE/CASE_{t1,t1ce,t2,flair,seg}.nii[.gz]``."""

from __future__ import annotations

from pathlib import Path

from egcnn.data.case import Case, Dataset, Layout
from egcnn.data.nifti import find_volume
from egcnn.errors import InputError
from egcnn.regions import Regions

#: Labels 1 (necrotic and non-enhancing core), 2 (oedema) and 4 (enhancing) form nested regions.
BRATS = Regions(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)), "sigmoid")

#: Channel order of every image read from this layout.
MODALITIES = ("t1", "t1ce", "t2", "flair")

_GRADES = ("HGG", "LGG")


def find_brats(root: Path) -> Dataset:
    """List the cases below ``root``, in ``HGG`` and ``LGG`` or directly in it.

    A case without ``_seg`` is unlabelled (the challenge's validation and test cases).

    Raises:
        InputError: there is no case, a case lacks a modality, or two cases have the same name.
    """
    folders: dict[str, Path] = {}
    for folder, name in _case_folders(root):
        if name in folders:
            raise InputError(f"{folder}: same name as {folders[name]}; expected every name once")
        folders[name] = folder
    if not folders:
        raise InputError(
            f"{root}: no BraTS case; expected folders CASE with CASE_t1.nii.gz, CASE_t1ce.nii.gz, "
            "CASE_t2.nii.gz and CASE_flair.nii.gz, in HGG, LGG or directly in it"
        )
    cases = tuple(brats_case(folders[name]) for name in sorted(folders))
    return Dataset("brats", root, cases, MODALITIES, BRATS)


def has_brats(root: Path) -> bool:
    """Whether ``root`` holds at least one folder that looks like a BraTS case."""
    return bool(_case_folders(root))


def brats_case(folder: Path) -> Case:
    """The case in ``folder``, whose name is the prefix of every file.

    Raises:
        InputError: a modality is missing.
    """
    name = _prefix(folder) or folder.name
    images = []
    for modality in MODALITIES:
        path = _file(folder, name, modality)
        if path is None:
            raise InputError(
                f"{folder}: modality {modality} is missing; expected {name}_{modality}.nii.gz or "
                ".nii"
            )
        images.append(path)
    return Case(name, tuple(images), _file(folder, name, "seg"))


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
        if any(_file(folder, name, modality) for modality in MODALITIES):
            return name
    return None


def _file(folder: Path, name: str, part: str) -> Path | None:
    return find_volume(folder, f"{name}_{part}")


#: The paper's patch (section 3.2) and colours (Figure 2).
LAYOUT = Layout(
    looks_for=(
        "folders CASE with CASE_t1.nii.gz, CASE_t1ce.nii.gz, CASE_t2.nii.gz, CASE_flair.nii.gz in "
        "HGG, LGG or directly in it (BraTS)"
    ),
    matches=has_brats,
    find=find_brats,
    read_case=_single_case,
    largest_patch=(160, 192, 128),
    colours={"WT": "#2ca02c", "TC": "#d62728", "ET": "#ffdd33"},
)
