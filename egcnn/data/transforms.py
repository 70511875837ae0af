"""Transforms from a case to tensors: reading, cacheable preprocessing, random augmentation.

All work on dictionaries with the keys ``"image"`` ``(M, D, H, W)`` and ``"label"``
``(1, D, H, W)``; the label may be absent.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    EnsureTyped,
    MapTransform,
    Orientationd,
    RandFlipd,
    Randomizable,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    SpatialPadd,
    Transform,
)
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from torch import Tensor

from egcnn.checks import check_memory, check_range, check_spacing
from egcnn.data.case import Case, Normalization, Spacing, label_dtype, read_image, read_label
from egcnn.data.resampling import resample, resample_labels, resampling_bytes, respaced
from egcnn.errors import InputError
from egcnn.regions import Regions
from egcnn.settings import Settings

_KEYS = ("image", "label")
#: Hounsfield units beyond this, either way, are clipped.
HOUNSFIELD_LIMIT = 1000.0
#: The most voxels along an axis of a NIfTI-1 file.
LARGEST_AXIS = 32767
#: MONAI's labels of both ends of each axis.
RAS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class PreprocessingSettings(Settings):
    """Preprocessing that training and prediction share; stored with a trained network.

    Args:
        patch: size ``(D, H, W)`` in voxels of the training patch and the prediction window, RAS
            axes.
        spacing: voxel size in mm along the RAS axes to which volumes are resampled; None keeps each
            volume's own.
        normalization: ``"zscore"``, per modality over its non-zero voxels, or ``"ct"``, Hounsfield
            units / 1000 clipped to [-1, 1] (section 3.2).

    Raises:
        InputError: a patch that is not three sizes from 1 to :data:`LARGEST_AXIS`, a spacing that
            is not three positive numbers, or an unknown normalisation.
    """

    patch: tuple[int, int, int]
    spacing: Spacing | None = (1.0, 1.0, 1.0)
    normalization: Normalization = "zscore"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("patch", self.patch, 1, LARGEST_AXIS)
        if self.spacing is not None:
            check_spacing(self.spacing)


@dataclass(frozen=True)
class AugmentationSettings(Settings):
    """Random augmentation of the training patches.

    Args:
        flip_axes: spatial axes (0 left-right, 1 back-front, 2 down-up) that are mirrored with
            probability 1/2. Do not mirror an axis whose direction distinguishes structures, such as
            front and back.
        intensity_shift: offsets are uniform within plus or minus this, in normalised intensities.
        intensity_scale: factors are uniform within 1 plus or minus this.
        foreground: probability that a patch is required to contain a foreground voxel.

    Raises:
        InputError: an axis other than 0, 1, 2, a negative range, or a probability outside [0, 1].
    """

    flip_axes: tuple[int, ...] = (0, 1, 2)
    intensity_shift: float = 0.1
    intensity_scale: float = 0.1
    foreground: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise InputError(f"flip_axes: {self.flip_axes}; expected some of 0, 1, 2")
        if self.intensity_shift < 0 or self.intensity_scale < 0:
            raise InputError(
                f"intensity_shift, intensity_scale: {self.intensity_shift}, "
                f"{self.intensity_scale}; expected no negative range"
            )
        if not 0 <= self.foreground <= 1:
            raise InputError(f"foreground: {self.foreground}; expected a probability")


class ReadCase(Transform):
    """Read a :class:`~egcnn.data.case.Case` into ``{"image", "label", "name"}``.

    Args:
        regions: allowed label values; None reads no label.
        modalities: expected number of image channels; None accepts any.

    Raises:
        InputError: as ``read_image`` and ``read_label``. Within a MONAI ``Compose`` it is the
            cause of the ``RuntimeError`` that ends the chain.
    """

    def __init__(self, regions: Regions | None, modalities: int | None = None) -> None:
        self.regions = regions
        self.modalities = modalities

    def __call__(self, case: Case) -> dict[str, Any]:
        """Read the files; a case without a label has no ``"label"``."""
        item: dict[str, Any] = {"image": read_image(case, self.modalities), "name": case.name}
        if self.regions is not None and case.label is not None:
            item["label"] = read_label(case, self.regions)
        return item


class ZScored(MapTransform):
    """Normalise each channel to zero mean and unit deviation over non-zero voxels; zeros stay.

    As for BraTS in the paper (section 3.2). It writes to a new tensor; MONAI's
    ``NormalizeIntensityd`` would modify the caller's.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the volumes under the keys."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            scored = torch.stack([_zscored(channel) for channel in plain])
            is_meta = isinstance(image, MetaTensor)
            d[key] = MetaTensor(scored).copy_meta_from(image) if is_meta else scored
        return d


