"""Tables of evaluations and training runs, as rows of text and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from egcnn.evaluation import MEAN, Evaluation
from egcnn.metrics import EDGE_METRICS, EDGE_SOURCES, LESION_METRICS, METRICS, VOXEL_METRICS
from egcnn.terminal import counted, duration, plain


def region_rows(evaluation: Evaluation, metrics: Sequence[str]) -> list[dict[str, str]]:
    """Mean ± standard deviation over cases as text, by column title, a row per region."""
    return [
        {"Region": region, **{METRICS[m].title: _cell(row[m], m) for m in metrics}}
        for region, row in evaluation.summary().items()
    ]


def edge_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """Likewise the edge scores: of the edge head, if any, and of the segmentation.

    See ``egcnn.metrics.edge_scores`` for the metrics.
    """
    rows = []
    for region, row in evaluation.summary().items():
        for source, name in EDGE_SOURCES.items():
            cells = {METRICS[m].title: _cell(row[f"{source}_{m}"], m) for m in EDGE_METRICS}
            if any(cells.values()):
                rows.append({"Region": region, "Edges of": name, **cells})
    return rows


def _cell(value: Mapping[str, float], metric: str) -> str:
    """A mean ± deviation of ``Evaluation.summary`` as text; empty if it is NaN."""
    digits = METRICS[metric].digits
    if math.isnan(value["mean"]):
        return ""
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def evaluation_table(evaluation: Evaluation) -> Table:
    """Table of the segmentation scores for the terminal."""
    return _table("Segmentation", evaluation, region_rows(evaluation, VOXEL_METRICS))


def lesion_table(evaluation: Evaluation) -> Table:
    """Table of the lesion-wise scores, likewise; see ``egcnn.lesions.lesion_scores``."""
    return _table("Lesions", evaluation, region_rows(evaluation, LESION_METRICS))


def edge_table(evaluation: Evaluation) -> Table:
    """Table of the edge scores, likewise; see :func:`edge_rows`."""
    caption = f"edges taken on {evaluation.edge_space}"
    return _table("Edges", evaluation, edge_rows(evaluation), caption)


def _table(
    what: str, evaluation: Evaluation, rows: Sequence[dict[str, str]], caption: str | None = None
) -> Table:
    """A table for the terminal: a column per key of the rows, the mean in a section of its own."""
    title = f"{what}, mean ± deviation, {counted(len(evaluation.cases), 'case')}"
    table = Table(title=title, caption=caption)
    for key in rows[0]:
        table.add_column(key, justify="left" if key in ("Region", "Edges of") else "right")
    before = ""
    for row in rows:
        if row["Region"] == MEAN != before:
            table.add_section()
        before = row["Region"]
        table.add_row(*map(plain, row.values()))
    return table


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
