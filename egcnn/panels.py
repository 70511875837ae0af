"""What pictures of a case show, as codes and colours: regions, disagreement, edges.

A code is 0 where a panel shows the image alone; the other codes have a colour each. All functions
take arrays of any number of axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egcnn.edges import EdgeGrid, label_edges
from egcnn.regions import Regions

Codes = NDArray[np.uint8]
#: Colour-blind-safe palette (Okabe and Ito, 2008) for regions; its last colours are those of
#: :data:`DISAGREEMENT`.
PALETTE = (
    *("#009e73", "#f0e442", "#d55e00", "#0072b2"),
    *("#aa77ff", "#e69f00", "#56b4e9", "#cc79a7"),
)
#: Titles and colours of the codes of :func:`disagreement`, from 1.
DISAGREEMENT = {
    "missed (only in the truth)": "#e69f00",
    "added (only in the prediction)": "#56b4e9",
    "taken for another region": "#cc79a7",
}
#: The planes by name: the axes (0 left to right, 1 back to front, 2 bottom to top) along a row,
#: along a column and across the slices.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
#: Opacity of the codes' colours, such that the anatomy below stays visible.
OPACITY = 0.65
#: Levels of an edge probability in :func:`edge_codes`; with 16 regions they still fit into a byte.
LEVELS = 15


def region_colours(regions: Regions, colours: Mapping[str, str] | None = None) -> list[str]:
    """The colours of the reported regions, such as ``"#e69f00"``.

    Args:
        regions: the regions.
        colours: colours by name; other regions take those of :data:`PALETTE`.
    """
    return [
        (colours or {}).get(name, PALETTE[place % len(PALETTE)])
        for place, name in enumerate(regions.reported_names)
    ]


def region_codes(labels: NDArray[Any], regions: Regions) -> Codes:
    """The innermost reported region of each voxel, counted from 1; 0 outside of all.

    Args:
        labels: a label map.
        regions: its regions.
    """
    codes = np.zeros(max(regions.values) + 1, np.uint8)
    # Larger regions first, so that the regions inside them stay visible.
    for place in sorted(
        range(len(regions.foreground)), key=lambda p: -len(regions.labels[regions.foreground[p]])
    ):
        codes[list(regions.labels[regions.foreground[place]])] = place + 1
    return codes[labels]


def disagreement(truth: NDArray[Any], prediction: NDArray[Any], regions: Regions) -> Codes:
    """Where two label maps differ: the codes of :data:`DISAGREEMENT`, 0 where they agree.

    Args:
        truth: label map; its ignored voxels agree with anything.
        prediction: label map of the same shape.
        regions: their regions.
    """
    true, predicted = region_codes(truth, regions), region_codes(prediction, regions)
    codes = np.where(true == predicted, 0, 3).astype(np.uint8)
    codes[(true > 0) & (predicted == 0)] = 1
    codes[(true == 0) & (predicted > 0)] = 2
    if regions.ignore_index is not None:
        codes[truth == regions.ignore_index] = 0
    return codes


def true_edges(
    labels: NDArray[Any], regions: Regions, grid: EdgeGrid | None = None, *, union: bool = False
) -> NDArray[np.uint8]:
    """:func:`egcnn.edges.label_edges` of a label map ``(D, H, W)``: ``(F, D, H, W)``, 0 or 1."""
    volume = torch.from_numpy(labels.astype(np.int64))[None, None]
    return label_edges(volume, regions, grid, union=union)[0].numpy()


def edge_codes(edges: NDArray[Any]) -> Codes:
    """The likeliest edge of each voxel, and how likely it is.

    Args:
        edges: probabilities ``(F, ...)`` of the reported regions' edges, or of their union, F 1.

    Returns:
        ``LEVELS * place + level`` for the region at ``place``, its level from 1 to :data:`LEVELS`;
        0 where no edge reaches the level 1, a probability of 1/30.
    """
    # Of equal ones the last: regions are listed from the outer to the inner.
    place = len(edges) - 1 - edges[::-1].argmax(0)
    level = np.rint(edges.max(0).astype(np.float32) * LEVELS)
    return np.where(level > 0, LEVELS * place + level, 0).astype(np.uint8)


def edge_colours(colours: Sequence[str], channels: int | None = None) -> list[tuple[int, int, int]]:
    """The colours of :func:`edge_codes` from 1, which fade to black with the probability.

    Args:
        colours: the regions' colours.
        channels: of predicted edges; the only one is white, since the union's edges have no region.
    """
    if channels == 1:
        colours = ["#ffffff"]
    levels = np.arange(1, LEVELS + 1)[:, None] / LEVELS
    rows = np.rint(np.concatenate([levels * np.array(rgb(c)) for c in colours]))
    return [(int(r), int(g), int(b)) for r, g, b in rows]


def attention_title(coarseness: float) -> str:
    """Title of an attention map that has one voxel for so many of the image along an axis."""
    return f"attention {'full' if round(coarseness) == 1 else f'1/{coarseness:.0f}'} size"


def heat_colours() -> NDArray[np.uint8]:
    """Colours of attention, from dark blue to yellow (cividis), ``(256, 3)``."""
    from matplotlib import colormaps

    table: NDArray[np.uint8] = colormaps["cividis"](np.arange(256), bytes=True)
    return table[:, :3]


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour such as ``"#e69f00"``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def grey(image: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """An image's intensities as 0 (black) to 255.

    Args:
        image: one modality.
        window: the intensities that become black and white; by default the 1st percentile and the
            99.5th.
    """
    low, high = np.percentile(image, (1, 99.5)) if window is None else window
    scaled = (image.astype(np.float32) - low) / max(float(high - low), 1e-9)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def painted(shades: NDArray[np.uint8], codes: Codes, colours: Sequence[str]) -> NDArray[np.uint8]:
    """A grey picture with the codes' colours over it, ``(..., 3)``.

    Args:
        shades: of :func:`grey`.
        codes: of the same shape.
        colours: the colour of each code, from 1.
    """
    base = np.repeat(shades[..., None], 3, axis=-1).astype(np.float32)
    table = np.array([(0, 0, 0), *map(rgb, colours)], np.float32)
    over = (1 - OPACITY) * base + OPACITY * table[codes]
    return np.rint(np.where(codes[..., None] > 0, over, base)).astype(np.uint8)
