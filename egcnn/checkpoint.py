"""A trained network as one file: weights, configuration, provenance.

Training writes Lightning's checkpoint with one more entry, ``"egcnn"``, of plain data; everything
else reads that entry and the weights, and needs no Lightning.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import egcnn
from egcnn.errors import InputError
from egcnn.files import replacing
from egcnn.nn import EGCNN
from egcnn.nn.backbones import find_backbone
from egcnn.nn.edge_stream import Gate, GateActivation, Residual, Seed, Upsampling
from egcnn.nn.egcnn import EdgeHead
from egcnn.regions import Regions

if TYPE_CHECKING:
    # Its module imports MONAI, which `egcnn info` and the networks do not need.
    from egcnn.data.case import Normalization, Spacing

#: Raised whenever a reader of the former layout could no longer understand the entry.
FORMAT = 3
KEY = "egcnn"
#: What the network's weights are called inside Lightning's ``state_dict``.
PREFIX = "network."


@dataclass(frozen=True)
class NetworkSpec:
    """The constructor arguments of a network, as plain data.

    Args:
        in_channels: modalities.
        out_channels: regions.
        backbone: the encoder-decoder, one of :data:`egcnn.nn.BACKBONES`.
        edge: put the EG-CNN edge stream around the backbone.
        filters: channels at full resolution.
        blocks_down: residual blocks per encoder resolution, fine to coarse.
        blocks_up: residual blocks per decoder resolution.
        dropout: drop-out probability after the first convolution.
        gate: ``"channel"`` or ``"voxel"``, the edge gate's attention (Eq. 2).
        gate_activation: ``"relu_sigmoid"`` (Eq. 1) or ``"sigmoid"``.
        edge_channels: width of the edge stream; see :class:`egcnn.nn.EdgeStream`.
        residual: see :class:`egcnn.nn.EdgeStream`.
        upsampling: see :class:`egcnn.nn.EdgeStream`.
        edge_seed: ``seed`` of :class:`egcnn.nn.EdgeStream`.
        edge_head: see :class:`egcnn.nn.EGCNN`.
    """

    in_channels: int
    out_channels: int
    backbone: str = "segnet"
    edge: bool = True
    filters: int = 32
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    dropout: float = 0.0
    gate: Gate = "channel"
    gate_activation: GateActivation = "sigmoid"
    edge_channels: int | None = None
    residual: Residual = "block"
    upsampling: Upsampling = "trilinear"
    edge_seed: Seed = "decoder"
    edge_head: EdgeHead = "region"


def build_network(spec: NetworkSpec) -> nn.Module:
    """Build the network that ``spec`` describes, with fresh weights.

    Returns:
        an :class:`egcnn.nn.EGCNN` (its output is a ``Segmentation``), or with ``edge=False`` the
        backbone alone (its output is the logits ``(B, R, D, H, W)``).

    Raises:
        InputError: the backbone is not one of :data:`egcnn.nn.BACKBONES`.
    """
    backbone = find_backbone(spec.backbone).network(
        spec.in_channels,
        spec.out_channels,
        filters=spec.filters,
        blocks_down=spec.blocks_down,
        blocks_up=spec.blocks_up,
        dropout=spec.dropout,
    )
    if not spec.edge:
        return backbone
    return EGCNN(
        backbone,
        gate=spec.gate,
        activation=spec.gate_activation,
        edge_channels=spec.edge_channels,
        residual=spec.residual,
        upsampling=spec.upsampling,
        seed=spec.edge_seed,
        edge_head=spec.edge_head,
    )


@dataclass(frozen=True)
class Trained:
    """A network and all that is needed to use it on a volume.

    Args:
        network: the network, see :func:`build_network`.
        spec: what it was built from.
        regions: what its output channels mean.
        modalities: the input channels' names, in order.
        spacing: voxel size in mm that it works at; ``None`` is each volume's own.
        normalization: ``"zscore"`` or ``"ct"``.
        patch: voxels ``(D, H, W)`` of the training patch, the window of prediction.
        provenance: who, when, with which versions; free plain data.
    """

    network: nn.Module
    spec: NetworkSpec
    regions: Regions
    modalities: tuple[str, ...]
    spacing: Spacing | None
    normalization: Normalization
    patch: tuple[int, int, int]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """The plain data that describes everything but the weights."""
        return {
            "format": FORMAT,
            "network": {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(self.spec).items()
            },
            "regions": self.regions.to_dict(),
            "preprocessing": {
                "modalities": list(self.modalities),
                "spacing": None if self.spacing is None else list(self.spacing),
                "normalization": self.normalization,
                "patch": list(self.patch),
            },
            "provenance": {
                "versions": versions(),
                "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **self.provenance,
            },
        }


def versions() -> dict[str, str]:
    """Versions of Python, egcnn and the libraries that shape a result, without importing them."""
    found = {"python": platform.python_version(), "egcnn": egcnn.__version__}
    for name in ("torch", "monai", "lightning", "nibabel", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


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
        raise InputError(f"checkpoint: {path} {what}; wanted a .ckpt file written by 'egcnn train'")
    try:
        # Mapped, so that the optimizer's state (two thirds of the file) is never read.
        data = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise InputError(
            f"checkpoint: {path} cannot be read as a checkpoint (it is truncated, or not a file "
            "that torch wrote); wanted a .ckpt file written by 'egcnn train'"
        ) from error
    entry = data.get(KEY) if isinstance(data, dict) else None
    if not isinstance(entry, dict) or "state_dict" not in data:
        raise InputError(
            f"checkpoint: {path} was not written by egcnn (it has no {KEY!r} entry); "
            "wanted a .ckpt file written by 'egcnn train'"
        )
    if entry.get("format") != FORMAT:
        raise InputError(
            f"checkpoint: {path} has format version {entry.get('format')!r}; this egcnn "
            f"{egcnn.__version__} reads version {FORMAT}"
        )
    try:
        return _restore(entry, data["state_dict"], device)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"checkpoint: {path} is damaged, its weights and its description do not fit each other "
            f"({type(error).__name__}: {reason})"
        ) from error


def _restore(entry: dict[str, Any], weights: dict[str, Any], device: str | torch.device) -> Trained:
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in entry["network"].items()
    }
    spec = NetworkSpec(**arguments)
    network = build_network(spec)
    network.load_state_dict(
        {key.removeprefix(PREFIX): v for key, v in weights.items() if key.startswith(PREFIX)}
    )
    network.eval().requires_grad_(False)
    preprocessing = entry["preprocessing"]
    spacing = preprocessing["spacing"]
    return Trained(
        network=network.to(device),
        spec=spec,
        regions=Regions.from_dict(entry["regions"]),
        modalities=tuple(preprocessing["modalities"]),
        spacing=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
        normalization=preprocessing["normalization"],
        patch=(preprocessing["patch"][0], preprocessing["patch"][1], preprocessing["patch"][2]),
        provenance=entry.get("provenance", {}),
    )
