"""Score predictions against the ground truth, and write the scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike
from torch import Tensor

from egcnn.checkpoint import Trained
from egcnn.data.case import Case, Dataset, Spacing, read_edges, read_label
from egcnn.data.nifti import read_note, volumes_by_stem
from egcnn.edges import EdgeGrid
from egcnn.errors import InputError
from egcnn.files import digest
from egcnn.inference import EDGES, PROBABILITIES, Prediction, noted_spacing, predict_cases
from egcnn.lesions import check_installed, lesion_scores
from egcnn.metrics import case_metrics, mean_and_deviation
from egcnn.processes import in_processes
from egcnn.scores import (
    MEAN,
    OWN_VOXELS,
    SUMMARY,
    TABLE,
    Evaluation,
    Scores,
    check_scores,
    read_evaluation,
    read_summary,
    write_evaluation,
)
from egcnn.terminal import Bar, tracked

__all__ = [
    "MEAN",
    "OWN_VOXELS",
    "SUMMARY",
    "TABLE",
    "Evaluation",
    "Scores",
    "check_scores",
    "evaluate",
    "predict_and_evaluate",
    "read_evaluation",
    "read_summary",
    "score",
    "score_predictions",
    "write_evaluation",
]


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
    slightly, and F1 at 0.5 not at all. True edges are taken at the voxel size of the network that a
    prediction names (:func:`egcnn.inference.noted_spacing`).

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
        _folders(folder, dataset),
    )


def _folders(predictions: Path, dataset: Dataset) -> dict[str, str]:
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
    source = _source(case, path)
    spacing = source["edge_spacing"]
    return score(case, labels, dataset, edges, edge_spacing=spacing, lesions=lesions), source


def _source(case: Case, prediction: Path) -> dict[str, Any]:
    """Hashes of a case's prediction and truth, and what the prediction says of its network."""
    note = read_note(prediction)
    return {
        "prediction": digest([prediction]),
        "truth": None if case.label is None else digest([case.label]),
        "edge_spacing": noted_spacing(note),
        "origin": note,
    }


def score(
    case: Case,
    labels: ArrayLike | Tensor,
    dataset: Dataset,
    edges: ArrayLike | Tensor | None = None,
    *,
    edge_spacing: Spacing | None = None,
    lesions: bool = False,
) -> Scores:
    """Score one case's label map, and its edge probabilities, against the truth.

    Args:
        case: holds the truth.
        labels: ``(D, H, W)`` on the case's own grid.
        dataset: defines the regions.
        edges: see :func:`egcnn.metrics.case_metrics`.
        edge_spacing: the network's voxel size in mm, at which edges are taken; None takes them on
            the case's own voxels.
        lesions: score lesions too, which takes panoptica.
    """
    truth = read_label(case, dataset.regions)
    affine = truth.affine.numpy()
    spacing = [float(size) for size in voxel_sizes(affine)]
    true = truth.as_tensor()[0]
    grid = EdgeGrid(affine, edge_spacing)
    scores = case_metrics(labels, true, dataset.regions, spacing, edges=edges, edge_grid=grid)
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
        sources[case.name] = _source(case, path)
        spacing = sources[case.name]["edge_spacing"]
        scores[case.name] = score(
            case, prediction.labels, dataset, prediction.edges, edge_spacing=spacing
        )
    folders = _folders(Path(folder), dataset)
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
