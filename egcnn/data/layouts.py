"""The layouts that there are, which of them a folder has, and which cases are held out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from egcnn.data import brats, decathlon
from egcnn.data.case import Case, Dataset, Layout
from egcnn.errors import InputError

#: By name, in the order in which a folder is tried.
LAYOUTS: dict[str, Layout] = {"decathlon": decathlon.LAYOUT, "brats": brats.LAYOUT}


def open_dataset(root: Path) -> Dataset:
    """Find the layout of ``root`` by looking and list its cases.

    Raises:
        InputError: no such folder, no layout that is known, or what the layout's reader says.
    """
    root = Path(root)
    if not root.is_dir():
        came = "a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: {came}; expected the folder of a dataset")
    for layout in LAYOUTS.values():
        if layout.matches(root):
            return layout.find(root)
    looked_for = " and for ".join(layout.looks_for for layout in LAYOUTS.values())
    raise InputError(f"{root}: no known dataset; looked for {looked_for}")


def read_cases(folder: Path) -> tuple[Case, ...]:
    """The case that a folder holds, or those of the dataset that it is.

    Raises:
        InputError: as :func:`open_dataset`.
    """
    for layout in LAYOUTS.values():
        if (case := layout.read_case(folder)) is not None:
            return (case,)
    return open_dataset(folder).cases


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
        raise InputError(f"fraction: {fraction}; expected a number between 0 and 1")
    labelled = [case for case in dataset.cases if case.label is not None]
    if not labelled:
        raise InputError(
            f"{dataset.root}: none of {len(dataset.cases)} cases has a label; expected at least one"
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