class RandCropNearForegroundd(Randomizable, MapTransform):
    """Crop a random patch that, with a given probability, contains a random foreground voxel.

    Otherwise every position is equally likely. MONAI's ``RandCropByPosNegLabeld`` lists the index
    of every background voxel for every patch, which costs more than the rest of the augmentation.

    Args:
        keys: volumes to crop, all of one size and at least as large as the patch.
        label_key: label map whose non-zero voxels are the foreground.
        size: the patch ``(D, H, W)``.
        foreground: probability between 0 and 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        size: tuple[int, int, int],
        foreground: float,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.label_key = label_key
        self.size = size
        self.foreground = foreground

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop the volumes under all keys at the same position."""
        d = dict(data)
        shape = d[self.first_key(d)].shape[1:]
        first = np.zeros(3, dtype=np.int64)
        last = np.subtract(shape, self.size)
        if self.R.random() < self.foreground and self.label_key in d:
            label = d[self.label_key]
            inside = (label.as_tensor() if isinstance(label, MetaTensor) else label)[0].nonzero()
            if len(inside):
                voxel = inside[self.R.randint(len(inside))].numpy()
                first = np.maximum(first, voxel - self.size + 1)
                last = np.minimum(last, voxel)
        start = [int(self.R.randint(low, high + 1)) for low, high in zip(first, last, strict=True)]
        x, y, z = (slice(s, s + n) for s, n in zip(start, self.size, strict=True))
        for key in self.key_iterator(d):
            d[key] = d[key][:, x, y, z]
        return d


def preprocessing(settings: PreprocessingSettings, regions: Regions | None) -> Compose:
    """The deterministic preprocessing of training and prediction.

    Reorient to RAS; resample (:class:`Respaced`) unless the voxels already have that size;
    normalise.

    Args:
        settings: spacing and normalisation.
        regions: determine the label's integer type; None if labels are never read.

    Returns:
        A transform of dictionaries with MONAI ``MetaTensor``: image float32 with the affine of its
        new grid, label uint8 or int16.
    """
    steps: list[Any] = [
        EnsureTyped("image", dtype=torch.float32, track_meta=True),
        *respacing(settings.spacing, regions),
    ]
    if settings.normalization == "zscore":
        steps.append(ZScored("image"))
    else:
        limit = HOUNSFIELD_LIMIT
        steps.append(ScaleIntensityRanged("image", -limit, limit, -1.0, 1.0, clip=True))
    if regions is not None:
        steps.append(CastToTyped("label", dtype=label_dtype(regions), allow_missing_keys=True))
    return Compose(steps)


def respacing(spacing: Spacing | None, regions: Regions | None) -> list[Transform]:
    """The steps of :func:`preprocessing` that change the grid: to RAS axes and a voxel size.

    They take an image, a label map, or both.

    Args:
        spacing: voxel size in mm along the RAS axes; None keeps each volume's own.
        regions: see :class:`Respaced`.
    """
    turn = Orientationd(_KEYS, axcodes="RAS", labels=RAS, allow_missing_keys=True)
    return [turn, *([] if spacing is None else [Respaced(spacing, regions)])]


