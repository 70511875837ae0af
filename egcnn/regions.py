"""The regions of a label map that a network's output channels stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from egcnn.errors import InputError, shown
from egcnn.ops._tensors import class_indices, equals, region_masks
from egcnn.typed import entry

Activation = Literal["softmax", "sigmoid"]

#: Label maps are written as int16.
LARGEST_LABEL = 32767


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Convert logits ``(B, R, D, H, W)`` to probabilities.

    Raises:
        InputError: an unknown activation.
    """
    check_activation("probabilities", activation)
    return logits.softmax(1) if activation == "softmax" else logits.sigmoid()


def check_activation(name: str, activation: str) -> None:
    """Raise InputError, which begins with ``name``, unless the activation is known."""
    if activation not in get_args(Activation):
        raise InputError(f"{name}: activation is {activation!r}; expected 'softmax' or 'sigmoid'")


@dataclass(frozen=True)
class Regions:
    """One region per output channel, each a set of label values.

    Args:
        names: a name per region.
        labels: the label values that make up each region.
        activation: ``"softmax"`` for exclusive classes, of which the first is the background and
            each holds one label value; ``"sigmoid"`` for nested or overlapping regions, where the
            background has no channel.
        ignore_index: label value of voxels that were not annotated: they belong to no region, and
            losses and scores leave them out. None if there are none.
        class_order: for sigmoid regions, the label value that each is written as, later ones over
            earlier ones (nnU-Net's ``regions_class_order``); None chooses, see :meth:`decode`.

    Raises:
        InputError: names and labels differ in number, two names are equal, a region is empty or
            has a value outside 0 to :data:`LARGEST_LABEL`, two softmax classes share a value, the
            activation is unknown, ``ignore_index`` is such a value or that of a region, or
            ``class_order`` is not a value for each region.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    activation: Activation
    ignore_index: int | None = None
    class_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_activation("regions", self.activation)
        if not self.names or len(self.names) != len(self.labels):
            raise InputError(
                f"regions: {len(self.names)} names for {len(self.labels)} sets of label values; "
                "expected one set per name, and at least one"
            )
        if len(set(self.names)) != len(self.names):
            raise InputError(f"regions: names {shown(self.names)}; expected every name once")
        for name, values in zip(self.names, self.labels, strict=True):
            if not values:
                raise InputError(
                    f"regions: {shown(name)} has no label value; expected at least one"
                )
            _check_values(name, values)
        if self.ignore_index is not None:
            _check_values("ignore_index", (self.ignore_index,))
            if self.ignore_index in set().union(*self.labels):
                raise InputError(
                    f"regions: ignore_index is {self.ignore_index}, a label value of a region; "
                    "expected one of its own"
                )
        if self.class_order is not None and (
            len(self.class_order) != len(self.names)
            or not set(self.class_order) <= set().union(*self.labels)
        ):
            raise InputError(
                f"regions: class_order is {self.class_order} for {len(self.names)} regions; "
                "expected a label value of theirs for each"
            )
        if self.activation == "softmax":
            flat = [value for values in self.labels for value in values]
            if any(len(values) != 1 for values in self.labels) or len(set(flat)) != len(flat):
                raise InputError(
                    f"regions: softmax classes have the label values {shown(self.labels)}; "
                    "expected one value per class, all different"
                )
            if len(self.labels) < 2:
                raise InputError(
                    "regions: softmax over one class; expected the background and at least one more"
                )

    @property
    def exclusive(self) -> bool:
        """Whether each voxel belongs to exactly one class (softmax)."""
        return self.activation == "softmax"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def values(self) -> tuple[int, ...]:
        """Every value that a label map may hold: 0 (background), those in ``labels``, ignored."""
        ignored = () if self.ignore_index is None else (self.ignore_index,)
        return tuple(sorted({0}.union(*self.labels, ignored)))

    @property
    def foreground(self) -> tuple[int, ...]:
        """The indices of the channels that are reported: all but the background of a softmax."""
        return tuple(range(1 if self.exclusive else 0, len(self)))

    @property
    def reported_names(self) -> tuple[str, ...]:
        """The names of the reported channels."""
        return tuple(self.names[channel] for channel in self.foreground)

    def reported(self, channels: Tensor) -> Tensor:
        """The reported channels of ``(B, R, D, H, W)``, not copied; a single channel is kept."""
        return channels if channels.shape[1] == 1 else channels[:, self.foreground[0] :]

    def masks(self, labels: Tensor) -> Tensor:
        """Convert a label map ``(B, 1, D, H, W)`` to binary regions ``(B, R, D, H, W)``, uint8."""
        return region_masks(labels, self.labels).view(torch.uint8)

    def classes(self, labels: Tensor, other: int = 0) -> Tensor:
        """Convert a label map ``(B, 1, D, H, W)`` to class indices, int64 (softmax only).

        Values that no class has become ``other``, by default the background.
        """
        if not self.exclusive:
            raise InputError(
                "regions: classes() expects exclusive classes; these are sigmoid regions"
            )
        return class_indices(labels, self.labels, other)

    def ignored(self, labels: Tensor) -> Tensor | None:
        """The ignored voxels of a label map ``(B, 1, D, H, W)``, bool; None without any value."""
        return None if self.ignore_index is None else equals(labels, self.ignore_index)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits ``(B, R, D, H, W)`` to probabilities, by softmax or sigmoid."""
        return probabilities(logits, self.activation)

    def decode(self, probabilities: Tensor) -> Tensor:
        """Convert probabilities ``(B, R, D, H, W)`` to a label map ``(B, 1, D, H, W)``, int16.

        For exclusive classes, the most probable one. Other regions are painted wherever their
        probability is above 0.5, in the order and with the values of ``class_order`` or else from
        the largest set of values to the smallest, each with a value that no region inside it has,
        so that ``masks(decode(p))`` has the regions' nesting.
        """
        shape = (probabilities.shape[0], 1, *probabilities.shape[2:])
        labels = torch.zeros(shape, dtype=torch.int16, device=probabilities.device)
        if self.exclusive:
            best = probabilities.argmax(1, keepdim=True)
            for channel, (value,) in enumerate(self.labels):
                labels.masked_fill_(best == channel, value)
            return labels
        for region, value in self._painting():
            labels.masked_fill_(probabilities[:, region : region + 1] > 0.5, value)
        return labels

    def _painting(self) -> list[tuple[int, int]]:
        """Sigmoid regions with their values in a label map, in the order of painting."""
        if self.class_order is not None:
            return list(enumerate(self.class_order))
        painting = []
        for region in sorted(range(len(self)), key=lambda r: -len(self.labels[r])):
            own = set(self.labels[region])
            inner = set().union(*(set(v) for v in self.labels if set(v) < own))
            painting.append((region, min(own - inner or own)))
        return painting

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint or a JSON file; the inverse of :meth:`from_dict`."""
        return {
            "names": list(self.names),
            "labels": [list(values) for values in self.labels],
            "activation": self.activation,
            "ignore_index": self.ignore_index,
            "class_order": None if self.class_order is None else list(self.class_order),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Regions:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: an entry is missing or invalid.
        """
        return cls(
            names=entry(data, "names", tuple[str, ...]),
            labels=entry(data, "labels", tuple[tuple[int, ...], ...]),
            activation=entry(data, "activation", Activation),
            ignore_index=entry(data, "ignore_index", int | None),
            class_order=entry(data, "class_order", tuple[int, ...] | None),
        )


def _check_values(name: str, values: tuple[int, ...]) -> None:
    for value in values:
        if not 0 <= value <= LARGEST_LABEL:
            raise InputError(
                f"regions: {shown(name)} has the label value {shown(value)}; "
                f"expected values from 0 to {LARGEST_LABEL}"
            )


# Of the challenges. They stand here and not with the layouts of egcnn.data, which need MONAI and
# nibabel: operators and networks are measured and tested without.

#: BraTS: labels 1 (necrotic and non-enhancing core), 2 (oedema) and 4 (enhancing), nested regions.
BRATS = Regions(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)), "sigmoid")

#: KiTS: labels 1 (kidney) and 2 (tumour), nested regions: a tumour is part of its kidney.
KITS = Regions(("kidney", "tumour"), ((1, 2), (2,)), "sigmoid")
