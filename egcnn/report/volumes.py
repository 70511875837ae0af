"""Volumes of a case for the page: turned to the patient's axes, cropped, as images of all slices.

A browser unpacks the images again, so one image serves all planes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image

from egcnn.report.measures import near

# The most voxels of a case on the page: a brain at 1 mm, which takes about a megabyte.
_MOST_VOXELS = 4_000_000
# What is shown around the regions of a case whose body is larger, in mm.
_MARGIN = 20.0
_JPEG_QUALITY = 70


@dataclass(frozen=True)
class Frame:
    """The part of a case's grid that is shown, along the patient's axes.

    Args:
        affine: the case's ``(4, 4)`` matrix.
        box: the part, in voxels of the turned volume.
        step: every how many voxels of it are shown.
        spacing: size of a shown voxel in mm, from left to right, back to front, bottom to top.
    """

    affine: NDArray[np.float64]
    box: tuple[slice, slice, slice]
    step: int
    spacing: tuple[float, float, float]

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Turn and crop a volume ``(..., D, H, W)`` on the case's grid."""
        turned = _turned(volume, self.affine)
        every = slice(None, None, self.step)
        x, y, z = self.box
        return turned[..., x, y, z][..., every, every, every]


def frame(image: NDArray[Any], foreground: NDArray[np.bool_], affine: NDArray[np.float64]) -> Frame:
    """Choose what is shown of a case: the body, or where that is too large, the regions.

    Args:
        image: one modality ``(D, H, W)``; the body is where it differs from the first voxel.
        foreground: voxels in any region of the truth or of a prediction.
        affine: the case's ``(4, 4)`` matrix from voxels to mm.
    """
    sizes = _turned_sizes(affine)
    body = _turned((image != image.flat[0]) | foreground, affine)
    box = near(body, 2 * max(sizes), sizes)
    if math.prod(body[box].shape) > _MOST_VOXELS and foreground.any():
        box = near(_turned(foreground, affine), _MARGIN, sizes)
    step = math.ceil((math.prod(body[box].shape) / _MOST_VOXELS) ** (1 / 3))
    x, y, z = (float(size) * step for size in sizes)
    return Frame(affine, box, step, (x, y, z))


def _turned(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """A volume ``(..., D, H, W)`` with its last axes from left to right, back to front, and up."""
    first = np.moveaxis(volume, (-3, -2, -1), (0, 1, 2))
    return np.moveaxis(apply_orientation(first, io_orientation(affine)), (0, 1, 2), (-3, -2, -1))


def _turned_sizes(affine: NDArray[np.float64]) -> list[float]:
    sizes = [0.0, 0.0, 0.0]
    for size, (axis, _) in zip(voxel_sizes(affine), io_orientation(affine), strict=True):
        sizes[int(axis)] = float(size)
    return sizes


def grey_slices(volume: NDArray[np.uint8]) -> dict[str, Any]:
    """A volume ``(X, Y, Z)`` of shades, with the small losses of JPEG."""
    return _encoded(volume, lambda image: Image.fromarray(image), "jpeg", quality=_JPEG_QUALITY)


def code_slices(
    codes: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]
) -> dict[str, Any]:
    """A volume ``(X, Y, Z)`` of codes, exactly; 0 is transparent.

    Args:
        codes: the codes.
        colours: red, green and blue of each code, from 1.
    """
    palette = [0, 0, 0, *(value for colour in colours for value in colour)]

    def indexed(image: NDArray[np.uint8]) -> Image.Image:
        picture = Image.fromarray(image, mode="P")
        picture.putpalette(palette)
        return picture

    return _encoded(codes, indexed, "png", transparency=0, optimize=True)


def _encoded(volume: NDArray[np.uint8], draw: Any, kind: str, **options: Any) -> dict[str, Any]:
    """One image of all axial slices, in rows, as a data URI with what unpacks it."""
    x, y, z = volume.shape
    columns = max(1, round(math.sqrt(z * y / x)))
    rows = math.ceil(z / columns)
    tiles = np.zeros((rows * columns, y, x), np.uint8)
    tiles[:z] = volume.transpose(2, 1, 0)
    image = tiles.reshape(rows, columns, y, x).swapaxes(1, 2).reshape(rows * y, columns * x)
    file = io.BytesIO()
    draw(np.ascontiguousarray(image)).save(file, kind, **options)
    text = base64.b64encode(file.getvalue()).decode()
    return {"src": f"data:image/{kind};base64,{text}", "shape": [x, y, z], "columns": columns}


def pooled(volume: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means over cubes of ``factor`` voxels along each axis; the last ones may be smaller."""
    for axis, size in enumerate(volume.shape):
        starts = np.arange(0, size, factor)
        counts = np.minimum(size - starts, factor).reshape(-1, *[1] * (2 - axis))
        volume = np.add.reduceat(volume, starts, axis) / counts
    return volume
