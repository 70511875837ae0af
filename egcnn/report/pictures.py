"""Pictures of cases and their segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egcnn import ops
from egcnn.errors import InputError
from egcnn.files import atomic_write
from egcnn.regions import Regions

# Colour-blind-safe palette (Okabe and Ito).
_PALETTE = ("#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2", "#aa77ff")
# Opacity of the regions, such that the anatomy below stays visible.
_OPACITY = 0.65


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
    shown = _colours(regions, colours or {})
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
        grey = _grey(view.image[..., place])
        panels = [
            grey,
            _painted(grey, view.truth[..., place], regions, shown),
            _painted(grey, view.prediction[..., place], regions, shown),
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
    figure.legend(
        handles=[Patch(color=shown[c], label=regions.names[c]) for c in regions.foreground],
        loc="outside lower center",
        ncols=min(6, len(regions.foreground)),
        frameon=False,
        fontsize=11,
    )
    path = Path(path)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def _true_edges(labels: NDArray[Any], regions: Regions) -> NDArray[Any]:
    """Sobel edges of the first reported region, ``(D, H, W)``."""
    masks = regions.masks(torch.from_numpy(labels.astype(np.int64))[None, None])
    return ops.sobel_edges(masks)[0, regions.foreground[0]].numpy()


def _colours(regions: Regions, colours: Mapping[str, str]) -> dict[int, str]:
    return {
        channel: colours.get(regions.names[channel], _PALETTE[place % len(_PALETTE)])
        for place, channel in enumerate(regions.foreground)
    }


def _grey(image: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.percentile(image, (1, 99.5))
    scaled = np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)
    return np.repeat(scaled[..., None], 3, axis=2)


def _painted(
    grey: NDArray[np.float64], labels: NDArray[Any], regions: Regions, colours: Mapping[int, str]
) -> NDArray[np.float64]:
    from matplotlib.colors import to_rgb

    painted = grey.copy()
    # Larger regions first, so that the regions inside them stay visible.
    for channel in sorted(regions.foreground, key=lambda c: -len(regions.labels[c])):
        inside = np.isin(labels, regions.labels[channel])
        colour = np.array(to_rgb(colours[channel]))
        painted[inside] = (1 - _OPACITY) * grey[inside] + _OPACITY * colour
    return painted
