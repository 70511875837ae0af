"""What a training run is told: every hyperparameter, and how they are chosen for a dataset."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import nibabel as nib
import numpy as np
import torch

from egcnn.data.case import Case, Dataset, Normalization, Spacing, open_volume
from egcnn.errors import InputError
from egcnn.inference import STRIDE, check_precision, choose_device, default_precision
from egcnn.losses import Reduction, Support
from egcnn.nn.edge_stream import Gate, GateActivation, Residual, Seed, Upsampling
from egcnn.nn.egcnn import EdgeHead

#: Settings by name. ``"paper"`` is Eqs. 1, 2, 5 and 6 to the letter (Eq. 6 up to its scale, see
#: ``edge_reduction``), without what the paper's text adds to them.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "gate_activation": "relu_sigmoid",
        "residual": "none",
        "edge_weight": 1.0,
        "lambda2": 0.5,
        "weight_negatives": True,
    },
}


@dataclass(frozen=True)
class TrainingConfig:
    """Every hyperparameter of a run; :func:`plan` chooses them for a dataset.

    Args:
        backbone: encoder-decoder, one of ``egcnn.nn.BACKBONES``.
        edge: with the edge stream.
        filters: channels at full resolution.
        dropout: drop-out probability after the first convolution.
        gate: ``"channel"`` or ``"voxel"`` (Eq. 2).
        gate_activation: ``"relu_sigmoid"`` (Eq. 1) or ``"sigmoid"``.
        edge_channels: width of the edge stream; see ``egcnn.nn.EdgeStream``.
        residual: see ``egcnn.nn.EdgeStream``.
        upsampling: see ``egcnn.nn.EdgeStream``.
        edge_seed: ``seed`` of ``egcnn.nn.EdgeStream``.
        edge_head: ``"region"`` or ``"union"``, see ``egcnn.nn.EGCNN``.
        patch: voxels ``(D, H, W)`` of a training patch, in RAS axes.
        spacing: voxel size in mm that volumes are resampled to; ``None`` keeps each one's own.
        normalization: ``"zscore"`` or ``"ct"``.
        flip_axes: axes (0 left-right, 1 back-front, 2 down-up) mirrored with probability 1/2.
        intensity_shift: largest random offset, in standard deviations.
        intensity_scale: largest random relative change of contrast.
        foreground: share of patches that are centred so that they hold foreground.
        epochs: number of passes over the training cases, Ne of Eq. 9.
        batch_size: patches per step, over all devices.
        lr: Adam's initial learning rate, alpha_0 of Eq. 9.
        lr_power: the exponent of Eq. 9; 0 keeps the rate constant.
        semantic: weight of the Dice loss (Eq. 4).
        consistency: weight of the consistency loss (Eq. 7); None is 1 with the edge stream and 0
            without.
        edge_weight: weight of the edge loss (Eq. 5).
        include_background: count the background of exclusive classes in the Dice loss.
        lambda1: weight of Dice within the edge loss (Eq. 5).
        lambda2: weight of the balanced cross entropy within the edge loss (Eq. 5).
        edge_reduction: ``"balanced"``, ``"sum"`` or ``"mean"``, see ``egcnn.losses.EdgeLoss``.
        weight_negatives: see ``egcnn.losses.EdgeLoss``.
        edge_threshold: Sobel magnitude above which a voxel is an edge of the edge loss.
        tau: temperature of the Gumbel softmax (Eq. 8).
        tau_end: temperature in the last epoch, reached by equal factors from ``tau`` in the first;
            None keeps it constant.
        hard: straight-through estimate in the consistency loss.
        support: ``"gt"`` or ``"both"``, where the consistency loss counts.
        overlap: of neighbouring windows in validation.
        fraction: share of the labelled cases that is held out.
        split_seed: another one holds out other cases.
        seed: of the initial weights, the order, the augmentation and the noise.
        precision: Lightning's name, ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        devices: number of devices; each takes an equal share of the batch.
        workers: processes that read and augment, per device; 0 does it in between.
    """

    patch: tuple[int, int, int]
    backbone: str = "segnet"
    edge: bool = True
    filters: int = 32
    dropout: float = 0.0
    gate: Gate = "channel"
    gate_activation: GateActivation = "sigmoid"
    edge_channels: int | None = None
    residual: Residual = "block"
    upsampling: Upsampling = "trilinear"
    edge_seed: Seed = "decoder"
    edge_head: EdgeHead = "region"
    spacing: Spacing | None = (1.0, 1.0, 1.0)
    normalization: Normalization = "zscore"
    flip_axes: tuple[int, ...] = (0, 1, 2)
    intensity_shift: float = 0.1
    intensity_scale: float = 0.1
    foreground: float = 0.0
    epochs: int = 300
    batch_size: int = 8
    lr: float = 1e-4
    lr_power: float = 0.9
    semantic: float = 1.0
    consistency: float | None = None
    edge_weight: float = 0.5
    include_background: bool = True
    lambda1: float = 1.0
    lambda2: float = 2.0
    edge_reduction: Reduction = "balanced"
    weight_negatives: bool = False
    edge_threshold: float = 0.0
    tau: float = 0.5
    tau_end: float | None = None
    hard: bool = True
    support: Support = "gt"
    overlap: float = 0.5
    fraction: float = 0.2
    split_seed: int = 0
    seed: int = 0
    precision: str = "32-true"
    devices: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "devices", "filters"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; wanted at least 1")
        for name in ("seed", "split_seed", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)}; wanted at least 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr: {self.lr}; wanted a positive number")
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap: {self.overlap}; wanted a number from 0 to below 1")
        if self.batch_size % self.devices:
            raise InputError(
                f"batch_size: {self.batch_size} does not divide among {self.devices} devices; "
                "wanted a multiple"
            )
        for name in ("tau", "tau_end"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}: {value}; wanted a temperature above 0")
        check_precision(self.precision)

    @property
    def consistency_weight(self) -> float:
        """Weight of the consistency loss."""
        return float(self.edge) if self.consistency is None else self.consistency

    def temperature(self, epoch: int) -> float:
        """The Gumbel softmax's in an epoch, counted from 0."""
        if self.tau_end is None or self.epochs == 1:
            return self.tau
        return self.tau * (self.tau_end / self.tau) ** (epoch / (self.epochs - 1))

    def preset(self, name: str) -> TrainingConfig:
        """This configuration with the settings of :data:`PRESETS` under ``name``.

        Raises:
            InputError: no such preset.
        """
        if name not in PRESETS:
            raise InputError(f"preset: {name!r}; expected one of {', '.join(PRESETS)}")
        return replace(self, **PRESETS[name])

    def parse(self, settings: Sequence[str]) -> TrainingConfig:
        """This configuration with entries changed by ``NAME=VALUE`` texts, values as in JSON.

        Raises:
            InputError: no such entry, or a value of another kind than the entry's.
        """
        changes: dict[str, Any] = {}
        for text in settings:
            name, _, value = (part.strip() for part in text.partition("="))
            known = {item.name: str(item.type) for item in fields(self)}
            if name not in known:
                raise InputError(
                    f"{text}: there is no entry {name!r}; wanted one of {', '.join(sorted(known))}"
                )
            try:
                changes[name] = _read(value, known[name])
            except ValueError:
                kind = known[name].split(" | ")[0]
                raise InputError(f"{text}: {value!r}; wanted {kind}") from None
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the inverse of :meth:`from_dict`."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Read what :meth:`to_dict` wrote; entries of later versions are an error."""
        unknown = set(data) - {item.name for item in fields(cls)}
        if unknown:
            raise InputError(f"config: unknown entries {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)


def _read(text: str, kind: str) -> Any:
    """A value as the annotation of a field wants it."""
    if "None" in kind and text == "null":
        return None
    if kind.startswith("bool"):
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    if kind.startswith("int"):
        return int(text)
    if kind.startswith("float"):
        return float(text)
    if kind.startswith(("tuple", "Spacing")):
        number = float if kind.startswith("Spacing") else int
        return tuple(number(part) for part in text.strip("[]()").split(",") if part.strip())
    return text


def plan(dataset: Dataset, device: torch.device | None = None) -> TrainingConfig:
    """Hyperparameters for a dataset, and for where it will be trained.

    Volumes larger than 64 voxels get the paper's settings (section 3.2), patches no larger than
    the median volume. Smaller ones are taken whole, by a small network at a higher rate.
    """
    device = device or choose_device()
    shape = np.median([prepared_shape(case, dataset.spacing) for case in dataset.cases], axis=0)
    whole = tuple(math.ceil(size / STRIDE) * STRIDE for size in shape)
    nested = dataset.regions.activation == "sigmoid"
    here = TrainingConfig(
        patch=(whole[0], whole[1], whole[2]),
        spacing=dataset.spacing,
        normalization=dataset.normalization,
        # Organs that are named one by one may differ only by where they lie; left and right of
        # the body are the direction that most data hold both ways.
        flip_axes=(0, 1, 2) if nested else (0,),
        precision=default_precision(device),
        workers=min(8, os.cpu_count() or 1) if device.type == "cuda" else 0,
    )
    if max(shape) <= 64:
        # While a small structure is faint everywhere, the denominator of Eq. 4 is the background's
        # share: what Adam learns first is to lower the structure's logit, and argmax never picks
        # it. At a rate of 2e-3 and above, or in patches with a wide margin, its Dice stays at
        # exactly 0 for epochs; tight patches and many small steps at 1e-3 leave that at once.
        return replace(here, filters=8, lr=1e-3, epochs=30, batch_size=4)
    largest = (160, 192, 128) if dataset.layout == "brats" else (176, 176, 176)
    return replace(
        here,
        patch=(min(whole[0], largest[0]), min(whole[1], largest[1]), min(whole[2], largest[2])),
    )


def prepared_shape(case: Case, spacing: Spacing | None) -> tuple[int, int, int]:
    """The shape ``(D, H, W)`` of a case after preprocessing, read from its header alone.

    Raises:
        InputError: the file is not a NIfTI volume.
    """
    volume = open_volume(case.images[0])
    shape, affine = volume.shape[:3], volume.affine
    order = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
    size = nib.affines.voxel_sizes(affine)[order]
    turned = [shape[axis] for axis in order]
    if spacing is not None:
        turned = [max(1, round(n * s / t)) for n, s, t in zip(turned, size, spacing, strict=True)]
    return turned[0], turned[1], turned[2]
