"""Resampling from one grid to another, some planes at a time.

MONAI's ``Spacing`` and ``SpatialResample`` hold the coordinates of all voxels at once, 28 bytes
each, and interpolate on one core. A whole-body CT has 300 million voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.data.utils import compute_shape_offset, zoom_affine
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

Affine = NDArray[np.float64]
# Voxels of a slab; their coordinates take 12 bytes each.
_SLAB = 1 << 23
# Grids that differ by fewer voxels are the same: rounding of 32-bit headers.
_SAME = 1e-3


def respaced(
    shape: Sequence[int], affine: Affine, spacing: Sequence[float]
) -> tuple[tuple[int, int, int], Affine]:
    """The grid of other voxel sizes that begins at the same voxel centre, without shear.

    Returns:
        Its shape and affine; the given ones if the voxels already have that size.
    """
    target = zoom_affine(affine, spacing, diagonal=False)
    size, offset = compute_shape_offset(shape, affine, target, False)
    target[:3, 3] = offset[:3]
    depth, height, width = (int(n) for n in size)
    if (depth, height, width) == tuple(shape) and np.allclose(
        np.linalg.solve(affine, target), np.eye(4), atol=_SAME
    ):
        return (depth, height, width), affine
    return (depth, height, width), target


def resampled(volume: Tensor, matrix: Affine, shape: Sequence[int]) -> Iterator[Tensor]:
    """Interpolate linearly on another grid; voxels outside take the nearest value.

    Args:
        volume: ``(C, D, H, W)``, floating point.
        matrix: ``(4, 4)``, from voxels of the result to voxels of ``volume``.
        shape: shape of the result.

    Yields:
        Consecutive planes of the result along its first axis, ``(C, planes, H, W)``.
    """
    sizes = torch.tensor(volume.shape[1:], dtype=torch.float64)
    # From -1 to 1 between the outer faces of the volume's voxels, the last axis first.
    scaled = torch.from_numpy(matrix[:3]) * 2 / sizes[:, None]
    scaled[:, 3] += 1 / sizes - 1
    scaled = scaled.flip(0)
    across = torch.zeros(*shape[1:], 3, dtype=torch.float64)
    for axis, size in enumerate(shape[1:], 1):
        steps = torch.arange(size, dtype=torch.float64)
        across += (steps[:, None] * scaled[:, axis]).reshape(-1, *[1] * (2 - axis), 3)
    count = max(1, _SLAB // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], count):
        planes = torch.arange(start, min(start + count, shape[0]), dtype=torch.float64)
        along = planes[:, None] * scaled[:, 0] + scaled[:, 3]
        grid = (across + along[:, None, None]).float()[:, None].to(volume.device)
        # A batch with an item for each plane, since grid_sample divides only batches among threads.
        copies = volume[None].expand(len(planes), *volume.shape)
        found = grid_sample(copies, grid, "bilinear", "border", align_corners=False)
        yield found[:, :, 0].transpose(0, 1)


def resample(volume: Tensor, matrix: Affine, shape: Sequence[int]) -> Tensor:
    """The planes of :func:`resampled` as one ``(C, D, H, W)``."""
    return gathered(resampled(volume, matrix, shape), len(volume), shape)


def gathered(parts: Iterator[Tensor], channels: int, shape: Sequence[int]) -> Tensor:
    """Consecutive planes ``(C, planes, H, W)`` as one float32 ``(C, D, H, W)`` in host memory."""
    result = torch.empty((channels, *shape))
    start = 0
    for part in parts:
        result[:, start : (start := start + part.shape[1])] = part
    return result


def resample_labels(
    labels: Tensor, matrix: Affine, shape: Sequence[int], values: Sequence[int]
) -> Tensor:
    """Resample a label map: each voxel takes the value whose interpolated mask is the largest.

    Of nearest neighbours, thin slices and small tumours come back more ragged.

    Args:
        labels: ``(1, D, H, W)``, integers.
        matrix: see :func:`resampled`.
        shape: shape of the result.
        values: the values that occur; the first wins ties.
    """
    result = torch.full((1, *shape), values[0], dtype=labels.dtype)
    best = torch.zeros((1, *shape))
    for number, value in enumerate(values):
        start = 0
        for part in resampled((labels == value).float(), matrix, shape):
            planes = slice(start, start := start + part.shape[1])
            if number:
                result[:, planes].masked_fill_(part > best[:, planes], value)
            torch.maximum(best[:, planes], part, out=best[:, planes])
    return result


def on_grid(
    volume: Tensor, source: Affine, target: Affine, shape: tuple[int, ...]
) -> Iterator[Tensor]:
    """Resample from the grid of one affine to that of another.

    Permuted and flipped axes are copied exactly; other grids are interpolated linearly, and voxels
    outside the source take the nearest value.

    Args:
        volume: ``(C, D, H, W)``, floating point.
        source: its affine.
        target: affine of the result.
        shape: shape of the result.

    Yields:
        Consecutive planes of the result along its first axis, ``(C, planes, H, W)``.
    """
    matrix = np.linalg.solve(source, target)
    turn = np.rint(matrix)
    steps = turn[:3, :3]
    permutes = (abs(steps).sum(0) == 1).all() and (abs(steps).sum(1) == 1).all()
    if permutes and np.allclose(matrix, turn, atol=_SAME):
        axes = abs(steps).argmax(0)
        turned = volume.permute(0, *(int(axis) + 1 for axis in axes))
        signs = steps.sum(0)
        first = np.where(signs < 0, np.array(shape) - 1, 0)
        if tuple(turned.shape[1:]) == shape and (turn[axes, 3] == first).all():
            yield from _flipped(turned, [axis for axis in range(3) if signs[axis] < 0])
            return
    yield from resampled(volume, matrix, shape)


def _flipped(volume: Tensor, axes: Sequence[int]) -> Iterator[Tensor]:
    """Planes of a volume ``(C, D, H, W)`` with some of its spatial axes flipped."""
    depth, height, width = volume.shape[1:]
    count = max(1, _SLAB // max(1, height * width))
    for start in range(0, depth, count):
        stop = min(start + count, depth)
        planes = volume[:, depth - stop : depth - start] if 0 in axes else volume[:, start:stop]
        yield planes.flip([axis + 1 for axis in axes])


def resampling_bytes(channels: int, shape: Sequence[int]) -> float:
    """Memory in bytes of ``(channels, *shape)`` float32 and of the slab that is being resampled."""
    voxels = float(np.prod([float(size) for size in shape]))
    return voxels * 4 * channels + min(voxels, _SLAB) * (36 + 4 * channels)
