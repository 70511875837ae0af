"""Which layout a folder has, and which of its cases are held out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from egcnn.data.brats import find_brats, has_brats
from egcnn.data.case import Case, Dataset
from egcnn.data.decathlon import find_decathlon
from egcnn.errors import InputError


def open_dataset(root: Path) -> Dataset:
    """Find the layout of ``root`` by looking and list its cases.

    Raises:
        InputError: no such folder, no layout that is known, or what the layout's reader says.
    """
    root = Path(root)
    if not root.is_dir():
        came = "a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: {came}; wanted the folder of a dataset")
    if (root / "dataset.json").exists():
        return find_decathlon(root)
    if has_brats(root):
        return find_brats(root)
    raise InputError(
        f"{root}: no known dataset; looked for dataset.json (Decathlon) and for folders CASE with "
        "CASE_t1.nii.gz, CASE_t1ce.nii.gz, CASE_t2.nii.gz, CASE_flair.nii.gz in HGG, LGG or "
        "directly in it (BraTS)"
    )


def split(
    dataset: Dataset, fraction: float = 0.2, seed: int = 0
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Divide the labelled cases into training and validation cases.

    The side follows from a hash of seed and case name alone, so a case keeps it when others are
    added, whatever their order. The share is therefore met on average. Where all of at least two
    cases fall on one side, the one nearest to the other side moves.

    Args:
        dataset: its unlabelled cases are left out.
        fraction: share of validation cases, between 0 and 1.
        seed: another seed is another division.

    Raises:
        InputError: no labelled case, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction: {fraction}; wanted a number between 0 and 1")
    labelled = [case for case in dataset.cases if case.label is not None]
    if not labelled:
        raise InputError(
            f"{dataset.root}: none of {len(dataset.cases)} cases has a label; wanted at least one"
        )
    position = {case.name: _position(case.name, seed) for case in labelled}
    held_out = {name for name, place in position.items() if place < fraction}
    if len(labelled) > 1 and not held_out:
        held_out = {min(position, key=position.__getitem__)}
    elif len(held_out) == len(labelled):
        held_out.discard(max(position, key=position.__getitem__))
    return (
        tuple(case for case in labelled if case.name not in held_out),
        tuple(case for case in labelled if case.name in held_out),
    )


def _position(name: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
