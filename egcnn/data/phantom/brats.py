"""Synthetic brain MR with tumours in the BraTS 2019 layout, for demonstrations and tests.

The anatomy is drawn in normalised coordinates from smooth random fields, so a case looks the same
at any size. Intensity alone does not separate the regions: tissue contrasts overlap, other
structures are as bright as the tumour in each modality, and blur, a bias field, noise and a random
gain per modality are applied. The numbers of the anatomy were chosen by eye.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from egcnn.data.brats import MODALITIES, brats_case
from egcnn.data.case import Case
from egcnn.data.nifti import write_volume
from egcnn.data.phantom.fields import Field, axis, check_phantom, distance, smooth

#: The challenge's size in voxels.
BRATS_SHAPE = (240, 240, 155)
# Partial volume and the scanner's point spread in voxels, about one of BraTS.
_POINT_SPREAD = 0.75
# Width of the fading boundaries relative to half the volume's extent: 2.5 mm in a head of 210.
_FADING = 0.024
# Width of the smallest lobes of the tumour's outline, likewise: 4 mm.
_LOBES = 0.038
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


def write_brats_case(root: Path, index: int, shape: tuple[int, int, int], seed: int) -> Case:
    """Write one of the cases of :func:`egcnn.data.phantom.write_brats`."""
    affine = brats_affine(shape)
    images, labels = brats_volumes(index, shape, seed)
    folder = root / "HGG" / f"PHANTOM_{index:03d}"
    for modality, image in zip(MODALITIES, images, strict=True):
        write_volume(image, affine, folder / f"{folder.name}_{modality}.nii.gz")
    write_volume(labels, affine, folder / f"{folder.name}_seg.nii.gz")
    return brats_case(folder)


def brats_affine(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Voxels of 1 mm to the left, backwards and upwards, with the challenge's origin."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1.0
    return affine


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
    check_phantom(shape, seed)
    rng = np.random.default_rng([seed, index])
    brain, depth = _brain(rng, shape)
    labels = _tumour(rng, shape, depth, _roughness(shape, [seed, index, 2]))
    tissue = _healthy(rng, shape, depth)
    for name, value in (("oedema", _OEDEMA), ("necrosis", _NECROSIS), ("enhancing", _ENHANCING)):
        inside = labels == value
        for other in tissue.values():
            other[inside] = 0.0
        tissue[name] = inside.astype(np.float64)
    images = _images(rng, shape, brain, tissue, _blurred_places(shape, [seed, index, 1]))
    return images, labels


def _blurred_places(shape: tuple[int, ...], seed: list[int]) -> tuple[float, Field] | None:
    """The width in voxels of blurred boundaries, and where they are blurred, from 0 to 1.

    Oedema fades out over millimetres. In small volumes that is less than a voxel: None.
    """
    width = _FADING * float(np.mean(shape)) / 2
    if width <= _POINT_SPREAD:
        return None
    return width, np.clip(0.5 + 0.8 * smooth(np.random.default_rng(seed), shape, 0.25), 0, 1)


def _roughness(shape: tuple[int, ...], seed: list[int]) -> Field | float:
    """Lobes of some millimetres on the tumour's outline; 0 where they are below two voxels."""
    if _LOBES * float(np.mean(shape)) / 2 < 2:
        return 0.0
    return 0.06 * smooth(np.random.default_rng(seed), shape, _LOBES)


def _brain(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], Field]:
    """Draw the brain mask and each voxel's depth: 0 at the surface, about 1 in the middle."""
    x, y, z = _axes(shape)
    radii = np.array([0.78, 0.89, 0.86]) * rng.uniform(0.94, 1.04, 3)
    # The base of the brain is flatter than the vertex.
    height = np.where(z < 0, z * 1.18, z) / radii[2]
    radius = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + height**2)
    depth = 1.0 - radius + 0.035 * smooth(rng, shape, 0.30)
    return depth > 0, depth


def _healthy(rng: np.random.Generator, shape: tuple[int, ...], depth: Field) -> dict[str, Field]:
    """Draw masks of the healthy tissues, including ones that look like tumour in one modality."""
    x, y, z = _axes(shape)
    folds = 0.10 * smooth(rng, shape, 0.09) + 0.06 * smooth(rng, shape, 0.05)
    grey = depth < 0.17 + folds
    deep = np.minimum.reduce(
        [((x - s * 0.24) / 0.11) ** 2 + ((y + 0.02) / 0.20) ** 2 + (z / 0.16) ** 2 for s in (-1, 1)]
    )
    grey |= deep < 1 + 0.3 * smooth(rng, shape, 0.15)
    bend = 0.25 * smooth(rng, shape, 0.25)
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
    lesion |= (smooth(rng, shape, 0.06) > 2.35) & (depth > 0.15)
    # Bright on T1ce like the enhancing rim: the sagittal sinus, and vessels along a field's zeros.
    vessel = (np.hypot(x / 0.055, depth / 0.11) < 1) & (z > 0)
    first, second = smooth(rng, shape, 0.22), smooth(rng, shape, 0.22)
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


def _tumour(
    rng: np.random.Generator, shape: tuple[int, ...], depth: Field, rough: Field | float
) -> NDArray[np.uint8]:
    """Draw nested irregular regions: oedema around a necrotic core within a broken rim."""
    axes = _axes(shape)
    inside = depth > 0.04
    voxels = depth.size
    while True:
        centre = rng.uniform([-0.42, -0.52, -0.30], [0.42, 0.52, 0.42])
        size = rng.uniform(0.34, 0.52)
        stretch = rng.uniform(0.8, 1.25, 3)
        offset = rng.uniform(-0.22, 0.22, 3) * size
        whole = size * (1 + 0.24 * smooth(rng, shape, 0.22) + 0.12 * smooth(rng, shape, 0.10))
        whole = whole + size * rough - distance(axes, centre, stretch)
        share = rng.uniform(0.52, 0.72)
        core = 1 + 0.20 * smooth(rng, shape, 0.16) + 0.10 * smooth(rng, shape, 0.07)
        core = share * size * (core - rough) - distance(axes, centre + offset, stretch)
        # A random field sets the rim's thickness; the rim is open where the field is negative.
        rim = size * (0.24 + 0.11 * smooth(rng, shape, 0.16))
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
    blurred: tuple[float, Field] | None,
) -> NDArray[np.int16]:
    images = np.zeros((len(MODALITIES), *shape), dtype=np.int16)
    for channel in range(len(MODALITIES)):
        signal = np.zeros(shape)
        for name, where in tissue.items():
            mean = _SIGNAL[name][channel] * rng.uniform(0.95, 1.05)
            texture = 1 + 0.06 * smooth(rng, shape, 0.08)
            signal += where * mean * texture
        sharp = gaussian_filter(signal, _POINT_SPREAD)
        if blurred is None:
            signal = sharp
        else:
            width, share = blurred
            signal = sharp + share * (gaussian_filter(signal, width) - sharp)
        signal *= np.exp(0.13 * smooth(rng, shape, 0.55))
        # Magnitude images have Rician noise, that of two independent channels.
        noise = rng.uniform(0.07, 0.11)
        signal = np.hypot(
            signal + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape)
        )
        gain = rng.uniform(200, 900)
        images[channel][brain] = np.clip(np.rint(gain * signal[brain]), 1, 32767)
    return images


def _axes(shape: tuple[int, ...]) -> tuple[Field, Field, Field]:
    """Coordinates left to right, front to back, bottom to top, from -1 to 1, broadcastable."""
    d, h, w = (axis(size) for size in shape)
    return d[:, None, None], h[None, :, None], w[None, None, :]
