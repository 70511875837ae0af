"""Cases, datasets and layouts, and reading a case's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from torch import Tensor

from egcnn.data.nifti import Grid, check_grid, grid_of, open_volume, read_array
from egcnn.errors import InputError
from egcnn.regions import Regions

T = TypeVar("T")
Spacing = tuple[float, float, float]
Normalization = Literal["zscore", "ct"]


@dataclass(frozen=True)
class Case:
    """The files of one case.

    Args:
        name: unique within its dataset.
        images: one 3D file per modality, or one 4D file that holds all with the channel last.
        label: the label map, or None without one.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The images and, if there is one, the label."""
        return (*self.images, *(() if self.label is None else (self.label,)))

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine of the first image, read once from its header.

        Raises:
            InputError: the file is not a NIfTI volume.
        """
        return grid_of(open_volume(self.images[0]))


@dataclass(frozen=True)
class Dataset:
    """A dataset: cases that share modalities and regions.

    Args:
        layout: name of the layout on disk, a key of ``egcnn.data.LAYOUTS``.
        root: folder of the dataset.
        cases: labelled and unlabelled cases.
        modalities: a name per image channel.
        regions: what the values of the label maps mean.
        spacing: voxel size in mm at which networks are trained; 1 mm isotropic is the paper's
            (section 3.2), None keeps each case as it is.
        problems: by name, what is wrong with the cases that could not be listed.
    """

    layout: str
    root: Path
    cases: tuple[Case, ...]
    modalities: tuple[str, ...]
    regions: Regions
    spacing: Spacing | None = (1.0, 1.0, 1.0)
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def normalization(self) -> Normalization:
        """``"ct"`` if every modality is CT, whose intensities are absolute; else ``"zscore"``."""
        return "ct" if all(name.strip().upper() == "CT" for name in self.modalities) else "zscore"


@dataclass(frozen=True)
class Layout:
    """A layout of datasets on disk.

    Args:
        looks_for: what marks this layout, for the message if no layout matches.
        matches: whether a folder is a dataset of this layout.
        find: lists the cases of such a folder, and the problems of those that it cannot list; the
            dataset's ``layout`` is this layout's name.
        read_case: returns the case in a folder that holds a single one, or None for any other
            folder; None if the layout has no such folders.
        largest_patch: upper limit ``(D, H, W)`` of the training patch in voxels.
        colours: colours of regions in pictures, by name; other regions take those of a palette.
        shown: name of the modality that pictures show; by default the first.
    """

    looks_for: str
    matches: Callable[[Path], bool]
    find: Callable[[Path], Dataset]
    read_case: Callable[[Path], Case | None] = lambda folder: None
    largest_patch: tuple[int, int, int] = (176, 176, 176)
    colours: Mapping[str, str] = field(default_factory=dict)
    shown: str | None = None


def collect(
    places: Iterable[tuple[str, T]], read_case: Callable[[T], Case]
) -> tuple[tuple[Case, ...], dict[str, str]]:
    """List the cases of a dataset, and by name the problems of those that cannot be listed.

    Args:
        places: the cases' names and where they are.
        read_case: returns the case at a place, or raises InputError.
    """
    cases, problems = [], {}
    for name, place in places:
        try:
            cases.append(read_case(place))
        except InputError as error:
            problems[name] = str(error)
    return tuple(cases), problems


def check_problems(root: Path, problems: Sequence[str]) -> None:
    """Raise InputError if there are problems in the dataset at ``root``: the first, and how many.

    Raises:
        InputError: there are.
    """
    if problems:
        more = f" ({len(problems) - 1} more: egcnn inspect {root})" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)


def read_image(case: Case | Path | Sequence[Path], modalities: int | None = None) -> MetaTensor:
    """Read all modalities of a case.

    Args:
        case: a case, its image files in the order of the modalities, or one file.
        modalities: expected number of channels; None accepts any.

    Returns:
        ``(M, D, H, W)`` float32 with the affine of the first file, in mm, and its header as
        ``meta["header"]``. D, H, W are the axes of the array on disk, in the order stored.

    Raises:
        InputError: a file is missing, truncated or not NIfTI; is not 3D (4D with the channel last);
            holds NaN or infinity; has the same value in all non-zero voxels; is on another grid
            than the first; or the number of channels is not the expected one.
    """
    if isinstance(case, Case):
        paths = case.images
    else:
        paths = (case,) if isinstance(case, Path) else tuple(case)
    if not paths:
        raise InputError("images: no file given; expected at least one")
    channels: list[NDArray[np.float32]] = []
    first = open_volume(paths[0])
    grid = grid_of(first)
    for path in paths:
        image = first if path is paths[0] else open_volume(path)
        check_grid(path, image, paths[0], grid)
        channels.extend(_read_channels(path, image))
    if modalities is not None and len(channels) != modalities:
        raise InputError(
            f"{', '.join(map(str, paths))}: {len(channels)} channels; "
            f"expected {modalities}, one per modality (a case's files joined by commas, or one 4D)"
        )
    data = channels[0][None] if len(channels) == 1 else np.stack(channels)
    image = _on_grid(torch.from_numpy(data), grid, paths[0])
    image.meta["header"] = first.header
    return image


