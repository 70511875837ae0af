"""Predictions and truth in, scores out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike

from egcnn.checkpoint import Trained
from egcnn.data.case import Case, Dataset, read_edges, read_label
from egcnn.data.nifti import SUFFIXES, stem
from egcnn.errors import InputError
from egcnn.files import without_nan, write_json, write_text
from egcnn.inference import EDGES, predict_cases
from egcnn.machine import versions
from egcnn.metrics import COLUMNS, case_metrics, mean_and_deviation, summary

Scores = dict[str, dict[str, float]]
TABLE = "metrics.csv"
SUMMARY = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """The scores of predictions.

    Args:
        cases: per case name and region, the metrics of ``egcnn.metrics.case_metrics``.
        missing: names of the labelled cases without prediction.
    """

    cases: Mapping[str, Scores]
    missing: tuple[str, ...] = ()

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Per region, and for the mean over regions, each metric's mean and standard deviation.

        The deviation is the sample's over cases; of a single case it is 0. Both are NaN for a
        metric that no case has.
        """
        rows = [
            {
                **case,
                "mean": {
                    metric: mean_and_deviation([region[metric] for region in case.values()])[0]
                    for metric in COLUMNS
                },
            }
            for case in self.cases.values()
        ]
        return {
            region: {metric: {"mean": mean, "std": std} for metric, (mean, std) in row.items()}
            for region, row in summary(rows).items()
        }


def evaluate(predictions: str | Path, dataset: Dataset) -> Evaluation:
    """Compare the label maps in a folder, and the edges beside them, with a dataset's.

    Args:
        predictions: folder with ``NAME.nii.gz`` (or ``.nii``) per case, and where there are edge
            probabilities, ``NAME_edges.nii.gz`` as :func:`egcnn.inference.write_prediction` writes
            them.
        dataset: says what regions the labels mean, and holds the truth.

    Raises:
        InputError: no folder, no prediction in it, one that belongs to no labelled case, or one
            that is on another grid than its case or holds foreign values.
    """
    folder = Path(predictions)
    if not folder.is_dir():
        raise InputError(f"predictions: {folder} is no folder; expected one with NAME.nii.gz files")
    labelled = {case.name: case for case in dataset.cases if case.label is not None}
    if not labelled:
        raise InputError(f"{dataset.root}: no case has a label; expected cases to compare with")
    files = {stem(path): path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)}
    edges = {
        name: files.pop(name)
        for name in list(files)
        if name not in labelled and name.endswith(EDGES)
    }
    unknown = [path for name, path in files.items() if name not in labelled]
    if unknown:
        raise InputError(
            f"{unknown[0]}: no labelled case of {dataset.root} has the name "
            f"{stem(unknown[0])!r}; expected predictions named after their cases"
        )
    if not files:
        example = next(iter(labelled))
        raise InputError(
            f"predictions: {folder} holds no label map; expected files such as {example}.nii.gz"
        )
    scores = {}
    for name, path in files.items():
        case, regions = labelled[name], dataset.regions
        found = read_label(Case(name, case.images, path), regions).as_tensor()[0]
        beside = edges.get(name + EDGES)
        scores[name] = score(
            case, found, dataset, None if beside is None else read_edges(case, beside, regions)
        )
    return Evaluation(scores, tuple(name for name in labelled if name not in files))


def score(
    case: Case, labels: ArrayLike, dataset: Dataset, edges: ArrayLike | None = None
) -> Scores:
    """Compare one case's label map, and its edge probabilities, with the truth.

    Args:
        case: gives the truth.
        labels: ``(D, H, W)`` on the case's own grid.
        dataset: says what regions the labels mean.
        edges: see :func:`egcnn.metrics.case_metrics`.
    """
    truth = read_label(case, dataset.regions)
    spacing = [float(size) for size in voxel_sizes(truth.affine.numpy())]
    return case_metrics(labels, truth.as_tensor()[0], dataset.regions, spacing, edges=edges)


def predict_and_evaluate(
    trained: Trained, cases: Iterable[Case], dataset: Dataset, folder: str | Path
) -> Evaluation:
    """Segment cases, write the label maps and their scores to a folder, and return the scores."""
    evaluation = Evaluation(
        {
            case.name: score(case, found.labels, dataset, found.edges)
            for case, found, _ in predict_cases(trained, cases, folder)
        }
    )
    write_evaluation(evaluation, folder)
    return evaluation


def write_evaluation(evaluation: Evaluation, output: str | Path) -> tuple[Path, Path]:
    """Write :data:`TABLE`, a row per case and region, and :data:`SUMMARY`, these and their means.

    What is NaN stands as an empty field in the one and as null in the other.

    Returns:
        the paths of the two files.
    """
    output = Path(output)
    table = output / TABLE
    text = io.StringIO()
    writer = csv.DictWriter(text, ["case", "region", *COLUMNS], lineterminator="\n")
    writer.writeheader()
    for case, regions in evaluation.cases.items():
        for region, metrics in regions.items():
            writer.writerow({"case": case, "region": region, **without_nan(metrics, "")})
    write_text(table, text.getvalue())
    data = {
        "summary": evaluation.summary(),
        "cases": evaluation.cases,
        "missing": list(evaluation.missing),
        "versions": versions(),
    }
    written = output / SUMMARY
    write_json(written, data)
    return table, written
