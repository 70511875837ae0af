"""Checked reading and atomic writing of NIfTI files."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from os.path import isfile  # False for names that no file can have
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import torch
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Extensions, Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import io_orientation
from nibabel.volumeutils import native_code
from numpy.typing import NDArray
from torch import Tensor

from egcnn.checks import check_memory
from egcnn.errors import InputError
from egcnn.files import atomic_write

#: Supported suffixes; nibabel decompresses according to them.
SUFFIXES = (".nii.gz", ".nii")

# Tolerance for two headers of the same grid; rounding of 32-bit affines and quaternions is far
# smaller.
_GRID_TOLERANCE_VOXELS = 0.1
# Cosine of the angle between two axes above which an affine is sheared: half a voxel over 500.
_LARGEST_SHEAR = 1e-3
# Maximum number of bytes before and after the voxels, such as extensions and padding.
_MAX_EXTRA_BYTES = 16 << 20
# DEFLATE expands one byte to at most 1032.
_LARGEST_RATIO = 1032
# A note holds a configuration; one that is much deeper could not be written elsewhere.
_DEEPEST_NOTE = 50
# Peak memory per voxel while reading: the stored value, its float32, and a copy for the checks.
_BYTES_PER_VOXEL = 12
# Millimetres by the header's code of the unit: metres and microns; all else is taken for mm.
_UNITS = {1: 1000.0, 3: 0.001}
# The header fields of the geometry: both affines, their codes, and the units.
_GEOMETRY_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)

Header: TypeAlias = Nifti1Header  # NIfTI-2's is a subclass
#: Shape ``(D, H, W)``, and the ``(4, 4)`` affine from voxels to mm.
Grid: TypeAlias = tuple[tuple[int, int, int], NDArray[np.float64]]


def stem(path: Path) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``, in upper or lower case."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def common_name(files: Sequence[Path]) -> str:
    """The words with which all names begin: ``CASE_0000`` and ``CASE_0001`` give ``CASE``."""
    words = [re.findall(r"[_\-. ]+|[^_\-. ]+", stem(file)) for file in files]
    columns = zip(*words, strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return "".join(shared).rstrip("_-. ") or stem(files[0])


def is_volume(path: Path) -> bool:
    """Whether a path is a NIfTI file by its name; hidden files (``._x.nii`` of macOS) are not."""
    return path.name.lower().endswith(SUFFIXES) and path.name[0] != "." and path.is_file()


def volumes(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_volume(path))


def volumes_by_stem(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by :func:`stem`, sorted by name.

    Raises:
        InputError: two have the same, such as ``x.nii`` and ``x.nii.gz``.
    """
    found: dict[str, Path] = {}
    for path in volumes(folder):
        if (other := found.setdefault(stem(path), path)) is not path:
            raise InputError(f"{path}: {other.name} has the same name; expected one of them")
    return found


def find_volume(folder: Path, name: str) -> Path | None:
    """The file ``name.nii.gz`` or ``name.nii`` of a folder, or None; the ending in either case."""
    for suffix in SUFFIXES:
        for ending in (suffix, suffix.upper()):
            if isfile(path := folder / (name + ending)):
                return path
    return None


def open_volume(path: Path) -> nib.Nifti1Image:
    """Read the header of a NIfTI file and check its grid; the voxels are not read.

    Raises:
        InputError: the file is missing, empty, truncated or not NIfTI, claims more voxels than the
            file or memory can hold, has fewer than three axes, or its affine has no inverse.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a NIfTI volume")
    try:
        # Not by nibabel.load, which reads as many bytes of extensions as the file claims to have.
        header = _read_header(path)
        _check_claims(path, header)
        header.check_fix()
        kind = nib.Nifti2Image if isinstance(header, Nifti2Header) else nib.Nifti1Image
        with np.errstate(all="ignore"):
            image = kind(ArrayProxy(path, header), header.get_best_affine(), header)
            matrix = affine(image)
            determinant = abs(np.linalg.det(matrix[:3, :3]))
    except InputError:
        raise
    except Exception as error:  # any failure of nibabel is the file's fault
        raise _unreadable(path, error) from error
    finite = 1e-12 <= determinant < np.inf and np.isfinite(matrix).all()
    with np.errstate(over="ignore"):
        # An axis that is parallel to another within rounding has no anatomical direction.
        if not finite or np.isnan(io_orientation(matrix)).any():
            raise InputError(
                f"{path}: the affine has no inverse or is not finite; expected three independent "
                "axes"
            )
    return image


def affine(image: nib.Nifti1Image) -> NDArray[np.float64]:
    """The ``(4, 4)`` affine from voxels to mm, converted from the file's units."""
    matrix = np.array(image.affine, dtype=np.float64)
    matrix[:3] *= _UNITS.get(int(image.header["xyzt_units"]) & 7, 1.0)
    return matrix


