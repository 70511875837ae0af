"""Synthetic cases in the layouts of the challenges, for demonstrations, trials and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egcnn.data.case import Case
from egcnn.data.phantom.brats import BRATS_SHAPE, brats_volumes, write_brats_case
from egcnn.data.phantom.fields import check_phantom
from egcnn.data.phantom.kits import kits_volumes, write_kits_case
from egcnn.data.phantom.nnunet import describe_nnunet, write_nnunet_case
from egcnn.errors import InputError
from egcnn.files import write_json

__all__ = [
    "PHANTOMS",
    "Phantom",
    "brats_volumes",
    "kits_volumes",
    "write_brats",
    "write_phantoms",
]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Phantom:
    """How synthetic cases of a layout are written.

    Args:
        write_case: takes the root, the case's number, its shape and the seed.
        shape: the challenge's shape; None draws one for each case.
        describe: writes what the layout has beside its cases: takes the root and their names.
    """

    write_case: Callable[[Path, int, Any, int], Case]
    shape: Shape | None
    describe: Callable[[Path, list[str]], None] = lambda root, names: None


def _describe_kits(root: Path, names: list[str]) -> None:
    write_json(root / "data" / "kits.json", [{"case_id": name} for name in names])


#: By the name of the layout.
PHANTOMS: dict[str, Phantom] = {
    "brats": Phantom(write_brats_case, BRATS_SHAPE),
    "kits": Phantom(write_kits_case, None, _describe_kits),
    "nnunet": Phantom(write_nnunet_case, BRATS_SHAPE, describe_nnunet),
}


def write_phantoms(
    layout: str, root: str | Path, cases: int, shape: Shape | None = None, seed: int = 0
) -> Iterator[Case]:
    """Write synthetic cases.

    Args:
        layout: ``"brats"``: ``root/HGG/PHANTOM_000/PHANTOM_000_{t1,t1ce,t2,flair,seg}.nii.gz``,
            voxels of 1 mm; ``"kits"``: ``root/data/case_00000/{imaging,segmentation}.nii.gz``, see
            :func:`kits_volumes`; ``"nnunet"``: the cases of ``"brats"`` as a raw dataset of nnU-Net
            with its own label values.
        root: folder, created if missing.
        cases: number of cases.
        shape: voxels in the order of the arrays; None takes the challenge's.
        seed: case ``i`` depends only on ``layout``, ``seed``, ``i`` and ``shape``.

    Yields:
        each case when it has been written.

    Raises:
        InputError: an unknown layout, fewer than one case, an axis below 16 voxels, a negative
            seed, or a file that cannot be written.
    """
    if layout not in PHANTOMS:
        raise InputError(f"layout: {layout!r}; expected one of {', '.join(PHANTOMS)}")
    if cases < 1:
        raise InputError(f"cases: {cases}; expected at least 1")
    phantom = PHANTOMS[layout]
    shape = phantom.shape if shape is None else shape
    check_phantom(shape, seed)
    names: list[str] = []
    for index in range(cases):
        case = phantom.write_case(Path(root), index, shape, seed)
        names.append(case.name)
        yield case
    phantom.describe(Path(root), names)


def write_brats(
    root: str | Path, cases: int, shape: Shape = (64, 64, 48), seed: int = 0
) -> tuple[Case, ...]:
    """Write cases in the BraTS layout; see :func:`write_phantoms`."""
    return tuple(write_phantoms("brats", root, cases, shape, seed))
