"""Synthetic brain MR with tumours in the BraTS 2019 layout, for demonstrations and tests.

The anatomy is drawn in normalised coordinates from smooth random fields, so a case looks the same
at any size. Intensity alone does not separate the regions: tissue contrasts overlap, other
structures are as bright as the tumour in each modality, and blur, a bias field, noise and a random
gain per modality are applied. The numbers of the anatomy were chosen by eye.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from egcnn.data.brats import MODALITIES, brats_case
from egcnn.data.case import Case
from egcnn.data.nifti import write_volume
from egcnn.errors import InputError

Field = NDArray[np.floating[Any]]

_SMALLEST = 16
_NECROSIS, _OEDEMA, _ENHANCING = 1, 2, 4

# Mean signal of each tissue relative to white matter on T1, after the usual reading of glioma MR:
# oedema bright on T2 and FLAIR, the enhancing rim bright and the core dark on T1ce, fluid dark on
# FLAIR and brightest on T2.
_SIGNAL = {
    #              t1    t1ce  t2    flair
    "white":      (1.00, 1.02, 0.80, 0.88),
    "grey":       (0.78, 0.82, 1.08, 1.12),
    "fluid":      (0.38, 0.38, 1.85, 0.42),
    "lesion":     (0.86, 0.88, 1.15, 1.45),
    "vessel":     (0.75, 1.65, 0.60, 0.60),
    "oedema":     (0.76, 0.80, 1.38, 1.42),
    "necrosis":   (0.58, 0.60, 1.55, 1.14),
    "enhancing":  (0.76, 1.38, 1.28, 1.30),
}  # fmt: skip


def write_brats(
    root: Path, cases: int, shape: tuple[int, int, int] = (64, 64, 48), seed: int = 0
) -> tuple[Case, ...]:
    """Write cases as ``root/HGG/PHANTOM_000/PHANTOM_000_{t1,t1ce,t2,flair,seg}.nii.gz``.

    Args:
        root: folder, created if missing.
        cases: number of cases.
        shape: voxels of 1 mm, in the array order and affine of BraTS (left, posterior, superior).
        seed: case ``i`` depends only on ``seed``, ``i`` and ``shape``.

    Returns:
        The cases written.

    Raises:
        InputError: fewer than one case, an axis below 16 voxels, a negative seed, or a file that
            cannot be written.
    """
    if cases < 1:
        raise InputError(f"cases: {cases}; expected at least 1")
    written = []
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1.0
    for index in range(cases):
        images, labels = brats_volumes(index, shape, seed)
        folder = Path(root) / "HGG" / f"PHANTOM_{index:03d}"
        for modality, image in zip(MODALITIES, images, strict=True):
            write_volume(image, affine, folder / f"{folder.name}_{modality}.nii.gz")
        write_volume(labels, affine, folder / f"{folder.name}_seg.nii.gz")
        written.append(brats_case(folder))
    return tuple(written)


def brats_volumes(
    index: int, shape: tuple[int, int, int] = (64, 64, 48), seed: int = 0
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw one synthetic case.

    Returns:
        Images ``(4, D, H, W)`` int16 in the order t1, t1ce, t2, flair, 0 outside the brain and
        positive in it; labels ``(D, H, W)`` uint8 of 0, 1, 2, 4.

    Raises:
        InputError: an axis below 16 voxels, or a negative seed.
    """
    if len(shape) != 3 or min(shape) < _SMALLEST:
        raise InputError(f"shape: {shape}; expected three axes of at least {_SMALLEST} voxels")
    if seed < 0:
        raise InputError(f"seed: {seed}; expected 0 or more")
    rng = np.random.default_rng([seed, index])
    brain, depth = _brain(rng, shape)
    labels = _tumour(rng, shape, depth)
    tissue = _healthy(rng, shape, depth)
    for name, value in (("oedema", _OEDEMA), ("necrosis", _NECROSIS), ("enhancing", _ENHANCING)):
        inside = labels == value
        for other in tissue.values():
            other[inside] = 0.0
        tissue[name] = inside.astype(np.float64)
    return _images(rng, shape, brain, tissue), labels


def _brain(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], Field]:
    """Draw the brain mask and each voxel's depth: 0 at the surface, about 1 in the middle."""
    x, y, z = _axes(shape)
    radii = np.array([0.78, 0.89, 0.86]) * rng.uniform(0.94, 1.04, 3)
    # The base of the brain is flatter than the vertex.
    height = np.where(z < 0, z * 1.18, z) / radii[2]
    radius = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + height**2)
    depth = 1.0 - radius + 0.035 * _smooth(rng, shape, 0.30)
    return depth > 0, depth