def grid_of(image: nib.Nifti1Image) -> Grid:
    """The grid of a volume of :func:`open_volume`."""
    depth, height, width = image.shape[:3]
    return (depth, height, width), affine(image)


def read_array(path: Path, image: nib.Nifti1Image) -> NDArray[Any]:
    """Read the voxels as numbers in native byte order.

    Raises:
        InputError: the file is truncated or damaged, or its voxels are not real numbers.
    """
    try:
        if _is_compressed(path):
            # Corrupted data may still decompress. Only the checksum at the end shows it, and
            # nibabel stops reading before it.
            stored = image.dataobj
            layout = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
            with gzip.open(path) as stream:
                array = np.asanyarray(ArrayProxy(stream, layout))
                extra = 0
                while part := stream.read(1 << 20):
                    extra += len(part)
                    if extra > _MAX_EXTRA_BYTES:
                        raise InputError(
                            f"{path}: more than {_MAX_EXTRA_BYTES >> 20} MB follow the voxels; "
                            "expected the end of the file"
                        )
        else:
            array = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {array.dtype}; expected real numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _read_header(path: Path) -> Header:
    """The header alone, unchecked.

    Raises:
        Exception: of many types, where the file is damaged or no NIfTI.
    """
    with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
        block = stream.read(Nifti2Header.sizeof_hdr)
    second = Nifti2Header.sizeof_hdr in (
        int.from_bytes(block[:4], "little"),
        int.from_bytes(block[:4], "big"),
    )
    kind = Nifti2Header if second else Nifti1Header
    if len(block) < kind.sizeof_hdr:
        raise EOFError(f"{len(block)} bytes of a header of {kind.sizeof_hdr}")
    header = kind(block[: kind.sizeof_hdr], check=False)
    if not bytes(header["magic"]).startswith(b"n"):
        raise ValueError("no NIfTI header")
    return header


def _check_claims(path: Path, header: Header) -> None:
    """Check the size that a header claims against the file's size and free memory.

    Raises:
        InputError: it is larger, or there are fewer than three axes.
    """
    shape = tuple(int(size) for size in header.get_data_shape())
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"{path}: shape {shape}; expected three axes of at least one voxel")
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MAX_EXTRA_BYTES:
        raise InputError(
            f"{path}: its voxels begin at byte {offset:g}; expected at most {_MAX_EXTRA_BYTES}"
        )
    voxels = math.prod(shape)
    claimed = voxels * header.get_data_dtype().itemsize
    stored = path.stat().st_size * (_LARGEST_RATIO if _is_compressed(path) else 1)
    if offset + claimed > stored:
        raise InputError(
            f"{path}: truncated: shape {shape} takes {claimed} bytes; expected no more than the "
            f"{stored} that the file can hold"
        )
    check_memory(f"{path}: shape {shape}", voxels * _BYTES_PER_VOXEL)


def check_grid(path: Path, image: nib.Nifti1Image, other_path: Path, other: Grid) -> None:
    """Check that a file is on the grid of another one.

    Raises:
        InputError: their shapes or affines differ.
    """
    (shape, matrix), (other_shape, other_matrix) = grid_of(image), other
    if shape != other_shape:
        raise InputError(f"{path}: shape {shape}; expected {other_shape} as {other_path} has")
    # Distances at the volume's corners measure rotation, scale and shift in one unit, voxels.
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in shape), [1.0]), -1).reshape(-1, 4)
    with np.errstate(over="ignore"):
        gap = np.linalg.norm((corners @ (matrix - other_matrix).T)[:, :3], axis=1).max()
        voxel = np.linalg.norm(other_matrix[:3, :3], axis=0).min()
    if gap > _GRID_TOLERANCE_VOXELS * voxel:
        raise InputError(
            f"{path}: its affine places it up to {gap:.3g} mm away from {other_path}; "
            "expected the same affine"
        )


