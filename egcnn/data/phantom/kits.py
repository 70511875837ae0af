"""Synthetic abdominal CT with kidneys and tumours in the KiTS 2019 layout.

The anatomy is drawn in millimetres from smooth random fields, so a case looks the same at any
size. Intensity alone does not separate the regions: liver, spleen, vessels and bowel overlap the
kidneys and tumours in Hounsfield units, cysts belong to the kidney, and texture, noise and partly
blurred boundaries are added. The numbers of the anatomy were chosen by eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from egcnn.data.case import Case
from egcnn.data.kits import kits_case
from egcnn.data.nifti import write_volume
from egcnn.data.phantom.fields import Field, SmoothField, check_phantom, distance

Shape = tuple[int, int, int]
#: A point or radii in mm along the array's axes: downwards, backwards, to the left.
Triple = tuple[float, float, float]

_KIDNEY, _TUMOUR = 1, 2
# Fields are drawn within this distance of the middle, in mm.
_REACH = 260.0
# Slices that are drawn at a time, and those beside them that blur reaches into.
_SLAB, _HALO = 16, 2
# Slice thicknesses of the challenge, in mm; 1 mm twice.
_THICKNESSES = (0.5, 0.75, 1.0, 1.0, 1.25, 2.0, 2.5, 3.0, 3.75, 5.0)
# Widths of the fields' bumps in mm.
_LENGTHS = {
    "body": 90.0, "wall": 40.0, "bowel": 24.0, "gas": 20.0, "contrast": 34.0, "organ": 45.0,
    "vessel": 38.0, "branch": 38.0, "kidney": 26.0, "surface": 12.0, "medulla": 14.0,
    "sinus": 14.0, "tumour": 17.0, "lobes": 9.0, "inside": 13.0, "texture": 9.0, "blur": 45.0,
}  # fmt: skip


@dataclass(frozen=True)
class _Kidney:
    """A kidney: where, how large, and its Hounsfield units. ``side`` is 1 on the left, else -1."""

    side: int
    centre: Triple
    radii: Triple
    cortex: float
    medulla: float


@dataclass(frozen=True)
class _Lesion:
    """A tumour or a cyst in a kidney."""

    centre: Triple
    radius: float
    level: float
    cyst: bool


@dataclass(frozen=True)
class _Patient:
    """What is drawn once for a case."""

    body: tuple[float, float]
    kidneys: tuple[_Kidney, ...]
    lesions: tuple[_Lesion, ...]
    enhancement: float
    noise: float
    fields: dict[str, SmoothField]


def write_kits_case(root: Path, index: int, shape: Shape | None, seed: int) -> Case:
    """Write one of the cases of :func:`egcnn.data.phantom.write_phantoms`."""
    image, labels, affine = kits_volumes(index, shape, seed)
    folder = root / "data" / f"case_{index:05d}"
    write_volume(image, affine, folder / "imaging.nii.gz")
    # The challenge's label maps are of either type.
    labels = labels.astype(np.uint16) if index % 4 == 3 else labels
    write_volume(labels, affine, folder / "segmentation.nii.gz")
    return kits_case(folder)


def kits_volumes(
    index: int, shape: Shape | None = None, seed: int = 0
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Draw one synthetic case.

    Args:
        index: number of the case; odd ones are oblique by up to ten degrees.
        shape: slices, rows and columns, of any spacing that fits the body; None draws slices of 0.5
            to 5 mm with 512 rows and columns.
        seed: the case depends only on ``seed``, ``index`` and ``shape``.

    Returns:
        The CT ``(D, H, W)`` in Hounsfield units, int16; labels of 0, 1 (kidney) and 2 (tumour),
        uint8; the ``(4, 4)`` affine, whose slices come first, downwards, as the challenge's.

    Raises:
        InputError: an axis below 16 voxels, or a negative seed.
    """
    check_phantom(shape, seed)
    rng = np.random.default_rng([seed, index])
    patient = _draw_patient(rng)
    shape, spacing = draw_grid(rng, patient.body[1], shape)
    down, back, left = (
        (np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)
    )
    image = np.empty(shape, np.int16)
    labels = np.empty(shape, np.uint8)
    for start in range(0, shape[0], _SLAB):
        end = min(start + _SLAB, shape[0])
        first, last = max(start - _HALO, 0), min(end + _HALO, shape[0])
        hu, found = _draw_slab(rng, patient, (down[first:last], back, left), spacing)
        inner = slice(start - first, end - first)
        image[start:end], labels[start:end] = hu[inner], found[inner]
    return image, labels, _affine(rng, shape, spacing, oblique=index % 2 == 1)


