"""A comparison as tables and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.table import Table

from egcnn.comparison.differences import COMPARED, Comparison
from egcnn.files import without_nan, write_json, write_text
from egcnn.machine import versions
from egcnn.metrics import EDGE_METRICS, METRICS
from egcnn.nn.backbones import BACKBONES

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
        regions = [region for region in runs[0].regions if region != "mean"]
        row = {
            "Architecture": BACKBONES[arm.backbone].title,
            "Edge stream": arm.title,
            "Parameters": f"{runs[0].parameters:,}",
            "s/step": f"{median(run.step_seconds for run in runs):.3f}",
            "Average Dice": _spread([run.regions["mean"]["dice"] for run in runs], 4),
        }
        for region in regions:
            row[f"{region} Dice"] = _spread([run.regions[region]["dice"] for run in runs], 4)
        for metric in ("surface_dice", "hd95"):
            values = [run.regions["mean"][metric] for run in runs]
            row[METRICS[metric].title] = _spread(values, COMPARED[metric])
        table.append(row)
    return table


def edge_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The edge scores, averaged over regions, as text: mean ± sample deviation over seeds."""
    return [
        {"Architecture": BACKBONES[arm.backbone].title, "Edge stream": arm.title}
        | {
            title: _spread([run.regions["mean"][metric] for run in comparison.of(arm)], 3)
            for metric, title in EDGES_SHOWN.items()
        }
        for arm in comparison.arms
    ]


def difference_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The paired differences, as text."""
    table = []
    for found in comparison.differences():
        digits = max(3, COMPARED[found.metric])
        interval = (
            "one pair"
            if found.low is None or found.high is None
            else f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
        )
        table.append(
            {
                "Architecture": "all"
                if found.backbone == "all"
                else BACKBONES[found.backbone].title,
                "Difference": found.what,
                "Metric": METRICS[found.metric].title,
                "Mean": f"{found.mean:+.{digits}f}",
                "95 % interval": interval,
                "Pairs": str(found.pairs),
            }
        )
    return table


def _architecture(backbone: str) -> str:
    return "all" if backbone == "all" else BACKBONES[backbone].title


def as_table(title: str, lines: Sequence[dict[str, str]]) -> Table:
    """A table for the terminal; the keys of the rows are the headings."""
    table = Table(title=title)
    for index, key in enumerate(lines[0]):
        table.add_column(key, justify="left" if index < 2 or key == "Metric" else "right")
    for line in lines:
        table.add_row(*line.values())
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
    text = io.StringIO()
    writer = csv.DictWriter(text, ["arm", "seed", "region", *metrics], lineterminator="\n")
    writer.writeheader()
    for result in comparison.results:
        for region, values in result.regions.items():
            writer.writerow(
                {
                    "arm": result.arm.name,
                    "seed": result.seed,
                    "region": region,
                    **without_nan(values, ""),
                }
            )
    write_text(sheet := output / "comparison.csv", text.getvalue())
    data: dict[str, Any] = {
        "runs": [
            {
                "arm": result.arm.name,
                "seed": result.seed,
                "parameters": result.parameters,
                "step_seconds": result.step_seconds,
                "regions": result.regions,
            }
            for result in comparison.results
        ],
        "differences": [vars(found) for found in comparison.differences()],
        "versions": versions(),
    }
    write_json(plain := output / "comparison.json", data)
    return page, sheet, plain
