"""Score predictions against the ground truth, and write the scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike
from torch import Tensor

from egcnn.checkpoint import Trained
from egcnn.data.case import Case, Dataset, read_edges, read_label
from egcnn.data.nifti import read_note, volumes_by_stem
from egcnn.errors import InputError, named, shown
from egcnn.files import digest, read_json, without_nan, write_csv, write_json
from egcnn.inference import EDGES, PROBABILITIES, Prediction, predict_cases
from egcnn.lesions import check_installed, lesion_scores
from egcnn.machine import versions
from egcnn.metrics import COLUMNS, case_metrics, mean_and_deviation, summary
from egcnn.processes import in_processes
from egcnn.terminal import Bar, tracked
from egcnn.typed import entry

Scores = dict[str, dict[str, float]]
TABLE = "metrics.csv"
SUMMARY = "metrics.json"
#: Name of the mean over regions among the regions of a summary.
MEAN = "mean"


@dataclass(frozen=True)
class Evaluation:
    """The scores of predictions.

    Args:
        cases: per case name and region, the metrics of ``egcnn.metrics.case_metrics``, and those of
            ``egcnn.lesions.lesion_scores`` if they were asked for.
        missing: names of the labelled cases that have no prediction.
        sources: per case name, what was compared: hashes of the prediction and of the truth, and
            what the prediction says of its origin.
        folders: where the ``"predictions"`` and the ``"data"`` lie.
    """

    cases: Mapping[str, Scores]
    missing: tuple[str, ...] = ()
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the scores, in table order."""
        for case in self.cases.values():
            for scores in case.values():
                return tuple(scores)
        return COLUMNS

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Each metric's mean and standard deviation, per region and for :data:`MEAN`.

        This is the sample deviation over cases, 0 for a single case. Both are NaN for a metric that
        is NaN in every case.
        """
        rows = [
            {
                **case,
                MEAN: {
                    metric: mean_and_deviation([region[metric] for region in case.values()])[0]
                    for metric in self.columns
                },
            }
            for case in self.cases.values()
        ]
        return {
            region: {metric: {"mean": mean, "std": std} for metric, (mean, std) in row.items()}
            for region, row in summary(rows).items()
        }


def evaluate(
    predictions: str | Path,
    dataset: Dataset,
    *,
    lesions: bool = False,
    workers: int = 0,
    quiet: bool = True,
) -> Evaluation:
    """Score the label maps in a folder, and any edge probabilities there, against a dataset.

    Edge probabilities in files have steps of 1/255, which changes best F1 and average precision
    slightly, and F1 at 0.5 not at all.

    Args:
        predictions: folder with ``NAME.nii.gz`` (or ``.nii``) per case, and optionally
            ``NAME_edges.nii.gz`` as :func:`egcnn.inference.write_prediction` writes them.
        dataset: defines the regions and holds the truth.
        lesions: score lesions too, which takes panoptica.
        workers: number of processes; 0 uses this one. The scores are the same.
        quiet: show no progress bar.

    Raises:
        InputError: no such folder, no prediction in it, a prediction that belongs to no labelled
            case or to the same as another, is on another grid than its case, or holds values that
            are not the dataset's.
    """
    if lesions:
        check_installed()
    folder = Path(predictions)
    if not folder.is_dir():
        raise InputError(f"predictions: {folder} is no folder; expected one with NAME.nii.gz files")
    labelled = {case.name: case for case in dataset.cases if case.label is not None}
    if not labelled:
        raise InputError(f"{dataset.root}: no case has a label; expected cases to compare with")
    files = volumes_by_stem(folder)
    beside = {
        name: files.pop(name)
        for name in list(files)
        if name not in labelled and name.endswith((EDGES, PROBABILITIES))
    }
    if unknown := [name for name in files if name not in labelled]:
        raise InputError(
            f"{files[unknown[0]]}: no labelled case of {dataset.root} has the name "
            f"{unknown[0]!r}; expected predictions named after their cases"
        )
    if not files:
        example = next(iter(labelled))
        raise InputError(
            f"predictions: {folder} holds no label map; expected files such as {example}.nii.gz"
        )
    jobs = [(labelled[name], path, beside.get(name + EDGES)) for name, path in files.items()]
    done = in_processes(partial(_score_files, dataset, lesions), jobs, workers)
    scored = list(done if quiet else _shown(done, len(jobs)))
    return Evaluation(
        {name: scores for name, (scores, _) in zip(files, scored, strict=True)},
        tuple(name for name in labelled if name not in files),
        {name: compared for name, (_, compared) in zip(files, scored, strict=True)},
        compared_folders(folder, dataset),
    )


def compared_folders(predictions: Path, dataset: Dataset) -> dict[str, str]:
    """The absolute paths of an :class:`Evaluation`'s folders."""
    return {"predictions": str(predictions.resolve()), "data": str(dataset.root.resolve())}


