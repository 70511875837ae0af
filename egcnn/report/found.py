"""What a report can be about: the trainings, evaluations and comparison that lie in folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from os.path import commonpath, isdir  # isdir is False for names that no file can have
from pathlib import Path

from egcnn.comparison import RECORD, Comparison, read_comparison
from egcnn.data.case import Case, Dataset
from egcnn.data.layouts import open_dataset
from egcnn.data.nifti import find_volume
from egcnn.errors import InputError
from egcnn.evaluation import SUMMARY, Evaluation, read_evaluation
from egcnn.files import digest
from egcnn.inference import EDGES
from egcnn.metrics import mean_and_deviation
from egcnn.nn.backbones import BACKBONES
from egcnn.training import (
    CONFIG,
    HISTORY,
    PREDICTIONS,
    RunConfig,
    checkpoints,
    read_config,
    read_history,
)
from egcnn.typed import entry


@dataclass(frozen=True)
class Training:
    """A run's folder.

    Args:
        title: its name, different from those of the other trainings.
        folder: the folder.
        described: its ``config.json``.
        history: the rows of its ``history.csv``.
    """

    title: str
    folder: Path
    described: RunConfig
    history: list[dict[str, float]]

    @property
    def regions(self) -> list[str]:
        """The names of the reported regions."""
        keys = self.history[0] if self.history else {}
        return [key.removeprefix("dice_") for key in keys if key.startswith("dice_")]

    @property
    def checkpoints(self) -> Iterator[tuple[Path, str]]:
        """The run's checkpoints, the newest first, and the SHA-256 of each."""
        return ((p, _digest(p, p.stat().st_mtime_ns)) for p in checkpoints(self.folder))


@cache
def _digest(path: Path, changed: int) -> str:
    """A file's SHA-256; a large network's checkpoint takes a second."""
    return digest([path])


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, with what its pictures need.

    Args:
        title: what was evaluated.
        evaluation: its scores.
        dataset: the truth; None if it is not where it was.
        predictions: the folder of label maps; None if it is not where it was.
        checkpoint: the network that made them, if it is at hand.
    """

    title: str
    evaluation: Evaluation
    dataset: Dataset | None
    predictions: Path | None
    checkpoint: Path | None

    @cached_property
    def ranking(self) -> list[tuple[str, float]]:
        """The cases and their Dice, averaged over regions, from the worst to the best."""
        means = {
            name: mean_and_deviation([region["dice"] for region in regions.values()])[0]
            for name, regions in self.evaluation.cases.items()
        }
        return sorted(means.items(), key=lambda item: item[1])

    @cached_property
    def drawable(self) -> dict[str, Case]:
        """The cases whose truth and prediction are at hand, from the worst to the best."""
        if self.dataset is None:
            return {}
        known = {case.name: case for case in self.dataset.cases if case.label is not None}
        ranked = (name for name, _ in self.ranking if name in known)
        return {name: known[name] for name in ranked if self.prediction(name) is not None}

    def prediction(self, name: str) -> Path | None:
        """The file of a case's label map, if there is one."""
        return None if self.predictions is None else find_volume(self.predictions, name)

    def edges(self, name: str) -> Path | None:
        """The file of a case's edge probabilities, if there is one."""
        return self.prediction(name + EDGES)


@dataclass(frozen=True)
class Found:
    """What a report is about.

    Args:
        trainings: all that were found.
        evaluations: the ones to show. Of a comparison's, those of the first backbone's arms with
            the lowest seed, EG-CNN first.
        comparison: the comparison, if there is one.
    """

    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluated, ...]
    comparison: Comparison | None


