"""The split of a dataset into training and validation cases: a share, or one of five folds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from egcnn.data.case import Case, Dataset
from egcnn.errors import InputError, brief
from egcnn.files import read_json
from egcnn.typed import entry, typed

#: Number of folds where no file lists them.
FOLDS = 5
#: nnU-Net's file of folds, beside the cases: ``[{"train": [NAME, ...], "val": [NAME, ...]}, ...]``.
FOLD_FILE = "splits_final.json"

Split = tuple[tuple[Case, ...], tuple[Case, ...]]


def split(dataset: Dataset, fraction: float = 0.2, seed: int = 0, fold: int | None = None) -> Split:
    """Divide the labelled cases into training and validation cases.

    With a fraction, a case's side depends only on a hash of the seed and its name, so it stays the
    same when cases are added or reordered, and the fraction is met only on average. If all of at
    least two cases fall on one side, the case nearest to the boundary is moved.

    A fold takes its cases from :data:`FOLD_FILE` in the dataset's folder. Without that file, the
    cases in the order of their hashes are dealt to :data:`FOLDS` folds, whose sizes differ by at
    most one.

    Args:
        dataset: unlabelled cases are ignored.
        fraction: expected fraction of validation cases, between 0 and 1; unused with a fold.
        seed: seed of the hash; another seed gives another split, and other folds.
        fold: number of the fold, from 0, whose cases are the validation cases.

    Raises:
        InputError: no labelled case, a fraction outside (0, 1), no such fold, fewer labelled cases
            than folds, or a file of folds that is damaged or names other cases.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction: {fraction}; expected a number between 0 and 1")
    labelled = [case for case in dataset.cases if case.label is not None]
    if not labelled:
        raise InputError(
            f"{dataset.root}: none of {len(dataset.cases)} cases has a label; expected at least one"
        )
    position = {case.name: _position(case.name, seed) for case in labelled}
    if fold is not None:
        file = dataset.root / FOLD_FILE
        train, held_out = _listed_fold(file, fold) if file.exists() else _fold(position, fold)
        if absent := sorted((train | held_out) - set(position)):
            raise InputError(
                f"{file}: lists {brief(absent[0])}{_more(absent)}; expected labelled cases of "
                f"{dataset.root}"
            )
    else:
        held_out = _share(position, fraction)
        train = set(position) - held_out
    return (
        tuple(case for case in labelled if case.name in train),
        tuple(case for case in labelled if case.name in held_out),
    )


def _share(position: dict[str, float], fraction: float) -> set[str]:
    held_out = {name for name, place in position.items() if place < fraction}
    if len(position) > 1 and not held_out:
        held_out = {min(position, key=position.__getitem__)}
    elif len(held_out) == len(position):
        held_out.discard(max(position, key=position.__getitem__))
    return held_out


def _fold(position: dict[str, float], fold: int) -> tuple[set[str], set[str]]:
    if not 0 <= fold < FOLDS:
        raise InputError(f"fold: {fold}; expected 0 to {FOLDS - 1}")
    if len(position) < FOLDS:
        raise InputError(f"fold: {len(position)} labelled cases; expected at least {FOLDS}")
    held_out = set(sorted(position, key=position.__getitem__)[fold::FOLDS])
    return set(position) - held_out, held_out


def _listed_fold(file: Path, fold: int) -> tuple[set[str], set[str]]:
    try:
        folds = typed("folds", read_json(file), list[Any])
        sides = [[set(entry(f, part, list[str])) for part in ("train", "val")] for f in folds]
    except InputError as error:
        said = str(error).removeprefix(f"{file}: ")
        raise InputError(
            f"{file}: no list of folds ({said}); expected "
            "[{'train': [NAME, ...], 'val': [NAME, ...]}, ...]"
        ) from error
    if not 0 <= fold < len(sides):
        raise InputError(f"fold: {fold}; expected one of the {len(sides)} in {file}, from 0")
    train, held_out = sides[fold]
    if not (train and held_out):
        empty = "val" if train else "train"
        raise InputError(f"{file}: fold {fold} has no case as {empty!r}; expected at least one")
    if both := sorted(train & held_out):
        raise InputError(
            f"{file}: fold {fold} lists {brief(both[0])}{_more(both)} as 'train' and as 'val'; "
            "expected either"
        )
    return train, held_out


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _position(name: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