def _shown(
    scored: Iterable[tuple[Scores, dict[str, Any]]], total: int
) -> Iterator[tuple[Scores, dict[str, Any]]]:
    """Iterate with a progress bar, which shows the mean Dice so far and cases a second."""
    started, dice = time.perf_counter(), []
    with Bar() as bar:
        bar.update(0, total, "scoring cases")
        for item in scored:
            dice += [region["dice"] for region in item[0].values()]
            done = len(dice) // len(item[0])
            pace = done / (time.perf_counter() - started)
            text = f"scoring cases  Dice {mean_and_deviation(dice)[0]:.3f}  {pace:.2g} cases/s"
            bar.update(done, total, text)
            yield item


def _score_files(
    dataset: Dataset, lesions: bool, files: tuple[Case, Path, Path | None]
) -> tuple[Scores, dict[str, Any]]:
    """Score a case's label map, and its edge probabilities if there is a file of them."""
    case, path, edge_path = files
    labels = read_label(case, dataset.regions, path).as_tensor()[0]
    edges = None if edge_path is None else read_edges(case, edge_path, dataset.regions)
    return score(case, labels, dataset, edges, lesions=lesions), source(case, path)


def source(case: Case, prediction: Path) -> dict[str, Any]:
    """Hashes of a case's prediction and truth, and the prediction's own :func:`read_note`."""
    truth = None if case.label is None else digest([case.label])
    return {"prediction": digest([prediction]), "truth": truth, "origin": read_note(prediction)}


def score(
    case: Case,
    labels: ArrayLike | Tensor,
    dataset: Dataset,
    edges: ArrayLike | Tensor | None = None,
    *,
    lesions: bool = False,
) -> Scores:
    """Score one case's label map, and its edge probabilities, against the truth.

    Args:
        case: holds the truth.
        labels: ``(D, H, W)`` on the case's own grid.
        dataset: defines the regions.
        edges: see :func:`egcnn.metrics.case_metrics`.
        lesions: score lesions too, which takes panoptica.
    """
    truth = read_label(case, dataset.regions)
    spacing = [float(size) for size in voxel_sizes(truth.affine.numpy())]
    true = truth.as_tensor()[0]
    scores = case_metrics(labels, true, dataset.regions, spacing, edges=edges)
    if lesions:
        ignored = dataset.regions.ignored(true[None, None])
        predicted, actual = (
            dataset.regions.reported(dataset.regions.masks(volume[None, None]))
            for volume in (torch.as_tensor(labels), true)
        )
        if ignored is not None:
            predicted = predicted.masked_fill(ignored, 0)
        for region, one, other in zip(scores, predicted[0], actual[0], strict=True):
            scores[region] |= lesion_scores(one.numpy(), other.numpy())
    return scores


def score_predictions(
    predictions: Iterable[tuple[Case, Prediction, Path]], dataset: Dataset, folder: str | Path
) -> Evaluation:
    """Score cases as :func:`egcnn.inference.predict_cases` yields them, with their edges.

    Args:
        predictions: each case, its prediction and where that lies.
        dataset: defines the regions.
        folder: where all predictions lie.
    """
    scores, sources = {}, {}
    for case, prediction, path in predictions:
        scores[case.name] = score(case, prediction.labels, dataset, prediction.edges)
        sources[case.name] = source(case, path)
    folders = compared_folders(Path(folder), dataset)
    return Evaluation(scores, sources=sources, folders=folders)


def predict_and_evaluate(
    trained: Trained,
    cases: Sequence[Case],
    dataset: Dataset,
    folder: str | Path,
    *,
    edges: bool = False,
    title: str | None = None,
) -> Evaluation:
    """Segment cases, write the label maps and their scores to a folder, and return the scores.

    Processes that train together share the cases. The first one writes the scores, and all return
    them.

    Args:
        trained: the network.
        cases: cases with a label.
        dataset: defines the regions.
        folder: for the label maps, :data:`TABLE` and :data:`SUMMARY`.
        edges: write the edge probabilities too, if the network has an edge stream.
        title: text of a progress bar; None shows none.

    Raises:
        InputError: as :func:`egcnn.inference.predict_cases`, in any of the processes.
    """
    together = dist.is_available() and dist.is_initialized()
    rank, count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    part: Evaluation | InputError
    try:
        mine = cases[rank::count]
        predictions = predict_cases(trained, mine, folder, edges=edges)
        if title is not None and rank == 0:
            predictions = tracked(predictions, len(mine), title)
        part = score_predictions(predictions, dataset, folder)
    except InputError as error:
        part = error
    parts: list[Any] = [part] * count
    if together:
        dist.all_gather_object(parts, part)
    for found in parts:
        if isinstance(found, InputError):
            raise found
    shares = [parts[index % count] for index in range(len(cases))]
    names = [case.name for case in cases]
    evaluation = Evaluation(
        {name: share.cases[name] for name, share in zip(names, shares, strict=True)},
        sources={name: share.sources[name] for name, share in zip(names, shares, strict=True)},
        folders=parts[0].folders,
    )
    if rank == 0:
        write_evaluation(evaluation, folder)
    if together:
        dist.barrier()
    return evaluation