def check_axes(path: Path, grid: Grid) -> None:
    """Check that the axes of a file are perpendicular, which distances in mm depend on.

    Raises:
        InputError: the affine is sheared.
    """
    axes = grid[1][:3, :3] / np.linalg.norm(grid[1][:3, :3], axis=0)
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > _LARGEST_SHEAR:
        angle = math.degrees(math.acos(min(cosine, 1.0)))
        raise InputError(
            f"{path}: its affine is sheared, two axes meet at {angle:.3g} degrees; expected 90"
        )


def write_volume(
    array: NDArray[Any] | Tensor,
    affine: NDArray[Any] | Tensor,
    path: Path,
    header: Header | None = None,
    scale: float = 1.0,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a volume as NIfTI atomically.

    Args:
        array: ``(D, H, W)``, or ``(D, H, W, C)`` with the channel last. Booleans are written as
            uint8, 64-bit integers as the smallest type that holds them, floats as float32.
        affine: ``(4, 4)`` from voxels to mm.
        path: ends in ``.nii`` or ``.nii.gz``; its folder is created, an existing file replaced.
        header: header of a file on the same grid; its qform and sform, their codes and units are
            copied instead of the affine, since readers differ in which they prefer.
        scale: factor that readers apply to the values.
        note: plain data that is kept in the file as JSON, in a header extension of the kind
            "comment"; :func:`read_note` returns it.

    Raises:
        InputError: another suffix or rank, or the file cannot be written, for example because the
            disk is full.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: unknown suffix; expected .nii or .nii.gz")
    data = _storable(torch.as_tensor(array).detach().cpu().numpy())
    matrix = torch.as_tensor(affine).detach().cpu().numpy().astype(np.float64)
    if data.ndim not in (3, 4):
        raise InputError(f"{path}: array of shape {data.shape}; expected (D, H, W) or (D, H, W, C)")
    # Without an affine of its own the image has what its header says.
    image = nib.Nifti1Image(data, matrix if header is None else None)
    if header is None:
        image.header.set_xyzt_units("mm")
        image.set_sform(matrix, code=1)
        # A quaternion cannot represent shear, and readers that prefer it must not see another grid.
        image.set_qform(matrix, code=1)
        if not np.allclose(image.get_qform(), matrix, atol=1e-4):
            image.set_qform(None, code=0)
    else:
        for name in _GEOMETRY_FIELDS:
            image.header[name] = header[name]
        image.header["pixdim"][:4] = header["pixdim"][:4]

    if scale != 1:
        image.header.set_slope_inter(scale, 0)
    if note is not None:
        text = json.dumps(note).encode("ascii")
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))

    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def write_probabilities(
    channels: NDArray[np.floating],
    affine: NDArray[Any],
    path: Path,
    header: Header | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write probabilities as uint8, an eighth of float32's time and size, with their scale.

    Readers apply the scale, and get [0, 1] in steps of 1/255. A probability is at least 0.5 before
    if and only if it is after.

    Args:
        channels: ``(C, D, H, W)`` in [0, 1]; written with the channel last, or without for C = 1.
        affine: see :func:`write_volume`.
        path: see :func:`write_volume`.
        header: see :func:`write_volume`.
        note: see :func:`write_volume`.
    """
    levels = np.empty(channels.shape, np.uint8)
    for channel, values in zip(levels, channels, strict=True):
        np.rint(values * 255, out=channel, casting="unsafe")
    data = levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, 3)
    # The float32 below 1/255: 255 times the one above is more than 1.
    scale = float(np.nextafter(np.float32(1 / 255), np.float32(0)))
    write_volume(data, affine, path, header, scale, note)


def read_note(path: str | Path) -> dict[str, Any]:
    """The note of a file of :func:`write_volume`; empty if there is none that reads."""
    path = Path(path)
    with suppress(Exception):  # of many types, depending on the damage
        # Not by nibabel.load, see open_volume.
        header = _read_header(path)
        _check_claims(path, header)
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
            block = stream.read(int(header["vox_offset"]))[header.sizeof_hdr + 4 :]
        swapped = header.endianness != native_code
        for extension in Nifti1Extensions.from_fileobj(io.BytesIO(block), len(block), swapped):
            with suppress(ValueError):
                note = json.loads(extension.get_content().rstrip(b"\0"))
                if isinstance(note, dict) and _depth(note) <= _DEEPEST_NOTE:
                    return note
    return {}


def _depth(data: Any) -> int:
    """How many mappings and lists of plain data are inside each other."""
    if not isinstance(data, (dict, list)):
        return 0
    return 1 + max(map(_depth, data.values() if isinstance(data, dict) else data), default=0)


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
