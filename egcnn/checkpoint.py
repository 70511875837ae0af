"""A trained network as one file: weights, configuration, provenance.

Training writes Lightning's checkpoint with one more entry, ``"egcnn"``, of plain data; everything
else reads that entry and the weights, and needs no Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

import egcnn
from egcnn import former
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError
from egcnn.files import replacing
from egcnn.machine import versions
from egcnn.nn.network import NetworkSettings, build_network
from egcnn.regions import Regions

#: Raised whenever a reader of the former layout could no longer understand the entry.
FORMAT = 4
#: What is read.
READABLE = (3, 4)
KEY = "egcnn"
#: What the network's weights are called inside Lightning's ``state_dict``.
PREFIX = "network."


@dataclass(frozen=True)
class Trained:
    """A network and all that is needed to use it on a volume.

    Args:
        network: the network, see :func:`egcnn.nn.build_network`.
        settings: what it was built from.
        preprocessing: what its volumes go through.
        regions: what its output channels mean.
        modalities: the input channels' names, in order.
        provenance: who, when, with which versions; free plain data.
    """

    network: nn.Module
    settings: NetworkSettings
    preprocessing: PreprocessingSettings
    regions: Regions
    modalities: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """The plain data that describes everything but the weights."""
        return {
            "format": FORMAT,
            "network": self.settings.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "regions": self.regions.to_dict(),
            "modalities": list(self.modalities),
            "provenance": {
                "versions": versions(),
                "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **self.provenance,
            },
        }


def write(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint dictionary; ``path`` holds the whole of it or what it held before.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(path) as temporary:
        try:
            torch.save(dict(checkpoint), temporary)
        except RuntimeError as error:  # how torch's writer reports that bytes did not go through
            raise InputError(
                f"{path}: writing stopped half-way; is there room left on the disk?"
            ) from error


def save(path: str | Path, trained: Trained) -> None:
    """Write a network that no Trainer holds in the same format that training writes."""
    weights = {PREFIX + name: value for name, value in trained.network.state_dict().items()}
    write(path, {KEY: trained.entry(), "state_dict": weights})


def load(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Read a checkpoint of :func:`save` or of training.

    Args:
        path: the ``.ckpt`` file. Only tensors and plain data are unpickled from it.
        device: where the network goes.

    Returns:
        the network in evaluation mode, and its description.

    Raises:
        InputError: no such file, not a checkpoint, truncated, not one of ours, of another format
            version, or weights that do not fit the description.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"checkpoint: {path} {what}; expected a .ckpt file written by 'egcnn train'"
        )
    try:
        # Mapped, so that the optimizer's state (two thirds of the file) is never read.
        data = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise InputError(
            f"checkpoint: {path} cannot be read as a checkpoint (it is truncated, or not a file "
            "that torch wrote); expected a .ckpt file written by 'egcnn train'"
        ) from error
    entry = data.get(KEY) if isinstance(data, dict) else None
    if not isinstance(entry, dict) or "state_dict" not in data:
        raise InputError(
            f"checkpoint: {path} was not written by egcnn (it has no {KEY!r} entry); "
            "expected a .ckpt file written by 'egcnn train'"
        )
    if entry.get("format") not in READABLE:
        raise InputError(
            f"checkpoint: {path} has format version {entry.get('format')!r}; this egcnn "
            f"{egcnn.__version__} reads versions {' and '.join(map(str, READABLE))}"
        )
    try:
        if entry["format"] == 3:
            entry = former.checkpoint(entry)
        return _restore(entry, data["state_dict"], device)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"checkpoint: {path} is damaged, its weights and its description do not fit each other "
            f"({type(error).__name__}: {reason})"
        ) from error


def _restore(entry: dict[str, Any], weights: dict[str, Any], device: str | torch.device) -> Trained:
    settings = NetworkSettings.from_dict(entry["network"])
    regions = Regions.from_dict(entry["regions"])
    modalities = tuple(entry["modalities"])
    network = build_network(settings, len(modalities), len(regions), exclusive=regions.exclusive)
    network.load_state_dict(
        {key.removeprefix(PREFIX): v for key, v in weights.items() if key.startswith(PREFIX)}
    )
    network.eval().requires_grad_(False)
    return Trained(
        network=network.to(device),
        settings=settings,
        preprocessing=PreprocessingSettings.from_dict(entry["preprocessing"]),
        regions=regions,
        modalities=modalities,
        provenance=entry.get("provenance", {}),
    )
