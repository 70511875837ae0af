"""Tables of evaluations and training runs for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from egcnn.evaluation import MEAN, Evaluation
from egcnn.metrics import EDGE_METRICS, EDGE_SOURCES, LESION_METRICS, METRICS, VOXEL_METRICS
from egcnn.terminal import duration, plain


def evaluation_table(evaluation: Evaluation) -> Table:
    """Table of the segmentation scores, mean ± standard deviation over cases, a row per region."""
    return _by_region("Segmentation", evaluation, VOXEL_METRICS)


def lesion_table(evaluation: Evaluation) -> Table:
    """Table of the lesion-wise scores, likewise; see ``egcnn.lesions.lesion_scores``."""
    return _by_region("Lesions", evaluation, LESION_METRICS)


def _by_region(title: str, evaluation: Evaluation, metrics: Sequence[str]) -> Table:
    table = Table(title=_title(title, evaluation))
    table.add_column("Region")
    for metric in metrics:
        table.add_column(METRICS[metric].title, justify="right")
    for region, row in evaluation.summary().items():
        if region == MEAN:
            table.add_section()
        table.add_row(plain(region), *(cell(row[metric], metric) for metric in metrics))
    return table


def edge_table(evaluation: Evaluation) -> Table:
    """Table of the edge scores per region: of the edge head, if any, and of the segmentation.

    See ``egcnn.metrics.edge_scores`` for the metrics.
    """
    caption = f"edges taken on {evaluation.edge_space}"
    table = Table(title=_title("Edges", evaluation), caption=caption)
    table.add_column("Region")
    table.add_column("Edges of")
    for metric in EDGE_METRICS:
        table.add_column(METRICS[metric].title, justify="right")
    for region, row in evaluation.summary().items():
        if region == MEAN:
            table.add_section()
        for source, name in EDGE_SOURCES.items():
            cells = [cell(row[f"{source}_{metric}"], metric) for metric in EDGE_METRICS]
            if any(cells):
                table.add_row(plain(region), name, *cells)
    return table


def _title(what: str, evaluation: Evaluation) -> str:
    count = len(evaluation.cases)
    return f"{what}, mean ± deviation, {count} case{'s' if count != 1 else ''}"


def cell(value: Mapping[str, float], metric: str) -> str:
    """A mean ± deviation of ``Evaluation.summary`` as text; empty if it is NaN."""
    digits = METRICS[metric].digits
    if math.isnan(value["mean"]):
        return ""
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def training_table(
    rows: Sequence[Mapping[str, float]], names: Iterable[str], seconds: float
) -> Table:
    """Table of the best and the last epoch: Dice per region, number of epochs and duration."""
    names = list(names)
    table = Table(
        title="Validation Dice", caption=f"epochs: {len(rows)}, time: {duration(seconds)}"
    )
    table.add_column("")
    table.add_column("Epoch", justify="right")
    for name in [*names, MEAN]:
        table.add_column(plain(name), justify="right")
    best = max(rows, key=lambda row: row["dice"])
    for title, row in (("best", best), ("last", rows[-1])):
        scores = [row[f"dice_{name}"] for name in names] + [row["dice"]]
        table.add_row(title, f"{row['epoch']:.0f}", *(f"{score:.4f}" for score in scores))
    return table