def find(folders: Sequence[Path], data: Path | None = None) -> Found:
    """Find what a report is about in folders, and in the folders in them, to two levels.

    Args:
        folders: of trainings, evaluations, comparisons or a demo, which make one report.
        data: the dataset, if it is no longer where it was.

    Raises:
        InputError: no such folder, nothing there, or a damaged file.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected one of a training or evaluation")
    runs = [p.parent for p in _files(folders, HISTORY) if (p.parent / CONFIG).is_file()]
    trainings = [
        Training(title, run, read_config(run), read_history(run))
        for run, title in _titles(runs).items()
    ]
    records = list(_files(folders, RECORD))
    comparison = read_comparison(records[0].parent) if records else None
    if comparison is None:
        titles = _titles([path.parent for path in _files(folders, SUMMARY)])
    else:
        titles = _compared(records[0].parent, comparison)
    evaluations = [_evaluated(scores, title, data, trainings) for scores, title in titles.items()]
    if comparison is None and evaluations:
        # Not those of other networks, which happen to lie beside the scores.
        given = {folder.resolve() for folder in folders}
        given.update(e.checkpoint.parent for e in evaluations if e.checkpoint is not None)
        trainings = [training for training in trainings if training.folder in given]
    if not trainings and not evaluations and comparison is None:
        raise InputError(
            f"{', '.join(map(str, folders))}: neither a training ({HISTORY}) nor an evaluation "
            f"({SUMMARY}); expected the folder of a train, evaluate, compare or demo command"
        )
    return Found(tuple(trainings), tuple(evaluations), comparison)


def _files(folders: Sequence[Path], name: str) -> Iterator[Path]:
    """The files of a name, each once: in a folder, or else in those in it, or else in theirs."""
    known: dict[Path, None] = {}
    for folder in folders:
        levels = (folder.glob(pattern) for pattern in (name, f"*/{name}", f"*/*/{name}"))
        found = ([path.resolve() for path in sorted(level) if path.is_file()] for level in levels)
        known.update(dict.fromkeys(next(filter(None, found), [])))
    yield from known


def _titles(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder: its own, or that of the training whose predictions it holds.

    Folders of the same name are told apart by their paths, from the folder that holds them all:
    the page may be handed on.
    """
    names = {f: f.parent.name if f.name == PREDICTIONS else f.name for f in folders}
    counts = Counter(names.values())
    shared = commonpath([f.parent for f in folders]) if folders else ""
    return {f: n if counts[n] == 1 else str(f.relative_to(shared)) for f, n in names.items()}


def _compared(folder: Path, comparison: Comparison) -> dict[Path, str]:
    """The folders of a comparison's evaluations that are shown, and their titles.

    They are those of the paper's Figures 2 and 3, of Seg-Net with and without the edge stream; of
    another backbone where there is no Seg-Net.
    """
    backbones = [arm.backbone for arm in comparison.arms]
    backbone = "segnet" if "segnet" in backbones else backbones[0]
    shown = {}
    for arm in sorted(comparison.arms, key=lambda arm: arm.kind != "egcnn"):
        seed = min(result.seed for result in comparison.of(arm))
        scores = folder / arm.folder(seed) / PREDICTIONS
        if arm.backbone == backbone and (scores / SUMMARY).is_file():
            shown[scores.resolve()] = f"{BACKBONES[backbone].title}, {arm.title}"
    return shown


def _evaluated(
    folder: Path, title: str, data: Path | None, trainings: Sequence[Training]
) -> Evaluated:
    evaluation = read_evaluation(folder / SUMMARY)
    made_by = {source["origin"].get("checkpoint") for source in evaluation.sources.values()}
    # Of one network, which is most likely that of the training that the scores lie in.
    near = sorted(trainings, key=lambda training: training.folder != folder.parent)
    made = (p for t in near for p, name in t.checkpoints if {name} == made_by)
    checkpoint = next(made, None)
    root = data or _folder(evaluation.folders.get("data"))
    written = _folder(evaluation.folders.get("predictions"))
    # After a move of all together, they lie beside the scores.
    places = (folder, *([written] if written else ()), folder.parent / PREDICTIONS)
    holds = (p for p in places if any(find_volume(p, name) for name in evaluation.cases))
    dataset = None if root is None else open_dataset(root)
    return Evaluated(title, evaluation, dataset, next(holds, None), checkpoint)


def _folder(path: str | None) -> Path | None:
    return Path(path) if path is not None and isdir(path) else None


def training_dataset(training: Training, data: Path | None = None) -> Dataset | None:
    """The dataset of a training, or None if it is no longer where it was.

    Args:
        training: the training.
        data: where it is, if not there.
    """
    root = data or _folder(entry(training.described.dataset, "root", str | None))
    return None if root is None else open_dataset(root)
