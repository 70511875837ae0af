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
# Voxels of a slab; on an oblique grid their coordinates take 36 bytes each.
_SLAB = 1 << 22
# Voxel sizes and places that differ by less are the same: headers of 32 bits are rounded.
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

    Where axes are only permuted and flipped, values are copied exactly.

    Args:
        volume: ``(C, D, H, W)``, floating point.
        matrix: ``(4, 4)``, from voxels of the result to voxels of ``volume``.
        shape: shape of the result.

    Yields:
        Consecutive planes of the result along its first axis, ``(C, planes, H, W)``.
    """
    count = max(1, _SLAB // max(1, shape[1] * shape[2]))
    slabs = torch.arange(shape[0]).split(count)
    axes = _parallel_axes(matrix, shape)
    if axes is None:
        for planes in slabs:
            yield _interpolated(volume, matrix, planes, shape[1:])
        return
    # Parallel axes are interpolated one after the other: a tenth of the time.
    turned = volume.permute(0, *(axis + 1 for axis in axes))
    steps = [(float(matrix[axis, i]), float(matrix[axis, 3])) for i, axis in enumerate(axes)]
    for planes in slabs:
        part = turned
        for axis, (step, offset) in enumerate(steps):
            index = planes if axis == 0 else torch.arange(shape[axis])
            places = _places(index.double() * step + offset, turned.shape[axis + 1])
            if axis == 0:
                # Permuted, each of these planes is spread over the whole volume.
                lowest, highest = int(places.min()), int(places.max().ceil())
                part = turned[:, lowest : highest + 1].contiguous()
                places -= lowest
            part = _interpolated_along(part, axis + 1, places)
        yield part


def _parallel_axes(matrix: Affine, shape: Sequence[int]) -> list[int] | None:
    """The axis of the volume that each axis of the result is parallel to; None if one is oblique.

    To 1/100 of a voxel over the whole result, as headers of 32 bits are rounded.
    """
    axes = [int(axis) for axis in abs(matrix[:3, :3]).argmax(0)]
    across = abs(matrix[:3, :3]) * np.array(shape)
    across[axes, range(3)] = 0
    return axes if sorted(axes) == [0, 1, 2] and across.max() < 0.01 else None


def _places(places: Tensor, size: int) -> Tensor:
    """Places along an axis of so many voxels: near a voxel at it, outside at the nearest one."""
    near = places.round()
    return torch.where((places - near).abs() < _SAME, near, places).clamp(0, size - 1)


def _interpolated_along(volume: Tensor, dim: int, places: Tensor) -> Tensor:
    """Interpolate at some places, in voxels, along one axis."""
    low = places.floor().long()
    weight = (places - low).to(volume)
    low = low.to(volume.device)
    found = volume.index_select(dim, low)
    if not weight.any():
        return found
    high = (low + 1).clamp(max=volume.shape[dim] - 1)
    weight = weight.reshape(-1, *[1] * (volume.ndim - 1 - dim))
    return found.lerp_(volume.index_select(dim, high), weight)


def _interpolated(volume: Tensor, matrix: Affine, planes: Tensor, across: Sequence[int]) -> Tensor:
    """Some planes of the result on any grid."""
    # From -1 to 1 between the outer faces of the volume's voxels, the last axis first.
    sizes = torch.tensor(volume.shape[1:], dtype=torch.float64)
    scaled = torch.from_numpy(matrix[:3]) * 2 / sizes[:, None]
    scaled[:, 3] += 1 / sizes - 1
    scaled = scaled.flip(0)
    grid = scaled[:, 3].expand(len(planes), *across, 3).clone()
    for axis, places in enumerate((planes, *map(torch.arange, across))):
        grid += (places.double()[:, None] * scaled[:, axis]).reshape(-1, *[1] * (2 - axis), 3)
    # A batch with an item for each plane, since grid_sample divides only batches among threads.
    copies = volume[None].expand(len(planes), *volume.shape)
    points = grid[:, None].to(volume)
    found = grid_sample(copies, points, "bilinear", "border", align_corners=False)
    return found[:, :, 0].transpose(0, 1)


def resample(volume: Tensor, matrix: Affine, shape: Sequence[int]) -> Tensor:
    """The planes of :func:`resampled` as one ``(C, D, H, W)``, float32 in host memory."""
    result = torch.empty((len(volume), *shape))
    start = 0
    for part in resampled(volume, matrix, shape):
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


def resampling_bytes(channels: int, shape: Sequence[int]) -> float:
    """Memory in bytes of ``(channels, *shape)`` float32 and of the slab that is being resampled."""
    voxels = float(np.prod([float(size) for size in shape]))
    return voxels * 4 * channels + min(voxels, _SLAB) * (36 + 4 * channels)
