"""The scores of an evaluation, and their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from egcnn.data.case import Spacing
from egcnn.errors import InputError, named, shown
from egcnn.files import read_json, without_nan, write_csv, write_json
from egcnn.machine import versions
from egcnn.metrics import COLUMNS, mean_and_deviation, summary
from egcnn.typed import entry

Scores = dict[str, dict[str, float]]
TABLE = "metrics.csv"
SUMMARY = "metrics.json"
#: Name of the mean over regions among the regions of a summary.
MEAN = "mean"
#: Where edges are taken of predictions that do not name a network's voxel size.
OWN_VOXELS = "own voxels"


@dataclass(frozen=True)
class Evaluation:
    """The scores of predictions.

    Args:
        cases: per case name and region, the metrics of ``egcnn.metrics.case_metrics``, and those of
            ``egcnn.lesions.lesion_scores`` if they were asked for.
        missing: names of the labelled cases that have no prediction.
        sources: per case name, what was compared: hashes of the prediction and of the truth, what
            the prediction says of its origin, and the voxel size in mm at which edges were taken
            (``"edge_spacing"``; None for the case's own voxels).
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

    def edge_spacing(self, case: str) -> Spacing | None:
        """The voxel size in mm at which the edges of a case were taken; None for its own voxels."""
        spacing: Spacing | None = self.sources.get(case, {}).get("edge_spacing")
        return spacing

    @property
    def edge_space(self) -> str:
        """Where edges were taken, for readers: ``"own voxels"``, ``"voxels of 1 mm"``, or both."""
        found = dict.fromkeys(self.edge_spacing(case) for case in self.cases)
        return ", ".join(map(_voxels, found))

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


def write_evaluation(evaluation: Evaluation, output: str | Path) -> tuple[Path, Path]:
    """Write :data:`TABLE` (a row per case and region) and :data:`SUMMARY` (the same and their
    means).

    NaN is an empty field in the table and null in the summary. The summary also says what was
    compared (``"sources"``), where edges were taken (``"edge_space"``) and, by the hash of the
    checkpoint, what made it (``"networks"``).

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
        "edge_space": evaluation.edge_space,
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


def _voxels(spacing: Spacing | None) -> str:
    if spacing is None:
        return OWN_VOXELS
    sizes = spacing[:1] if len(set(spacing)) == 1 else spacing
    return f"voxels of {'x'.join(f'{size:g}' for size in sizes)} mm"


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
            for compared in sources.values():
                # Files of before have none: edges were taken on own voxels.
                compared["edge_spacing"] = entry(compared, "edge_spacing", Spacing | None)
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


def read_summary(path: Path, regions: Iterable[str]) -> tuple[Scores, dict[str, Any], str]:
    """Read the means over cases from a :data:`SUMMARY` that :func:`write_evaluation` wrote.

    Args:
        path: the file.
        regions: names of the regions that it has.

    Returns:
        per region, and for :data:`MEAN`, each metric's mean, NaN where it was NaN; and its
        ``"networks"`` and ``"edge_space"``.

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
            networks = entry(data, "networks", dict[str, Any] | None) or {}
            return means, networks, entry(data, "edge_space", str | None) or OWN_VOXELS
    except InputError as error:
        raise InputError(f"{error}; delete it to have its run evaluated again") from error
