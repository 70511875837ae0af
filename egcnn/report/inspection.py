"""Tables of what a dataset holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from egcnn.terminal import counted, plain


def inspection_title(summary: Mapping[str, Any]) -> str:
    """Lines about a dataset of :func:`egcnn.data.inspection.summarize`."""
    regions = summary["regions"]
    named = (
        f"{name} ({', '.join(map(str, values))})"
        for name, values in zip(regions["names"], regions["labels"], strict=True)
    )
    counts = [counted(len(summary["cases"]), "case"), f"{summary['labelled']} labelled"]
    if summary["unlabelled"]:
        counts.append(f"{len(summary['unlabelled'])} unlabelled")
    if summary["problems"]:
        counts.append(f"{len(summary['problems'])} with problems")
    scale = {"ct": "Hounsfield units / 1000", "zscore": "z-scores"}[summary["normalization"]]
    return (
        f"{summary['root']}: {summary['layout']} layout, {', '.join(counts)}\n"
        f"modalities: {', '.join(summary['modalities'])} ({scale})\n"
        f"regions: {', '.join(named)}; {regions['activation']}"
    )


def grid_table(summary: Mapping[str, Any]) -> Table:
    """Table of shapes and spacings along the axes of the arrays, by orientation."""
    table = Table("Orientation", "Cases", "", "Smallest", "Median", "Largest", title="Grids")
    cases = [case for case in summary["cases"] if case["shape"] is not None]
    counts = Counter(case["orientation"] for case in cases)
    for orientation, count in counts.most_common():
        same = [case for case in cases if case["orientation"] == orientation]
        table.add_row(orientation, str(count), "voxels", *_spread([c["shape"] for c in same]))
        table.add_row("", "", "mm", *_spread([case["spacing"] for case in same]))
    return table


def label_table(summary: Mapping[str, Any]) -> Table:
    """Table of the label values: in how many cases, and their mean share of the voxels."""
    table = Table("Label", "Regions", "Cases", "Share of voxels", title="Labels")
    regions = summary["regions"]
    for value, found in summary["labels"].items():
        names = [
            name
            for name, values in zip(regions["names"], regions["labels"], strict=True)
            if int(value) in values
        ]
        cells = (plain(", ".join(names)), str(found["cases"]), f"{100 * found['share']:.3g} %")
        table.add_row(value, *cells)
    return table


def _spread(triples: Sequence[Sequence[float]]) -> list[str]:
    """The smallest, median and largest value along each axis."""
    values = np.array(triples)
    rows = (values.min(0), np.median(values, axis=0), values.max(0))
    return ["x".join(f"{value:.4g}" for value in row) for row in rows]
