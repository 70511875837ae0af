"""A trained network as one file: weights, configuration, provenance.

Training writes Lightning's checkpoint with an additional entry, ``"egcnn"``, of plain data. Only
that entry and the weights are read back, which does not need Lightning. A ``.safetensors`` file
holds the same two, the entry as JSON.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import egcnn
from egcnn import legacy, safetensors
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError, shown
from egcnn.files import atomic_write, digest, save_tensors, tensor_damage, without_nan
from egcnn.machine import versions
from egcnn.nn.network import NetworkSettings, build_network
from egcnn.regions import Regions
from egcnn.typed import entry, typed

#: Bumped whenever older readers could no longer understand the entry.
FORMAT = 4
#: Formats that :func:`load` reads.
READABLE = (3, 4)
KEY = "egcnn"
#: Prefix of the network's weights in Lightning's ``state_dict``.
PREFIX = "network."


@dataclass(frozen=True)
class Trained:
    """A network and everything needed to apply it to a volume.

    Args:
        network: the network, see :func:`egcnn.nn.build_network`.
        settings: what it was built from.
        preprocessing: how its input volumes are prepared.
        regions: what its output channels mean.
        modalities: the input channels' names, in order.
        provenance: where it comes from (date, versions, configuration, hashes of the data); any
            plain data. :func:`load` adds the SHA-256 of the file as ``"checkpoint"``.
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


def write(path: str | Path, checkpoint: Mapping[str, Any], keep: int = 1) -> None:
    """Write a checkpoint dictionary atomically: ``path`` never holds a partial file.

    Args:
        path: the file.
        checkpoint: the dictionary.
        keep: number of files that remain; the former ones are :func:`former` of ``path``. The
            oldest goes when the new one has been read back and its checksums are right.

    Raises:
        InputError: it cannot be written, or reads back otherwise than it was written.
    """
    path = Path(path)
    with atomic_write(path) as temporary:
        save_tensors(checkpoint, temporary, path)
        if (damage := tensor_damage(temporary)) is not None:
            raise InputError(f"{path}: did not reach the disk whole ({damage})")
        # A damaged file is not worth the place of an older one.
        if keep > 1 and path.is_file() and tensor_damage(path) is None:
            for number in range(keep - 1, 0, -1):
                newer = former(path, number - 1)
                if newer.is_file():
                    os.replace(newer, former(path, number))


def former(path: Path, number: int) -> Path:
    """Path of the file written ``number`` times before the one at ``path``: ``last-1.ckpt``."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def save(path: str | Path, trained: Trained) -> None:
    """Write a network in the format that training writes, without a Trainer.

    Args:
        path: a ``.safetensors`` file is written as such, any other as a checkpoint.
        trained: the network.

    Raises:
        InputError: the file cannot be written, or the package safetensors is missing.
    """
    weights = trained.network.state_dict()
    if safetensors.has_suffix(path):
        safetensors.write(path, weights, description(trained))
    else:
        prefixed = {PREFIX + name: value for name, value in weights.items()}
        write(path, {KEY: trained.entry(), "state_dict": prefixed})


def description(trained: Trained) -> str:
    """:meth:`Trained.entry` as JSON, which exported files hold under the name ``"egcnn"``.

    Exported files are handed on: of the training data they hold a hash and counts, but neither
    the folder nor the names of cases, which may be those of patients.
    """
    described = trained.entry()
    described["provenance"] = _without_names(described["provenance"])
    return json.dumps(without_nan(described))


def _without_names(provenance: Mapping[str, Any]) -> dict[str, Any]:
    run = entry(provenance, "run", dict[str, Any] | None)
    if run is None:
        return dict(provenance)
    for group, private in (("dataset", {"root"}), ("data", {"cases", "sizes"})):
        if (facts := entry(run, group, dict[str, Any] | None)) is not None:
            run[group] = {name: fact for name, fact in facts.items() if name not in private}
    if (split := entry(run, "split", dict[str, list[str]] | None)) is not None:
        del run["split"]
        run["cases"] = {part: len(names) for part, names in split.items()}
    return {**provenance, "run": run}


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint's dictionary, with an ``"egcnn"`` and a ``"state_dict"`` entry.

    Its checksums are verified; tensors stay on the disk until they are used.

    Raises:
        InputError: the file is missing, not a checkpoint, damaged, or not written by egcnn.
    """
    _check_file(path)
    damage = tensor_damage(path)
    try:
        # Memory-mapped, so that the optimizer's state (two thirds of the file) takes no memory.
        data = None if damage else _mapped(path)
    except Exception:  # of many types, depending on the damage
        damage = "not a file that torch wrote"
    if damage:
        raise InputError(
            f"checkpoint: {path} cannot be read as a checkpoint ({damage}); expected a .ckpt file "
            "written by 'egcnn train'"
        )
    if (
        not isinstance(data, dict)
        or not isinstance(data.get(KEY), dict)
        or "state_dict" not in data
    ):
        raise InputError(
            f"checkpoint: {path} was not written by egcnn (it has no {KEY!r} entry); "
            "expected a .ckpt file written by 'egcnn train'"
        )
    return data


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Read a ``.safetensors`` file as :func:`read` does a checkpoint."""
    _check_file(path)
    text, weights = safetensors.read(path)
    try:
        described = json.loads(text or "")
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise InputError(
            f"checkpoint: {path} was not written by egcnn (its metadata has no {KEY!r} entry); "
            "expected a .safetensors file written by 'egcnn export'"
        )
    return {
        KEY: described,
        "state_dict": {PREFIX + name: value for name, value in weights.items()},
    }


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"checkpoint: {path} {what}; expected a .ckpt file written by 'egcnn train', or a "
            ".safetensors file by 'egcnn export'"
        )


def _mapped(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a damaged pickle has a strange version
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def is_checkpoint(path: Path) -> bool | None:
    """Whether a file is a checkpoint of egcnn; None if it is too damaged to tell."""
    if tensor_damage(path) is not None:
        return None
    try:
        data = _mapped(path)
    except Exception:  # of many types, depending on the damage
        return None
    return isinstance(data, dict) and KEY in data


def load(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Read a file of :func:`save` or a checkpoint of training.

    Args:
        path: the ``.ckpt`` file, from which only tensors and plain data are unpickled, or the
            ``.safetensors`` file.
        device: where the network is placed.

    Returns:
        the network in evaluation mode, and its description.

    Raises:
        InputError: no such file, not a checkpoint, truncated, not written by egcnn, of an
            unsupported format version, or with entries that are invalid, do not fit each other, or
            weights that are not finite.
    """
    path = Path(path)
    data = _read_safetensors(path) if safetensors.has_suffix(path) else read(path)
    described = data[KEY]
    number = described.get("format")
    if not isinstance(number, int) or number not in READABLE:
        raise InputError(
            f"checkpoint: {path} has format version {shown(number)}; this egcnn "
            f"{egcnn.__version__} reads versions {' and '.join(map(str, READABLE))}"
        )
    try:
        if number == 3:
            described = legacy.checkpoint(described)
        trained = _restore(described, data["state_dict"], device)
        provenance = {**trained.provenance, "checkpoint": digest([path])}
        return replace(trained, provenance=provenance)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {reason}"
        raise InputError(f"checkpoint: {path} is damaged: {reason}") from error


