"""What a person looks at: tables on the terminal, and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from egcnn import ops
from egcnn.errors import InputError
from egcnn.evaluation import Evaluation
from egcnn.files import replacing
from egcnn.metrics import EDGE_METRICS, METRICS
from egcnn.regions import Regions

_PIPE_WIDTH = 120

#: Titles, and how many digits a number of this kind deserves.
_COLUMNS = {
    "dice": ("Dice", 3),
    "sensitivity": ("Sensitivity", 3),
    "specificity": ("Specificity", 3),
    "hd95": ("HD95 (mm)", 2),
    "surface_dice": ("Surface Dice", 3),
    "f1": ("F1", 3),
    "best_f1": ("Best F1", 3),
    "average_precision": ("Average precision", 3),
    "thickness": ("Thickness", 2),
    "interior": ("Interior filled", 2),
}
_SOURCES = {"edge": "edge head", "sobel": "Sobel of segmentation"}

# The paper's colours for tumours (Figure 2); others that the colour-blind tell apart.
_COLOURS = {"WT": "#2ca02c", "TC": "#d62728", "ET": "#ffdd33"}
_PALETTE = ("#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2", "#aa77ff")


def evaluation_table(evaluation: Evaluation) -> Table:
    """The segmentation: regions down, metrics across, mean ± standard deviation over cases."""
    table = Table(title=_title("Segmentation", evaluation))
    table.add_column("Region")
    for metric in METRICS:
        table.add_column(_COLUMNS[metric][0], justify="right")
    for region, row in evaluation.summary().items():
        if region == "mean":
            table.add_section()
        table.add_row(region, *(_cell(row[metric], metric) for metric in METRICS))
    return table


def edge_table(evaluation: Evaluation) -> Table:
    """The edges: per region those of the edge head, if there is one, and of the segmentation.

    See ``egcnn.metrics.edge_scores`` for the metrics.
    """
    table = Table(title=_title("Edges", evaluation))
    table.add_column("Region")
    table.add_column("Edges of")
    for metric in EDGE_METRICS:
        table.add_column(_COLUMNS[metric][0], justify="right")
    for region, row in evaluation.summary().items():
        if region == "mean":
            table.add_section()
        for source, name in _SOURCES.items():
            cells = [_cell(row[f"{source}_{metric}"], metric) for metric in EDGE_METRICS]
            if any(cells):
                table.add_row(region, name, *cells)
    return table


def _title(what: str, evaluation: Evaluation) -> str:
    count = len(evaluation.cases)
    return f"{what}, mean ± deviation, {count} case{'s' if count != 1 else ''}"


def _cell(value: Mapping[str, float], metric: str) -> str:
    digits = _COLUMNS[metric][1]
    if math.isnan(value["mean"]):
        return ""
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def show(table: Table) -> None:
    """Print a table; into a file or pipe as wide as it needs, since nothing there is narrow."""
    console = Console()
    (console if console.is_terminal else Console(width=_PIPE_WIDTH)).print(table)


def training_table(
    rows: Sequence[Mapping[str, float]], names: Iterable[str], seconds: float
) -> Table:
    """The best and the last epoch of a training: Dice per structure; and how long it took."""
    names = list(names)
    table = Table(
        title="Validation Dice", caption=f"epochs: {len(rows)}, time: {duration(seconds)}"
    )
    table.add_column("")
    table.add_column("Epoch", justify="right")
    for name in [*names, "mean"]:
        table.add_column(name, justify="right")
    best = max(rows, key=lambda row: row["dice"])
    for title, row in (("best", best), ("last", rows[-1])):
        scores = [row[f"dice_{name}"] for name in names] + [row["dice"]]
        table.add_row(title, f"{row['epoch']:.0f}", *(f"{score:.4f}" for score in scores))
    return table


def duration(seconds: float) -> str:
    """Seconds for people: ``"42 s"``, ``"3 min 07 s"``, ``"2 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True)
class View:
    """One case to look at; all arrays ``(D, H, W)`` on one grid but for the edges.

    Args:
        name: the case.
        image: one modality.
        truth: its label map.
        prediction: the predicted label map.
        edges: predicted edge probabilities ``(F, D, H, W)`` as ``egcnn.inference.Prediction`` has
            them, or ``None``.
        spacing: voxel size in mm.
    """

    name: str
    image: NDArray[Any]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    edges: NDArray[Any] | None
    spacing: tuple[float, float, float]


def write_picture(
    views: Sequence[View], regions: Regions, path: str | Path, *, modality: str = "image"
) -> Path:
    """Image, truth, prediction, true and predicted edges side by side, a row per case, as PNG.

    The slice across the last axis with the most foreground is shown, of the edges those of the
    first reported region.

    Args:
        views: the cases.
        regions: what the labels mean; each has its colour.
        path: the PNG file.
        modality: title of the image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not views:
        raise InputError("views: none given; wanted at least one case to draw")
    titles = [modality, "truth", "prediction"]
    if any(view.edges is not None for view in views):
        name = regions.names[regions.foreground[0]]
        titles += [f"true edge ({name})", f"predicted edge ({name})"]
    figure = Figure(figsize=(2.6 * len(titles), 2.7 * len(views) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(views), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=12)
    for row, view in zip(axes, views, strict=True):
        size = np.count_nonzero(view.truth, axis=(0, 1))
        if not size.any():
            size = np.count_nonzero(view.prediction, axis=(0, 1))
        place = int(size.argmax()) if size.any() else view.truth.shape[2] // 2
        grey = _grey(view.image[..., place])
        panels = [
            grey,
            _painted(grey, view.truth[..., place], regions),
            _painted(grey, view.prediction[..., place], regions),
            _true_edges(view.truth, regions)[..., place],
            np.zeros_like(grey) if view.edges is None else view.edges[0, ..., place],
        ]
        for axis, panel in zip(row, panels[: len(titles)], strict=True):
            axis.imshow(
                panel.swapaxes(0, 1),
                origin="lower",
                aspect=view.spacing[1] / view.spacing[0],
                cmap="inferno",
                vmin=0,
                vmax=1,
            )
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(view.name, fontsize=9)
    colours = _colours(regions)
    figure.legend(
        handles=[Patch(color=colours[c], label=regions.names[c]) for c in regions.foreground],
        loc="outside lower center",
        ncols=min(6, len(regions.foreground)),
        frameon=False,
        fontsize=11,
    )
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def _true_edges(labels: NDArray[Any], regions: Regions) -> NDArray[Any]:
    """Sobel edges of the first reported region, ``(D, H, W)``."""
    masks = regions.masks(torch.from_numpy(labels.astype(np.int64))[None, None])
    return ops.sobel_edges(masks)[0, regions.foreground[0]].numpy()


def _colours(regions: Regions) -> dict[int, str]:
    return {
        channel: _COLOURS.get(regions.names[channel], _PALETTE[place % len(_PALETTE)])
        for place, channel in enumerate(regions.foreground)
    }


def _grey(image: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.percentile(image, (1, 99.5))
    scaled = np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)
    return np.repeat(scaled[..., None], 3, axis=2)


def _painted(
    grey: NDArray[np.float64], labels: NDArray[Any], regions: Regions
) -> NDArray[np.float64]:
    from matplotlib.colors import to_rgb

    painted = grey.copy()
    colours = _colours(regions)
    # Larger regions first: those within them stay visible.
    for channel in sorted(regions.foreground, key=lambda c: -len(regions.labels[c])):
        inside = np.isin(labels, regions.labels[channel])
        painted[inside] = 0.35 * grey[inside] + 0.65 * np.array(to_rgb(colours[channel]))
    return painted
