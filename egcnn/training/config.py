"""Hyperparameters of a training run, and their choice for a dataset."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from egcnn.checks import (
    DEFAULT_OVERLAP,
    check_overlap,
    check_precision,
    check_range,
    check_temperature,
)
from egcnn.data.case import Dataset
from egcnn.data.inspection import check_headers
from egcnn.data.layouts import LAYOUTS
from egcnn.data.transforms import AugmentationSettings, PreprocessingSettings, prepared_shape
from egcnn.errors import InputError
from egcnn.inference import choose_device, default_precision
from egcnn.losses import LossSettings
from egcnn.nn.network import NetworkSettings
from egcnn.settings import Settings

#: Named sets of settings. ``"paper"`` follows Eqs. 1, 2, 5 and 6 literally (Eq. 6 up to its scale,
#: see ``loss.edge.reduction``), without the paper's additions in the text.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "network.edge_stream.activation": "relu_sigmoid",
        "network.edge_stream.residual": "none",
        "network.edge_stream.head": "linear",
        "loss.edge.weight_negatives": True,
    },
}
# The largest values are beyond all use, and a mistyped one would take all memory or never end.
_RANGES = {
    **{"epochs": (1, 10**6), "batch_size": (1, 10**5), "devices": (1, 10**4), "nodes": (1, 10**4)},
    **{"accumulate": (1, 10**5), "workers": (0, 1000), "keep": (1, 10**6)},
    **{"seed": (0, 2**63 - 1), "split_seed": (0, 2**63 - 1), "fold": (0, 10**6)},
}
#: Settings that may change when a run is resumed: they change its results by rounding alone.
MACHINE = (
    *("precision", "devices", "nodes", "accumulate", "activation_checkpointing", "compile"),
    *("checkpoint_minutes", "workers", "keep"),
)
# Volumes up to this size, such as a hippocampus, train whole in a batch of several.
_SMALL = 64


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """All hyperparameters of a run; :func:`plan` chooses them for a dataset.

    Args:
        preprocessing: the preprocessing, the same in every epoch.
        network: the network.
        augmentation: the random augmentation of the patches.
        loss: the loss.
        epochs: number of passes over the training cases, Ne of Eq. 9.
        batch_size: patches per step, over all devices.
        lr: Adam's initial learning rate, alpha_0 of Eq. 9.
        lr_power: the exponent of Eq. 9; 0 keeps the rate constant.
        tau_end: temperature of Eq. 8 in the last epoch, decayed exponentially from
            ``loss.consistency.tau`` in the first; None keeps it constant.
        overlap: overlap of neighbouring windows in validation, as a fraction of their size.
        fraction: expected fraction of the labelled cases that is held out.
        fold: number of the fold that is held out, of five or of the dataset's own, from 0; None
            holds out ``fraction``.
        split_seed: seed of the split; see :func:`egcnn.data.split`.
        seed: seed of the initial weights, the case order, the augmentation and the noise.
        precision: one of :data:`egcnn.checks.PRECISIONS`.
        devices: number of devices of a machine; each takes an equal share of the batch.
        nodes: number of machines.
        accumulate: parts in which a device takes its share of the batch, one after the other; the
            gradients of all make one step.
        clip_gradients: largest norm of all gradients together; longer ones are scaled to it. None
            leaves them as they are.
        activation_checkpointing: compute the activations anew in backward instead of keeping them,
            which takes less memory and more time.
        compile: compile the network with ``torch.compile``.
        checkpoint_minutes: minutes after which a checkpoint is written within an epoch; None writes
            them at the ends of epochs only.
        workers: processes per device that read and augment; 0 uses the main process.
        keep: number of last checkpoints to keep: ``last.ckpt``, ``last-1.ckpt``, ...

    Raises:
        InputError: an invalid value.
    """

    preprocessing: PreprocessingSettings
    network: NetworkSettings = field(default_factory=NetworkSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    epochs: int = 300
    batch_size: int = 8
    lr: float = 1e-4
    lr_power: float = 0.9
    tau_end: float | None = None
    overlap: float = DEFAULT_OVERLAP
    fraction: float = 0.2
    fold: int | None = None
    split_seed: int = 0
    seed: int = 0
    precision: str = "32-true"
    devices: int = 1
    nodes: int = 1
    accumulate: int = 1
    clip_gradients: float | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float | None = 15.0
    workers: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (least, most) in _RANGES.items():
            if (value := getattr(self, name)) is not None:
                check_range(name, value, least, most)
        if not self.lr > 0:
            raise InputError(f"lr: {self.lr}; expected a positive number")
        check_overlap(self.overlap)
        for name in ("clip_gradients", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}: {value}; expected a positive number, or null for none")
        devices = self.devices * self.nodes
        if self.batch_size % (devices * self.accumulate):
            parts = f", each in {self.accumulate} parts" if self.accumulate > 1 else ""
            raise InputError(
                f"batch_size: {self.batch_size} does not divide among {devices} devices{parts}; "
                "expected a multiple"
            )
        if self.tau_end is not None:
            check_temperature("tau_end", self.tau_end)
        check_precision(self.precision)

    def temperature(self, epoch: int) -> float:
        """The temperature of Eq. 8 in an epoch, counted from 0."""
        tau = self.loss.consistency.tau
        if self.tau_end is None or self.epochs == 1:
            return tau
        return tau * (self.tau_end / tau) ** (epoch / (self.epochs - 1))

    def preset(self, name: str) -> TrainingConfig:
        """Return a copy with the settings of the preset ``name``.

        Raises:
            InputError: no such preset.
        """
        if name not in PRESETS:
            raise InputError(f"preset: {name!r}; expected one of {', '.join(PRESETS)}")
        return self.change(PRESETS[name])


def plan(dataset: Dataset, device: torch.device | None = None) -> TrainingConfig:
    """Choose hyperparameters for a dataset and a device.

    Volumes of more than 64 voxels along an axis get the paper's settings (section 3.2), patches no
    larger than the median volume. Smaller ones are taken whole, by a small network at a higher
    rate. Of a dataset with labels, only labelled cases count, which are trained on.

    Raises:
        InputError: as :func:`egcnn.data.inspection.check_headers`.
    """
    device = device or choose_device()
    cases = [case for case in dataset.cases if case.label is not None] or dataset.cases
    check_headers(dataset, cases)
    shape = np.median([prepared_shape(case, dataset.spacing) for case in cases], axis=0)
    network = NetworkSettings()
    patch = [math.ceil(size / network.stride) * network.stride for size in shape]
    small = max(shape) <= _SMALL
    if not small:
        largest = LAYOUTS[dataset.layout].largest_patch
        patch = [min(size, most) for size, most in zip(patch, largest, strict=True)]
    config = TrainingConfig(
        PreprocessingSettings(
            (patch[0], patch[1], patch[2]), dataset.spacing, dataset.normalization
        ),
        network,
        # Exclusive classes may differ only in position, so their axes are not flipped, except left
        # and right, which are nearly symmetric in most data.
        AugmentationSettings(flip_axes=(0,) if dataset.regions.exclusive else (0, 1, 2)),
        precision=default_precision(device),
        workers=min(8, os.cpu_count() or 1) if device.type == "cuda" else 0,
    )
    if not small:
        return config
    # While a small structure has low probability everywhere, background voxels dominate the
    # denominator of Eq. 4, and Adam first learns to lower the structure's logit until argmax never
    # picks it. At a learning rate of 2e-3 and above, or in patches with a wide margin, its Dice
    # then stays at exactly 0 for epochs; tight patches and many small steps at 1e-3 avoid that.
    return config.change({"network.backbone.filters": 8, "lr": 1e-3, "epochs": 30, "batch_size": 4})