class Respaced(Transform):
    """Resample the image linearly, and the label by the largest share of a value.

    Args:
        spacing: voxel size in mm along the volumes' axes.
        regions: what a label map may hold; None if labels are never read.

    Raises:
        InputError: a resampled volume does not fit into memory.
    """

    def __init__(self, spacing: Spacing, regions: Regions | None) -> None:
        self.spacing = spacing
        self.regions = regions

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Resample the volumes, unless the voxels already have that size."""
        d = dict(data)
        first: MetaTensor = d["image"] if "image" in d else d["label"]
        affine = first.affine.numpy()
        size = "x".join(f"{number:g}" for number in self.spacing)
        # Of the size alone: beyond memory, a shape may be beyond int64 as well.
        about = _turned_shape(first.shape[1:], affine, self.spacing)
        check_memory(
            f"{first.meta.get('filename_or_obj', 'image')}: resampled to {size} mm, shape {about}",
            resampling_bytes(len(first), about),
        )
        shape, target = respaced(first.shape[1:], affine, self.spacing)
        if target is affine:
            return d
        matrix = np.linalg.solve(affine, target)
        new = {}
        if "image" in d:
            new["image"] = resample(d["image"].as_tensor(), matrix, shape)
        if self.regions is not None and "label" in d:
            label = d["label"].as_tensor()
            new["label"] = resample_labels(label, matrix, shape, self.regions.values)
        for key, volume in new.items():
            d[key] = MetaTensor(volume).copy_meta_from(d[key])
            d[key].affine = torch.from_numpy(target)
        return d


def prepared_shape(case: Case, spacing: Spacing | None) -> tuple[int, int, int]:
    """The shape ``(D, H, W)`` of a case after preprocessing, from its header alone.

    Raises:
        InputError: the file is not a NIfTI volume.
    """
    return _turned_shape(*case.grid, spacing)


def _turned_shape(
    shape: Sequence[int], affine: NDArray[np.float64], spacing: Spacing | None
) -> tuple[int, int, int]:
    """The shape ``(D, H, W)`` of a grid along the RAS axes, at another voxel size."""
    order = np.argsort(io_orientation(affine)[:, 0])
    size = voxel_sizes(affine)[order]
    turned = [shape[axis] for axis in order]
    if spacing is not None:
        sizes = (n * float(s) / t for n, s, t in zip(turned, size, spacing, strict=True))
        turned = [max(1, round(min(number, 2.0**60))) for number in sizes]
    return turned[0], turned[1], turned[2]


def augmentation(
    patch: tuple[int, int, int], settings: AugmentationSettings | None = None, **options: Any
) -> Compose:
    """Draw a random training patch from a preprocessed case.

    Pad smaller volumes with zeros on both sides, as sliding-window inference does; crop; flip each
    axis with probability 1/2; scale and shift each channel. ``set_random_state(seed)`` on the
    result makes the sequence of patches repeatable.

    Args:
        patch: size ``(D, H, W)``.
        settings: the augmentation.
        options: fields of :class:`AugmentationSettings` by keyword.

    Returns:
        A transform whose image (float32) and label (unchanged type) are plain tensors.

    Raises:
        InputError: invalid settings.
    """
    settings = AugmentationSettings.resolve(settings, options)
    missing: dict[str, Any] = {"allow_missing_keys": True}
    return Compose(
        [
            EnsureTyped(_KEYS, track_meta=False, **missing),
            SpatialPadd(_KEYS, spatial_size=patch, **missing),
            RandCropNearForegroundd(_KEYS, "label", patch, settings.foreground, **missing),
            *(
                RandFlipd(_KEYS, prob=0.5, spatial_axis=axis, **missing)
                for axis in settings.flip_axes
            ),
            RandScaleIntensityd(
                "image", factors=settings.intensity_scale, prob=1.0, channel_wise=True
            ),
            RandShiftIntensityd(
                "image", offsets=settings.intensity_shift, prob=1.0, channel_wise=True
            ),
            EnsureTyped(_KEYS, track_meta=False, **missing),
        ]
    )


def _zscored(channel: Tensor) -> Tensor:
    inside = channel != 0
    scored = torch.zeros_like(channel)
    # Sums over millions of voxels and differences of large numbers need more precision than
    # float32.
    values = channel[inside].double()
    if values.numel():
        deviation, mean = torch.std_mean(values, correction=0)
        scored[inside] = ((values - mean) / deviation.clamp_min(1e-12)).to(channel.dtype)
    return scored