def draw_grid(rng: np.random.Generator, width: float, shape: Shape | None) -> tuple[Shape, Triple]:
    """Draw a case's shape, unless it is given, and its spacing in mm.

    Args:
        rng: random numbers.
        width: half the body's width in mm, which the rows reach beyond.
        shape: see :func:`kits_volumes`.
    """
    extent, side = rng.uniform(250, 360), round(2 * width * rng.uniform(1.05, 1.25))
    if shape is None:
        thickness = float(rng.choice(_THICKNESSES))
        return (round(extent / thickness), 512, 512), (thickness, side / 512, side / 512)
    return shape, (extent / shape[0], side / shape[1], side / shape[2])


def _affine(
    rng: np.random.Generator, shape: Shape, spacing: Triple, *, oblique: bool
) -> NDArray[np.float64]:
    """Slices downwards, rows backwards, columns to the left; the challenge's origin is 0."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = np.negative(spacing)
    affine[3, 3] = 1
    if oblique:
        turn = Rotation.from_euler("xyz", rng.uniform(-10, 10, 3), degrees=True).as_matrix()
        affine[:3, :3] = turn @ affine[:3, :3]
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _draw_patient(rng: np.random.Generator) -> _Patient:
    body = (rng.uniform(105, 130), rng.uniform(150, 185))
    kidneys = []
    for side in (-1, 1):
        centre = (rng.uniform(-15, 25) - 8 * side, rng.uniform(32, 42), side * rng.uniform(60, 70))
        radii = (rng.uniform(48, 60), rng.uniform(24, 29), rng.uniform(26, 32))
        kidneys.append(_Kidney(side, centre, radii, rng.uniform(150, 210), rng.uniform(95, 150)))
    lesions = [_draw_lesion(rng, kidneys[0 if rng.random() < 0.5 else 1], cyst=False)]
    if rng.random() < 0.25:
        lesions.append(_draw_lesion(rng, kidneys[rng.integers(2)], cyst=False))
    for _ in range(rng.integers(3)):
        lesions.append(_draw_lesion(rng, kidneys[rng.integers(2)], cyst=True))
    fields = {
        name: SmoothField.draw(rng, length / _REACH, np.float32)
        for name, length in _LENGTHS.items()
    }
    levels = rng.uniform(0.85, 1.15), rng.uniform(14, 24)
    return _Patient(body, tuple(kidneys), tuple(lesions), *levels, fields)


def _draw_lesion(rng: np.random.Generator, kidney: _Kidney, *, cyst: bool) -> _Lesion:
    """A lesion about the kidney's surface, on the side that faces away from the spine."""
    direction = rng.normal(size=3)
    direction[2] = kidney.side * abs(direction[2])
    direction /= np.linalg.norm(direction)
    place = np.array(kidney.centre) + rng.uniform(0.7, 1.0) * direction * kidney.radii
    centre = (float(place[0]), float(place[1]), float(place[2]))
    if cyst:
        return _Lesion(centre, rng.uniform(7, 18), rng.uniform(0, 15), cyst)
    return _Lesion(centre, rng.uniform(15, 36), rng.uniform(70, 140), cyst)


class _Slab:
    """Coordinates of some slices in mm, the patient's fields there, and what is painted so far."""

    def __init__(self, patient: _Patient, axes: tuple[Field, Field, Field]) -> None:
        down, back, left = (axis.astype(np.float32) for axis in axes)
        self.down, self.back, self.left = (
            down[:, None, None],
            back[None, :, None],
            left[None, None, :],
        )
        self.axes = (self.down, self.back, self.left)
        self._fields = patient.fields
        self._positions = tuple(axis / _REACH for axis in (down, back, left))
        shape = (len(down), len(back), len(left))
        self.hu = np.full(shape, -1000, np.float32)
        self.labels = np.zeros(shape, np.uint8)

    def field(self, name: str) -> Field:
        """A field of the patient in these slices."""
        return self._fields[name].at(*self._positions)

    def away(self, centre: Triple, radii: Triple) -> Field:
        """Distance from a centre, 1 on the ellipsoid of these radii."""
        return distance(self.axes, np.array(centre, np.float32), np.array(radii, np.float32))

    def paint(self, where: NDArray[np.bool_], hu: float | Field) -> None:
        """Give voxels these Hounsfield units."""
        np.copyto(self.hu, np.float32(hu) if isinstance(hu, float) else hu, where=where)


