"""The registry of layouts, their detection, and the split into training and validation cases."""

from __future__ import annotations

import hashlib
from pathlib import Path

from egcnn.data import brats, decathlon
from egcnn.data.case import Case, Dataset, Layout
from egcnn.errors import InputError

#: All layouts by name, in the order in which they are tried.
LAYOUTS: dict[str, Layout] = {"decathlon": decathlon.LAYOUT, "brats": brats.LAYOUT}


def open_dataset(root: Path) -> Dataset:
    """Detect the layout of ``root`` and list its cases.

    Raises:
        InputError: no such folder, an unknown layout, or as the layout's ``find``.
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
    """The cases of a folder, which may be one case or a dataset.

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

    A case's side depends only on a hash of the seed and its name, so it stays the same when cases
    are added or reordered, and ``fraction`` is met only on average. If all of at least two cases
    fall on one side, the case nearest to the boundary is moved.

    Args:
        dataset: unlabelled cases are ignored.
        fraction: expected fraction of validation cases, between 0 and 1.
        seed: seed of the hash; another seed gives another split.

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
