"""Smooth random fields in normalised coordinates, from which the synthetic anatomy is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from egcnn.errors import InputError

_SMALLEST = 16

Field = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SmoothField:
    """A Gaussian random field of zero mean and unit deviation within -1 to 1 along each axis.

    It is defined on a coarse grid of its own, so that it does not depend on where it is read.

    Args:
        length: width of its Gaussian bumps.
        noise: one number per bump.
    """

    length: float
    noise: Field

    @classmethod
    def draw(
        cls, rng: np.random.Generator, length: float, dtype: DTypeLike = np.float64
    ) -> SmoothField:
        """Draw a field; it is computed in ``dtype``."""
        size = cls._grid(length).size
        return cls(length, rng.standard_normal((size,) * 3).astype(dtype, copy=False))

    def at(self, *positions: Field) -> Field:
        """Its values where the positions along the three axes cross, ``(D, H, W)``."""
        field = self.noise
        grid = self._grid(self.length)
        for position in positions:
            weights = np.exp(-(((position[:, None] - grid) / self.length) ** 2))
            weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
            field = np.tensordot(field, weights.astype(field.dtype, copy=False), axes=(0, 1))
        return field

    @staticmethod
    def _grid(length: float) -> Field:
        return np.arange(-1 - 2 * length, 1 + 2.7 * length, 0.7 * length)


def smooth(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Field:
    """Draw a field and read it at the centres of voxels."""
    return SmoothField.draw(rng, length).at(*(axis(size) for size in shape))


def axis(size: int) -> Field:
    """The centres of voxels between -1 and 1."""
    return (np.arange(size) + 0.5) * (2 / size) - 1


def distance(axes: tuple[Field, Field, Field], centre: Field, stretch: Field) -> Field:
    """Distance from a centre in units of ``stretch``, at broadcastable coordinates."""
    parts = (((a - c) / s) ** 2 for a, c, s in zip(axes, centre, stretch, strict=True))
    return np.sqrt(sum(parts, start=np.zeros(1, axes[0].dtype)))


def check_phantom(shape: tuple[int, ...] | None, seed: int) -> None:
    """Raise InputError if a synthetic case cannot have this shape (None has none) or seed."""
    if shape is not None and (len(shape) != 3 or min(shape) < _SMALLEST):
        raise InputError(f"shape: {shape}; expected three axes of at least {_SMALLEST} voxels")
    if seed < 0:
        raise InputError(f"seed: {seed}; expected 0 or more")