def _draw_slab(
    rng: np.random.Generator,
    patient: _Patient,
    axes: tuple[Field, Field, Field],
    spacing: Triple,
) -> tuple[Field, NDArray[np.uint8]]:
    slab = _Slab(patient, axes)
    cavity = _paint_body(slab, patient)
    _paint_organs(slab, cavity, patient.enhancement)
    _paint_bones(slab, patient)
    _paint_vessels(slab, patient.enhancement)
    for kidney in patient.kidneys:
        _paint_kidney(slab, kidney)
    for lesion in patient.lesions:
        _paint_lesion(slab, lesion, cavity)
    texture = 1 + 0.08 * slab.field("texture")
    hu = np.where(slab.hu > -200, slab.hu * texture, slab.hu)
    # The scanner's point spread, and boundaries that breathing blurs in some places.
    pixels = [max(2.2 / size, 0.7) for size in spacing[1:]]
    sharp = gaussian_filter(hu, (0.5, 0.7, 0.7), truncate=3)
    wide = gaussian_filter(hu, (0.5, *pixels), truncate=3)
    hu = sharp + np.clip(0.3 + 0.6 * slab.field("blur"), 0, 1) * (wide - sharp)
    noise = gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0, 0.6, 0.6))
    hu += patient.noise / noise.std() * noise
    return np.clip(np.rint(hu), -1024, 3071), slab.labels


def _paint_body(slab: _Slab, patient: _Patient) -> NDArray[np.bool_]:
    """Paint skin, fat, the muscles of the wall and the couch; returns the abdominal cavity."""
    depth, width = patient.body
    radius = np.hypot(slab.back / depth, slab.left / width) + 0.02 * slab.field("body")
    wall = np.hypot((slab.back + 4) / (0.82 * depth), slab.left / (0.84 * width))
    wall = wall + 0.03 * slab.field("wall")
    cavity = wall < 0.88
    slab.paint(np.abs(slab.back - depth - 12 + (slab.left / 60) ** 2) < 3 + 0 * slab.down, -150.0)
    slab.paint(radius < 1, 20.0)
    slab.paint(radius < 0.985, -105.0)
    slab.paint((wall < 1) & (radius < 0.97), 55.0)
    slab.paint(cavity, -95.0)
    return cavity


def _paint_organs(slab: _Slab, cavity: NDArray[np.bool_], enhancement: float) -> None:
    """Paint bowel, liver, spleen, lungs and the psoas, some as bright as a kidney."""
    bowel = cavity & (slab.field("bowel") > 0.35) & (slab.back < 25) & (slab.down > -70)
    slab.paint(bowel, 45.0)
    slab.paint(bowel & (slab.field("contrast") > 0.9), 190.0)
    slab.paint(bowel & (slab.field("gas") > 1.3), -850.0)
    organ = 0.14 * slab.field("organ")
    liver = cavity & (slab.away((-75, -12, -75), (88, 78, 72)) < 1 + organ)
    slab.paint(liver, 112.0 * enhancement)
    branches = np.hypot(slab.field("vessel"), slab.field("branch")) < 0.16
    slab.paint(liver & branches, 165.0 * enhancement)
    spleen = cavity & (slab.away((-70, 42, 100), (52, 42, 30)) < 1 + organ)
    slab.paint(spleen, 140.0 * enhancement)
    dome = slab.down + 150 - 45 * np.hypot(slab.back / 90, (np.abs(slab.left) - 80) / 65) ** 2
    slab.paint(cavity & (dome < 0) & (np.hypot(slab.left / 35, (slab.back - 5) / 60) > 1), -830.0)
    for side in (-1, 1):
        grown = np.clip(14 + 0.06 * slab.down, 4, 24)
        psoas = np.hypot((slab.left - side * 40) / grown, (slab.back - 56) / grown) < 1
        slab.paint(psoas & cavity, 62.0)