def write_evaluation(evaluation: Evaluation, output: str | Path) -> tuple[Path, Path]:
    """Write :data:`TABLE` (a row per case and region) and :data:`SUMMARY` (the same and their
    means).

    NaN is an empty field in the table and null in the summary. The summary also says what was
    compared (``"sources"``) and, by the hash of the checkpoint, what made it (``"networks"``).

    Returns:
        the paths of the two files.
    """
    output = Path(output)
    table = output / TABLE
    rows = (
        {"case": case, "region": region, **without_nan(metrics, "")}
        for case, regions in evaluation.cases.items()
        for region, metrics in regions.items()
    )
    write_csv(table, ["case", "region", *evaluation.columns], rows)
    sources = {case: dict(source) for case, source in evaluation.sources.items()}
    networks: dict[str, Any] = {}
    for compared in sources.values():
        origin = dict(compared.pop("origin"))
        compared.update(
            inputs=origin.pop("inputs", None), checkpoint=origin.pop("checkpoint", None)
        )
        # Another program's note may have anything there.
        if isinstance(compared["checkpoint"], str):
            networks.setdefault(compared["checkpoint"], origin)
    data = {
        "summary": evaluation.summary(),
        "cases": evaluation.cases,
        "missing": list(evaluation.missing),
        "folders": dict(evaluation.folders),
        "sources": sources,
        "networks": networks,
        "versions": versions(),
    }
    written = output / SUMMARY
    write_json(written, data)
    return table, written


def read_evaluation(path: Path) -> Evaluation:
    """Read a :data:`SUMMARY` that :func:`write_evaluation` wrote.

    Raises:
        InputError: no such file, or not such a file.
    """
    try:
        with named(path):
            data = read_json(path)
            cases = entry(data, "cases", dict[str, dict[str, dict[str, float | None]]])
            sources = entry(data, "sources", dict[str, dict[str, Any]] | None) or {}
            networks = entry(data, "networks", dict[str, Any] | None) or {}
            folders = entry(data, "folders", dict[str, str] | None) or {}
            missing = entry(data, "missing", tuple[str, ...])
            check_scores(cases, COLUMNS)
    except InputError as error:
        raise InputError(f"{error}; expected a file of egcnn evaluate") from error
    for compared in sources.values():
        made_by = compared.pop("checkpoint", None)
        made = networks.get(made_by) if isinstance(made_by, str) else None
        origin = dict(made) if isinstance(made, Mapping) else {}
        inputs = compared.pop("inputs", None)
        compared["origin"] = {**origin, "checkpoint": made_by, "inputs": inputs}
    scores = {
        case: {
            region: {name: nan if value is None else value for name, value in metrics.items()}
            for region, metrics in regions.items()
        }
        for case, regions in cases.items()
    }
    return Evaluation(scores, missing, sources, folders)


def check_scores(
    cases: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Iterable[str]
) -> None:
    """Check that there are cases, and that all have the same regions with the same scores.

    Args:
        cases: per case and region, the scores by name.
        metrics: names that they must have.

    Raises:
        InputError: otherwise.
    """
    first = next(iter(cases.values()), {})
    if not first:
        raise InputError("no case, or none with a region")
    scores = {*next(iter(first.values())), *metrics}
    for name, regions in cases.items():
        if set(regions) != set(first) or any(set(row) != scores for row in regions.values()):
            raise InputError(
                f"{shown(name)} has other regions or scores than the first case; expected the same "
                f"in all, and at least {', '.join(metrics)}"
            )


def read_summary(path: Path, regions: Iterable[str]) -> tuple[Scores, dict[str, Any]]:
    """Read the means over cases from a :data:`SUMMARY` that :func:`write_evaluation` wrote.

    Args:
        path: the file.
        regions: names of the regions that it has.

    Returns:
        per region, and for :data:`MEAN`, each metric's mean, NaN where it was NaN; and its
        ``"networks"``.

    Raises:
        InputError: no such file, or not such a file of these regions.
    """
    means: Scores = {}
    try:
        with named(path):
            data = read_json(path)
            rows = entry(data, "summary", dict[str, Any])
            for region in (*regions, MEAN):
                row = entry(rows, region, dict[str, Any])
                for metric in COLUMNS:
                    mean = entry(entry(row, metric, dict[str, Any]), "mean", float | None)
                    means.setdefault(region, {})[metric] = nan if mean is None else mean
            return means, entry(data, "networks", dict[str, Any] | None) or {}
    except InputError as error:
        raise InputError(f"{error}; delete it to have its run evaluated again") from error