def _healthy(rng: np.random.Generator, shape: tuple[int, ...], depth: Field) -> dict[str, Field]:
    """Draw masks of the healthy tissues, including ones that look like tumour in one modality."""
    x, y, z = _axes(shape)
    folds = 0.10 * _smooth(rng, shape, 0.09) + 0.06 * _smooth(rng, shape, 0.05)
    grey = depth < 0.17 + folds
    deep = np.minimum.reduce(
        [((x - s * 0.24) / 0.11) ** 2 + ((y + 0.02) / 0.20) ** 2 + (z / 0.16) ** 2 for s in (-1, 1)]
    )
    grey |= deep < 1 + 0.3 * _smooth(rng, shape, 0.15)
    bend = 0.25 * _smooth(rng, shape, 0.25)
    width = rng.uniform(0.07, 0.11)
    ventricles = np.minimum.reduce(
        [
            ((x - s * (0.10 + 0.10 * y**2)) / width) ** 2 + (y / 0.42) ** 2
            + ((z - 0.12) / 0.17) ** 2
            for s in (-1, 1)
        ]
    )  # fmt: skip
    fluid = (ventricles < 1 + bend) | (depth < 0.035 + 0.25 * folds)
    fluid |= (np.abs(x) < 0.018) & (depth < 0.30)
    # Bright on FLAIR like oedema: periventricular caps and scattered white-matter lesions.
    lesion = (ventricles < 1.7 + 1.2 * bend) & (np.abs(y) > 0.26)
    lesion |= (_smooth(rng, shape, 0.06) > 2.35) & (depth > 0.15)
    # Bright on T1ce like the enhancing rim: the sagittal sinus, and vessels along a field's zeros.
    vessel = (np.hypot(x / 0.055, depth / 0.11) < 1) & (z > 0)
    first, second = _smooth(rng, shape, 0.22), _smooth(rng, shape, 0.22)
    vessel |= (np.hypot(first, second) < 0.13) & (depth < 0.45)
    tissue: dict[str, Field] = {}
    free = depth > 0
    for name, where in (
        ("vessel", vessel),
        ("fluid", fluid),
        ("lesion", lesion & ~grey),
        ("grey", grey),
        ("white", np.ones_like(free)),
    ):
        tissue[name] = (where & free).astype(np.float64)
        free = free & ~where
    return tissue


def _tumour(rng: np.random.Generator, shape: tuple[int, ...], depth: Field) -> NDArray[np.uint8]:
    """Draw nested irregular regions: oedema around a necrotic core within a broken rim."""
    axes = _axes(shape)
    inside = depth > 0.04
    voxels = depth.size
    while True:
        centre = rng.uniform([-0.42, -0.52, -0.30], [0.42, 0.52, 0.42])
        size = rng.uniform(0.34, 0.52)
        stretch = rng.uniform(0.8, 1.25, 3)
        offset = rng.uniform(-0.22, 0.22, 3) * size
        whole = size * (1 + 0.24 * _smooth(rng, shape, 0.22) + 0.12 * _smooth(rng, shape, 0.10))
        whole = whole - _distance(axes, centre, stretch)
        share = rng.uniform(0.52, 0.72)
        core = 1 + 0.20 * _smooth(rng, shape, 0.16) + 0.10 * _smooth(rng, shape, 0.07)
        core = share * size * core - _distance(axes, centre + offset, stretch)
        # A random field sets the rim's thickness; the rim is open where the field is negative.
        rim = size * (0.24 + 0.11 * _smooth(rng, shape, 0.16))
        in_whole = inside & (whole > 0)
        in_core = in_whole & (core > 0) & (whole > 0.10 * size)
        enhancing = in_core & (np.minimum(core, whole) < rim)
        labels = np.zeros(shape, dtype=np.uint8)
        labels[in_whole] = _OEDEMA
        labels[in_core] = _NECROSIS
        labels[enhancing] = _ENHANCING
        counts = [np.count_nonzero(labels == v) for v in (_OEDEMA, _NECROSIS, _ENHANCING)]
        if min(counts) >= max(4, 0.001 * voxels):
            return labels


def _images(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    brain: NDArray[np.bool_],
    tissue: dict[str, Field],
) -> NDArray[np.int16]:
    images = np.zeros((len(MODALITIES), *shape), dtype=np.int16)
    # Partial volume and the scanner's point spread, about one BraTS voxel.
    blur = 0.75
    for channel in range(len(MODALITIES)):
        signal = np.zeros(shape)
        for name, where in tissue.items():
            mean = _SIGNAL[name][channel] * rng.uniform(0.95, 1.05)
            texture = 1 + 0.06 * _smooth(rng, shape, 0.08)
            signal += where * mean * texture
        signal = gaussian_filter(signal, blur)
        signal *= np.exp(0.13 * _smooth(rng, shape, 0.55))
        # Magnitude images have Rician noise, that of two independent channels.
        noise = rng.uniform(0.07, 0.11)
        signal = np.hypot(
            signal + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape)
        )
        gain = rng.uniform(200, 900)
        images[channel][brain] = np.clip(np.rint(gain * signal[brain]), 1, 32767)
    return images


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Field:
    """Draw a Gaussian random field of zero mean and unit deviation.

    ``length`` is the width of its Gaussian bumps relative to half the volume's extent. They lie on
    a separate coarse grid, so that the draw does not depend on the number of voxels.
    """
    grid = np.arange(-1 - 2 * length, 1 + 2.7 * length, 0.7 * length)
    field = rng.standard_normal((grid.size,) * 3)
    for size in shape:
        weights = np.exp(-(((_axis(size)[:, None] - grid) / length) ** 2))
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        field = np.tensordot(field, weights, axes=(0, 1))
    return field


def _axis(size: int) -> Field:
    return (np.arange(size) + 0.5) * (2 / size) - 1


def _axes(shape: tuple[int, ...]) -> tuple[Field, Field, Field]:
    """Coordinates left to right, front to back, bottom to top, from -1 to 1, broadcastable."""
    d, h, w = (_axis(size) for size in shape)
    return d[:, None, None], h[None, :, None], w[None, None, :]


def _distance(axes: tuple[Field, Field, Field], centre: Field, stretch: Field) -> Field:
    parts = (((a - c) / s) ** 2 for a, c, s in zip(axes, centre, stretch, strict=True))
    return np.sqrt(sum(parts, start=np.zeros(1)))
