"""What a person looks at: tables on the terminal, CSV and JSON files, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from egcnn.checkpoint import versions
from egcnn.data.case import SUFFIXES, Case, Dataset, read_label, stem
from egcnn.errors import InputError
from egcnn.files import replacing, write_text
from egcnn.metrics import METRICS, case_metrics, summary
from egcnn.regions import Regions

#: Ending of a file name that marks an edge probability, before ``.nii.gz``.
EDGES = "_edges"
_PIPE_WIDTH = 120

#: Titles, and how many digits a number of this kind deserves.
_COLUMNS = {
    "dice": ("Dice", 3),
    "sensitivity": ("Sensitivity", 3),
    "specificity": ("Specificity", 3),
    "hd95": ("HD95 (mm)", 2),
    "surface_dice": ("Surface Dice", 3),
    "edge_f1": ("Edge F1", 3),
}

# The paper's colours for tumours (Figure 2); others that the colour-blind tell apart.
_COLOURS = {"WT": "#2ca02c", "TC": "#d62728", "ET": "#ffdd33"}
_PALETTE = ("#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2", "#aa77ff")

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """The scores of predictions.

    Args:
        cases: per case name and region, the metrics of ``egcnn.metrics.case_metrics``.
        missing: names of the labelled cases without prediction.
    """

    cases: Mapping[str, Scores]
    missing: tuple[str, ...]

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Per region, and for the mean over regions, each metric's mean and standard deviation.

        The deviation is the sample's over cases; of a single case it is 0.
        """
        rows = [
            {
                **case,
                "mean": {
                    metric: float(np.mean([region[metric] for region in case.values()]))
                    for metric in METRICS
                },
            }
            for case in self.cases.values()
        ]
        return {
            region: {metric: {"mean": mean, "std": std} for metric, (mean, std) in row.items()}
            for region, row in summary(rows).items()
        }


def evaluate(predictions: str | Path, dataset: Dataset) -> Evaluation:
    """Compare the label maps in a folder with a dataset's.

    Args:
        predictions: folder with ``NAME.nii.gz`` (or ``.nii``) per case; edge probabilities
            ``NAME_edges.nii.gz`` are passed over.
        dataset: says what regions the labels mean, and holds the truth.

    Raises:
        InputError: no folder, no prediction in it, one that belongs to no labelled case, or one
            that is on another grid than its case or holds foreign label values.
    """
    folder = Path(predictions)
    if not folder.is_dir():
        raise InputError(f"predictions: {folder} is no folder; wanted one with NAME.nii.gz files")
    labelled = {case.name: case for case in dataset.cases if case.label is not None}
    if not labelled:
        raise InputError(f"{dataset.root}: no case has a label; wanted cases to compare with")
    files = {stem(path): path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)}
    files = {
        name: path for name, path in files.items() if name in labelled or not name.endswith(EDGES)
    }
    unknown = [path for name, path in files.items() if name not in labelled]
    if unknown:
        raise InputError(
            f"{unknown[0]}: no labelled case of {dataset.root} has the name "
            f"{stem(unknown[0])!r}; wanted predictions named after their cases"
        )
    if not files:
        example = next(iter(labelled))
        raise InputError(
            f"predictions: {folder} holds no NIfTI file; wanted files such as {example}.nii.gz"
        )
    scores = {name: _scores(labelled[name], path, dataset) for name, path in files.items()}
    return Evaluation(scores, tuple(name for name in labelled if name not in files))


def _scores(case: Case, prediction: Path, dataset: Dataset) -> Scores:
    truth = read_label(case, dataset.regions)
    found = read_label(Case(case.name, case.images, prediction), dataset.regions)
    spacing = [float(size) for size in voxel_sizes(truth.affine.numpy())]
    return case_metrics(found.as_tensor()[0], truth.as_tensor()[0], dataset.regions, spacing)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Regions down, metrics across, mean ± standard deviation over cases."""
    count = len(evaluation.cases)
    table = Table(title=f"Mean ± deviation, {count} case{'s' if count != 1 else ''}")
    table.add_column("Region")
    for metric in METRICS:
        table.add_column(_COLUMNS[metric][0], justify="right")
    for region, row in evaluation.summary().items():
        if region == "mean":
            table.add_section()
        digits = {metric: _COLUMNS[metric][1] for metric in METRICS}
        table.add_row(
            region,
            *(f"{row[m]['mean']:.{digits[m]}f} ± {row[m]['std']:.{digits[m]}f}" for m in METRICS),
        )
    return table


def write_evaluation(evaluation: Evaluation, output: str | Path) -> tuple[Path, Path]:
    """Write ``metrics.csv``, a row per case and region, and ``metrics.json``, these and a summary.

    Returns:
        the paths of the two files.
    """
    output = Path(output)
    table = output / "metrics.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, ["case", "region", *METRICS], lineterminator="\n")
    writer.writeheader()
    for case, regions in evaluation.cases.items():
        for region, metrics in regions.items():
            writer.writerow({"case": case, "region": region, **metrics})
    write_text(table, text.getvalue())
    data = {
        "summary": evaluation.summary(),
        "cases": dict(evaluation.cases),
        "missing": list(evaluation.missing),
        "versions": versions(),
    }
    written = output / "metrics.json"
    write_text(written, json.dumps(data, indent=1) + "\n")
    return table, written


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
    """One case to look at; all arrays ``(D, H, W)`` on one grid.

    Args:
        name: the case.
        image: one modality.
        truth: its label map.
        prediction: the predicted label map.
        edges: predicted edge probability, or ``None``.
        spacing: voxel size in mm.
    """

    name: str
    image: NDArray[Any]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    edges: NDArray[Any] | None
    spacing: tuple[float, float, float]


def write_picture(
    views: Sequence[View],
    regions: Regions,
    path: str | Path,
    *,
    modality: str = "image",
    edge: str = "predicted edge",
) -> Path:
    """Image, truth, prediction and predicted edge side by side, a row per case, as PNG.

    The slice across the last axis with the most foreground is shown.

    Args:
        views: the cases.
        regions: what the labels mean; each has its colour.
        path: the PNG file.
        modality: title of the image.
        edge: title of the edge probability.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not views:
        raise InputError("views: none given; wanted at least one case to draw")
    with_edges = any(view.edges is not None for view in views)
    titles = [modality, "truth", "prediction", *([edge] if with_edges else [])]
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
        ]
        if with_edges:
            panels.append(np.zeros_like(grey))
        for axis, panel, title in zip(row, panels, titles, strict=True):
            shown = panel.swapaxes(0, 1)
            axis.imshow(shown, origin="lower", aspect=view.spacing[1] / view.spacing[0])
            if view.edges is not None and title == edge:
                axis.imshow(
                    view.edges[..., place].T,
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
