"""Pictures of cases and their segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egcnn.errors import InputError
from egcnn.files import atomic_write
from egcnn.panels import grey, painted, region_codes, region_colours, true_edges
from egcnn.regions import Regions


@dataclass(frozen=True)
class View:
    """A case to draw; all arrays but the edges are ``(D, H, W)`` on the same grid.

    Args:
        name: name of the case.
        image: one modality.
        truth: its label map.
        prediction: the predicted label map.
        edges: predicted edge probabilities ``(F, D, H, W)`` as in ``egcnn.inference.Prediction``,
            or ``None``.
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
    colours: Mapping[str, str] | None = None,
) -> Path:
    """Draw image, truth, prediction, true and predicted edges side by side, a row per case, as PNG.

    The slice along the last axis with the most foreground is shown, with the edges of the first
    reported region.

    Args:
        views: the cases.
        regions: regions of the labels; each has a colour.
        path: the PNG file.
        modality: title of the image.
        colours: colours of regions, by name; others take those of a palette.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not views:
        raise InputError("views: none given; expected at least one case to draw")
    shown = region_colours(regions, colours)
    titles = [modality, "truth", "prediction"]
    if any(view.edges is not None for view in views):
        name = regions.reported_names[0]
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
        shades = grey(view.image[..., place])
        labels = (view.truth[..., place], view.prediction[..., place])
        regions_of = (painted(shades, region_codes(codes, regions), shown) for codes in labels)
        panels = [
            painted(shades, np.zeros_like(shades), shown),
            *regions_of,
            true_edges(view.truth, regions)[0, ..., place],
            np.zeros_like(shades) if view.edges is None else view.edges[0, ..., place],
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
    figure.legend(
        handles=[
            Patch(color=colour, label=name)
            for colour, name in zip(shown, regions.reported_names, strict=True)
        ],
        loc="outside lower center",
        ncols=min(6, len(regions.foreground)),
        frameon=False,
        fontsize=11,
    )
    path = Path(path)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path
