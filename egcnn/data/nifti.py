"""NIfTI files: opened and read with every check, written whole."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray
from torch import Tensor

from egcnn.errors import InputError
from egcnn.files import replacing

#: File names that are read and written; nibabel chooses by them whether to decompress.
SUFFIXES = (".nii.gz", ".nii")

# Headers of one grid differ by the rounding of 32-bit affines and quaternions, never by this much.
_GRID_TOLERANCE_VOXELS = 0.1


def stem(path: Path) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def open_volume(path: Path) -> SpatialImage:
    """Read the header of a NIfTI file and check that the grid is usable; voxels come later.

    Raises:
        InputError: the file is missing, empty, truncated or no NIfTI, has fewer than three axes or
            an affine without inverse.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a NIfTI volume")
    try:
        image = nib.load(path)
    except (OSError, EOFError, ValueError, zlib.error, HeaderDataError, ImageFileError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(image, SpatialImage):
        raise InputError(f"{path}: a {type(image).__name__}; expected a NIfTI volume")
    affine = image.affine
    if (
        affine is None
        or not np.isfinite(affine).all()
        or abs(np.linalg.det(affine[:3, :3])) < 1e-12
    ):
        raise InputError(f"{path}: the affine has no inverse; expected three independent axes")
    if len(image.shape) < 3 or 0 in image.shape:
        raise InputError(f"{path}: shape {image.shape}; expected three axes of at least one voxel")
    return image


def read_array(path: Path, image: SpatialImage) -> NDArray[Any]:
    """The voxels as numbers in the machine's byte order."""
    try:
        if path.name.endswith(".gz"):
            # Bytes damaged on the way may still decode; only the checksum at the end tells, and
            # nibabel stops reading before it.
            stored = image.dataobj
            layout = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
            with gzip.open(path) as stream:
                array = np.asanyarray(ArrayProxy(stream, layout))
                while stream.read(1 << 20):
                    pass
        else:
            array = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {array.dtype}; expected real numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_grid(path: Path, image: SpatialImage, other_path: Path, other: SpatialImage) -> None:
    """Both files cover the same voxels of the same space."""
    shape, other_shape = image.shape[:3], other.shape[:3]
    if shape != other_shape:
        raise InputError(f"{path}: shape {shape}; expected {other_shape} as {other_path} has")
    # Distances at the volume's corners weigh rotation, scale and shift alike, in voxels.
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in shape), [1.0]), -1).reshape(-1, 4)
    gap = np.linalg.norm((corners @ (image.affine - other.affine).T)[:, :3], axis=1).max()
    voxel = np.linalg.norm(other.affine[:3, :3], axis=0).min()
    if gap > _GRID_TOLERANCE_VOXELS * voxel:
        raise InputError(
            f"{path}: its affine places it up to {gap:.3g} mm away from {other_path}; "
            "expected the same affine"
        )


def write_volume(array: NDArray[Any] | Tensor, affine: NDArray[Any] | Tensor, path: Path) -> None:
    """Write a volume as NIfTI; the file appears under its name only when it is complete.

    Args:
        array: ``(D, H, W)``, or ``(D, H, W, C)`` with the channel last. Booleans are written as
            uint8, 64-bit integers as the smallest type that holds them, floats as float32.
        affine: ``(4, 4)`` from voxels to mm.
        path: ends in ``.nii`` or ``.nii.gz``; its folder is made. Replaces what is there.

    Raises:
        InputError: another ending or rank, or the file cannot be written (a full disk, say).
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: unknown ending; expected .nii or .nii.gz")
    data = _storable(torch.as_tensor(array).detach().cpu().numpy())
    matrix = torch.as_tensor(affine).detach().cpu().numpy().astype(np.float64)
    if data.ndim not in (3, 4):
        raise InputError(f"{path}: array of shape {data.shape}; expected (D, H, W) or (D, H, W, C)")
    image = nib.Nifti1Image(data, matrix)
    image.header.set_xyzt_units("mm")
    image.set_sform(matrix, code=1)
    # A quaternion cannot hold shear. Readers that prefer it must not see another grid.
    image.set_qform(matrix, code=1)
    if not np.allclose(image.get_qform(), matrix, atol=1e-4):
        image.set_qform(None, code=0)

    with replacing(path) as temporary:
        nib.save(image, temporary)


def _unreadable(path: Path, error: Exception) -> InputError:
    if path.stat().st_size == 0:
        return InputError(f"{path}: the file is empty; expected a NIfTI volume")
    detail = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return InputError(f"{path}: truncated or not NIfTI ({detail}); expected a complete volume")


def _storable(data: NDArray[Any]) -> NDArray[Any]:
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind == "f":
        return data.astype(np.float32, copy=False)
    if data.dtype.itemsize == 8:
        low, high = (int(data.min()), int(data.max())) if data.size else (0, 0)
        for dtype in (np.uint8, np.int16, np.int32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return data.astype(dtype)
    return data
