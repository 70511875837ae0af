"""A comparison as tables and files."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.table import Table

from egcnn.comparison.arms import Arm, Kind
from egcnn.comparison.differences import COMPARED, Comparison, Result
from egcnn.errors import InputError
from egcnn.evaluation import MEAN, OWN_VOXELS, check_scores
from egcnn.files import read_json, without_nan, write_csv, write_json, write_text
from egcnn.machine import versions
from egcnn.metrics import EDGE_METRICS, METRICS
from egcnn.nn.backbones import BACKBONES
from egcnn.terminal import plain
from egcnn.typed import entry

#: The comparison's data, for programs.
RECORD = "comparison.json"

# The decimals of the paper's tables; runs differ by less than the cases of an evaluation.
_DICE_DIGITS = 4
#: Columns of the edge table: first the edge head's, then those of the segmentation.
EDGES_SHOWN = {
    **{f"edge_{name}": METRICS[name].title for name in EDGE_METRICS},
    **{f"sobel_{name}": f"{METRICS[name].title}, segmentation's" for name in ("f1", "interior")},
}


def _spread(values: Sequence[float], digits: int) -> str:
    if any(isnan(value) for value in values):
        return ""
    centre = f"{mean(values):.{digits}f}"
    return f"{centre} ± {stdev(values):.{digits}f}" if len(values) > 1 else centre


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """The paper's table as text: mean ± sample deviation over seeds."""
    table = []
    for arm in comparison.arms:
        runs = comparison.of(arm)
        regions = [region for region in runs[0].regions if region != MEAN]
        row = {
            "Architecture": BACKBONES[arm.backbone].title,
            "Edge stream": arm.title,
            "Parameters": f"{runs[0].parameters:,}",
            "s/step": f"{median(run.step_seconds for run in runs):.3f}",
            "Average Dice": _spread([run.regions[MEAN]["dice"] for run in runs], _DICE_DIGITS),
        }
        for region in regions:
            row[f"{region} Dice"] = _spread(
                [run.regions[region]["dice"] for run in runs], _DICE_DIGITS
            )
        for metric, digits in (("surface_dice", _DICE_DIGITS), ("hd95", METRICS["hd95"].digits)):
            values = [run.regions[MEAN][metric] for run in runs]
            row[METRICS[metric].title] = _spread(values, digits)
        table.append(row)
    return table


def edge_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The edge scores, averaged over regions, as text: mean ± sample deviation over seeds."""
    return [
        {"Architecture": BACKBONES[arm.backbone].title, "Edge stream": arm.title}
        | {
            title: _spread([run.regions[MEAN][metric] for run in comparison.of(arm)], 3)
            for metric, title in EDGES_SHOWN.items()
        }
        | {"Edges taken on": ", ".join(dict.fromkeys(r.edge_space for r in comparison.of(arm)))}
        for arm in comparison.arms
    ]


def difference_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The paired differences, as text."""
    table = []
    for difference in comparison.differences():
        # A difference is smaller than the scores, and needs one more decimal than they do.
        digits = METRICS[difference.metric].digits + 1
        interval = (
            "one pair"
            if difference.low is None or difference.high is None
            else f"{difference.low:+.{digits}f} to {difference.high:+.{digits}f}"
        )
        table.append(
            {
                "Architecture": _architecture(difference.backbone),
                "Difference": difference.what,
                "Metric": METRICS[difference.metric].title,
                "Mean": f"{difference.mean:+.{digits}f}",
                "95 % interval": interval,
                "Pairs": str(difference.pairs),
            }
        )
    return table


def _architecture(backbone: str) -> str:
    return "all" if backbone == "all" else BACKBONES[backbone].title


def as_table(title: str, lines: Sequence[dict[str, str]]) -> Table:
    """A table for the terminal; the keys of the rows are the headings."""
    table = Table(title=plain(title))
    for index, key in enumerate(lines[0]):
        table.add_column(plain(key), justify="left" if index < 2 or key == "Metric" else "right")
    for line in lines:
        table.add_row(*map(plain, line.values()))
    return table


def markdown(lines: Sequence[dict[str, str]]) -> str:
    """A Markdown table; the keys of the rows are the headings."""
    head = [" | ".join(lines[0]), " | ".join("---" for _ in lines[0])]
    return "".join(f"| {line} |\n" for line in [*head, *(" | ".join(r.values()) for r in lines)])


def write_comparison(comparison: Comparison, output: str | Path) -> tuple[Path, Path, Path]:
    """Write ``comparison.md`` (the tables), ``.csv`` (a row per run and region) and ``.json``.

    Returns:
        the paths of the three files.
    """
    output = Path(output)
    made = (rows(comparison), edge_rows(comparison), difference_rows(comparison))
    tables = [table for table in made if table]
    write_text(page := output / "comparison.md", "\n".join(markdown(table) for table in tables))
    metrics = list(next(iter(comparison.results[0].regions.values())))
    lines = (
        {
            "arm": result.arm.name,
            "seed": result.seed,
            "region": region,
            **without_nan(values, ""),
        }
        for result in comparison.results
        for region, values in result.regions.items()
    )
    write_csv(sheet := output / "comparison.csv", ["arm", "seed", "region", *metrics], lines)
    data: dict[str, Any] = {
        "runs": [
            {
                "arm": result.arm.name,
                **vars(result.arm),
                "seed": result.seed,
                "parameters": result.parameters,
                "step_seconds": result.step_seconds,
                "regions": result.regions,
                "networks": result.networks,
                "edge_space": result.edge_space,
            }
            for result in comparison.results
        ],
        "differences": [vars(difference) for difference in comparison.differences()],
        "versions": versions(),
    }
    write_json(plain := output / RECORD, data)
    return page, sheet, plain


def read_comparison(output: str | Path) -> Comparison:
    """Read the :data:`RECORD` of a comparison's folder.

    Raises:
        InputError: no such file, or not one of this version.
    """
    path = Path(output) / RECORD
    results = []
    try:
        for run in entry(read_json(path), "runs", list[dict[str, Any]]):
            means = entry(run, "regions", dict[str, dict[str, float | None]])
            regions = {
                region: {name: nan if value is None else value for name, value in row.items()}
                for region, row in means.items()
            }
            arm = Arm(
                entry(run, "backbone", str), entry(run, "kind", Kind), entry(run, "setting", str)
            )
            results.append(
                Result(
                    arm,
                    entry(run, "seed", int),
                    entry(run, "parameters", int),
                    entry(run, "step_seconds", float),
                    regions,
                    entry(run, "networks", dict[str, Any] | None) or {},
                    entry(run, "edge_space", str | None) or OWN_VOXELS,
                )
            )
        if not results or any(result.arm.backbone not in BACKBONES for result in results):
            raise InputError("no run, or one of an unknown backbone")
        needed = (*COMPARED, *EDGES_SHOWN)
        check_scores({str(n): result.regions for n, result in enumerate(results)}, needed)
        if MEAN not in results[0].regions:
            raise InputError(f"regions: no {MEAN!r}")
    except InputError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: {said}; expected a file of egcnn compare") from error
    return Comparison(tuple(results))