def read_label(case: Case, regions: Regions, path: Path | None = None) -> MetaTensor:
    """Read the label map of a case.

    Args:
        case: a case that has a label, unless ``path`` is given.
        regions: define the allowed values.
        path: another label map of the case, such as a prediction.

    Returns:
        ``(1, D, H, W)`` on the grid of the case's image, uint8, or int16 if a value of ``regions``
        needs it.

    Raises:
        InputError: there is no label; the file is missing, truncated or not NIfTI; its shape or
            affine differs from the image's; or it holds a value that is not in ``regions``.
    """
    path = case.label if path is None else path
    if path is None:
        raise InputError(f"{case.name}: no label file; expected a labelled case")
    if not case.images:
        raise InputError(f"{case.name}: no image file; expected at least one")
    label = open_volume(path)
    check_grid(path, label, case.images[0], case.grid)
    array = read_array(path, label)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise InputError(f"{path}: label of shape {array.shape}; expected three axes")
    if array.dtype.kind == "f":
        # A scaled header can give 0.99999998 for 1, which is a rounding error and not another
        # class.
        whole = np.rint(array)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is rejected below
            fractional = ~(np.abs(array - whole) < 1e-3)
        if fractional.any():
            raise InputError(
                f"{path}: {np.count_nonzero(fractional)} label voxels are no whole number, such as "
                f"{float(array[fractional][0]):g}; expected one of {_listed(regions.values)}"
            )
        array = whole
    foreign = ~np.isin(array, regions.values)
    if foreign.any():
        values = np.unique(array[foreign])
        raise InputError(
            f"{path}: label {'values' if len(values) > 1 else 'value'} {_listed(values)} in "
            f"{np.count_nonzero(foreign)} voxels; expected only {_listed(regions.values)}"
        )
    data = np.ascontiguousarray(array, dtype=label_dtype(regions))
    # The image's own affine, so that both are resampled to the same grid.
    return _on_grid(torch.from_numpy(data)[None], case.grid, path)


def read_edges(case: Case, path: Path, regions: Regions) -> Tensor:
    """Read a case's predicted edge probabilities.

    Args:
        case: the case that they belong to.
        path: NIfTI, ``(D, H, W, F)`` with one channel per reported region, or ``(D, H, W)`` for
            the edges of any region.
        regions: define the reported regions.

    Returns:
        ``(F, D, H, W)`` or ``(1, D, H, W)`` float32.

    Raises:
        InputError: the file is missing, truncated or not NIfTI; is on another grid than the case's
            image; has the wrong number of channels; or holds values outside [0, 1].
    """
    edges = open_volume(path)
    check_grid(path, edges, case.images[0], case.grid)
    array = read_array(path, edges).astype(np.float32, copy=False)
    channels = array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)
    count = len(regions.foreground)
    if array.ndim > 4 or len(channels) not in (1, count):
        raise InputError(
            f"{path}: shape {array.shape}; expected three axes, or {count} channels as a fourth, "
            "one per region"
        )
    bad = channels.size - np.count_nonzero((channels >= 0) & (channels <= 1))
    if bad:
        raise InputError(
            f"{path}: {bad} of {channels.size} voxels are outside [0, 1]; expected probabilities"
        )
    return torch.from_numpy(np.ascontiguousarray(channels))


def label_dtype(regions: Regions) -> type[np.uint8] | type[np.int16]:
    """The dtype of label maps in memory: uint8 if it holds every value, else int16."""
    return np.uint8 if max(regions.values) <= 255 else np.int16


def _read_channels(path: Path, image: Nifti1Image) -> list[NDArray[np.float32]]:
    """The channels of one file, each ``(D, H, W)``, checked."""
    if len(image.shape) > 4:
        raise InputError(
            f"{path}: image of shape {image.shape}; expected three axes, or channels as a fourth"
        )
    with np.errstate(over="ignore"):  # beyond float32 is inf, which is rejected below
        array = read_array(path, image).astype(np.float32, copy=False)
    channels = [array] if array.ndim == 3 else list(np.moveaxis(array, 3, 0))
    for index, channel in enumerate(channels):
        where = f"{path}" if len(channels) == 1 else f"{path} (channel {index})"
        bad = channel.size - np.count_nonzero(np.isfinite(channel))
        if bad:
            raise InputError(
                f"{where}: {bad} of {channel.size} voxels are NaN or infinite; "
                "expected finite values"
            )
        inside = channel[channel != 0]
        if inside.size == 0:
            raise InputError(f"{where}: every voxel is 0; expected an image that varies")
        if inside.min() == inside.max():
            raise InputError(
                f"{where}: all of its {inside.size} non-zero voxels are {inside[0]:g} "
                "(zero deviation); expected an image that varies"
            )
    return channels


def _on_grid(data: Tensor, grid: Grid, path: Path) -> MetaTensor:
    # A copy of the affine, since transforms may change it in place.
    matrix = torch.from_numpy(grid[1].copy())
    return MetaTensor(data, affine=matrix, meta={"filename_or_obj": str(path)})


def _listed(values: Sequence[int] | NDArray[Any]) -> str:
    shown = [f"{value:g}" for value in values[:8]]
    return ", ".join(shown) + (", ..." if len(values) > 8 else "")