def _restore(described: dict[str, Any], state: Any, device: str | torch.device) -> Trained:
    settings = NetworkSettings.from_dict(entry(described, "network", dict[str, Any]))
    regions = Regions.from_dict(described.get("regions"))
    modalities = entry(described, "modalities", tuple[str, ...])
    # Without memory, however large it claims to be.
    with torch.device("meta"):
        network = build_network(
            settings, len(modalities), len(regions), exclusive=regions.exclusive
        )
    weights = {
        name.removeprefix(PREFIX): value
        for name, value in typed("state_dict", state, dict[str, Any]).items()
        if name.startswith(PREFIX)
    }
    _check_weights(
        weights,
        network.state_dict(),
        f"{settings.backbone.name} with {len(modalities)} modalities and {len(regions)} regions",
    )
    network.to_empty(device=device).load_state_dict(weights)
    provenance = entry(described, "provenance", dict[str, Any] | None) or {}
    json.dumps(provenance)  # predictions note it as JSON, and say what data it comes from
    entry(entry(provenance, "run", dict[str, Any] | None) or {}, "data", dict[str, Any] | None)
    return Trained(
        network=network.eval().requires_grad_(False),
        settings=settings,
        preprocessing=PreprocessingSettings.from_dict(
            entry(described, "preprocessing", dict[str, Any])
        ),
        regions=regions,
        modalities=modalities,
        provenance=provenance,
    )


def _check_weights(weights: dict[str, Any], expected: Mapping[str, Tensor], network: str) -> None:
    """Check names, shapes and values of weights against those of the network described.

    Raises:
        InputError: they differ, or hold NaN or infinity.
    """
    if other := sorted(weights.keys() ^ expected.keys()):
        raise InputError(
            f"its weights and its description do not fit each other: {len(other)} weights, such "
            f"as {other[0]!r}, are missing or not of {network}"
        )
    for name, value in weights.items():
        like = expected[name]
        plain = isinstance(value, Tensor) and value.is_cpu and value.layout is torch.strided
        if not plain or value.is_floating_point() != like.is_floating_point():
            raise InputError(
                f"weight {name} is a {type(value).__name__} of {getattr(value, 'dtype', None)}; "
                f"expected a dense tensor of {like.dtype}"
            )
        if value.shape != like.shape:
            raise InputError(
                f"its weights and its description do not fit each other: {name} has shape "
                f"{tuple(value.shape)}; expected {tuple(like.shape)}, as {network} has"
            )
        if not value.isfinite().all():
            raise InputError(f"weight {name} holds NaN or infinity; expected finite weights")