def _paint_bones(slab: _Slab, patient: _Patient) -> None:
    """Paint vertebrae with discs and processes, and ribs that descend towards the front."""
    depth, width = patient.body
    marrow = 190 + 60 * slab.field("medulla")
    level = np.mod(slab.down + 12, 36)
    body = np.hypot((slab.back - 66) / 17, slab.left / 23) + 0 * slab.down
    slab.paint(body < 1, 95.0)
    vertebra = level > 7
    slab.paint((body < 1) & vertebra, marrow)
    slab.paint((np.abs(body - 0.95) < 0.07) & vertebra, 430.0)
    arch = np.hypot((slab.back - 91) / 13, slab.left / 15) + 0 * slab.down
    slab.paint(arch < 1, 300.0)
    slab.paint(arch < 0.68, 25.0)
    spine = np.hypot((slab.back - 108) / 16, slab.left / 5) + 0 * slab.down
    slab.paint((spine < 1) & (level > 14), 330.0)
    transverse = np.hypot((slab.back - 88) / 6, (np.abs(slab.left) - 25) / 20) + 0 * slab.down
    slab.paint((transverse < 1) & (level > 16) & (level < 28), 320.0)
    ring = np.hypot((slab.back + 4) / (0.80 * depth), slab.left / (0.82 * width))
    ring = np.abs(ring - 0.96) / 0.05
    descent = np.mod(slab.down - 0.45 * (60 - slab.back), 29) - 14.5
    rib = np.hypot(ring, descent / 6)
    below = slab.down < 35 - 0.5 * np.abs(slab.back - 40)
    slab.paint((rib < 1) & below, 480.0)
    slab.paint((rib < 0.55) & below, 170.0)


def _paint_vessels(slab: _Slab, enhancement: float) -> None:
    """Paint aorta, vena cava and the renal vessels."""
    bend = 6 * np.sin(slab.down / 55)
    for side in (-1, 1):
        # From the aorta to the hilum.
        branch = np.hypot(slab.down - 4 - 0.15 * side * slab.left, slab.back - 36) < 4.5
        slab.paint(branch & (side * slab.left > 0) & (side * slab.left < 48), 150.0 * enhancement)
    aorta = np.hypot(slab.back - 37, slab.left - 14 - bend) < 10.5
    slab.paint(aorta, 200.0 * enhancement)
    cava = np.hypot((slab.back - 34) / 0.8, slab.left + 17 - bend) < 11.5
    slab.paint(cava, 140.0 * enhancement)


def _paint_kidney(slab: _Slab, kidney: _Kidney) -> None:
    """Paint cortex, medulla and a sinus of fat and urine, which is no kidney."""
    down, back, left = kidney.centre
    # The upper pole is nearer to the spine and the back.
    tilted = (slab.down - down) / kidney.radii[0]
    across = (slab.left - left - kidney.side * 12 * tilted) / kidney.radii[2]
    along = (slab.back - back + 8 * tilted) / kidney.radii[1]
    shape = 1 + 0.09 * slab.field("kidney") + 0.045 * slab.field("surface")
    level = shape - np.sqrt(tilted**2 + along**2 + across**2)
    inward = across * kidney.side
    hilum = np.sqrt((tilted / 0.5) ** 2 + (along / 0.42) ** 2 + ((inward + 0.55) / 0.62) ** 2)
    sinus = hilum < 1 + 0.22 * slab.field("sinus")
    whole = level > 0
    kidney_only = whole & ~sinus
    slab.paint(kidney_only, kidney.medulla)
    columns = slab.field("medulla") > 0.6
    slab.paint(kidney_only & ((level < 0.24) | columns), kidney.cortex)
    slab.paint(whole & sinus, -70.0)
    slab.paint(whole & sinus & (slab.field("sinus") > 0.2), 12.0)
    slab.labels[kidney_only] = _KIDNEY


def _paint_lesion(slab: _Slab, lesion: _Lesion, cavity: NDArray[np.bool_]) -> None:
    """Paint a cyst, which is part of the kidney, or a lobed tumour, necrotic in its middle."""
    radii = (lesion.radius,) * 3
    away = slab.away(lesion.centre, radii)
    if lesion.cyst:
        inside = (away < 1 + 0.04 * slab.field("surface")) & cavity & (slab.labels != _TUMOUR)
        slab.paint(inside, lesion.level)
        slab.labels[inside] = _KIDNEY
        return
    level = 1 + 0.22 * slab.field("tumour") + 0.10 * slab.field("lobes") - away
    inside = (level > 0) & cavity
    texture = slab.field("inside")
    slab.paint(inside, lesion.level + 26 * texture)
    slab.paint(inside & (level > 0.5 + 0.25 * texture), 28.0)
    slab.labels[inside] = _TUMOUR
