"""Weights and their description as a safetensors file, which holds no pickle: nothing in it runs.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from egcnn.errors import InputError, brief, not_installed
from egcnn.files import write_bytes

SUFFIX = ".safetensors"
#: Entries of the header's metadata: the description, and a checksum of all, which the format lacks.
DESCRIPTION, CHECKSUM = "egcnn", "sha256"


def has_suffix(path: str | Path) -> bool:
    """Whether a path has the suffix of a safetensors file, however that is capitalized."""
    return Path(path).suffix.lower() == SUFFIX


def check_installed() -> None:
    """Raise InputError if the package safetensors is missing."""
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise not_installed(SUFFIX, "safetensors", "export") from None


def write(path: str | Path, weights: Mapping[str, Tensor], description: str) -> None:
    """Write weights, and a text in the header's metadata.

    Raises:
        InputError: the package safetensors is missing, or the file cannot be written.
    """
    check_installed()
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    metadata = {DESCRIPTION: description, CHECKSUM: _checksum(plain, description), "format": "pt"}
    write_bytes(path, save(plain, metadata))


def read(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """Read the text (None if there is none, as in a file of others) and the weights.

    Raises:
        InputError: the package safetensors is missing, or the file cannot be read or is damaged.
    """
    check_installed()
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = metadata.get(DESCRIPTION)
        whole = description is None or metadata.get(CHECKSUM) == _checksum(weights, description)
    except Exception as error:  # of many types, depending on the damage
        raise InputError(
            f"{path}: cannot be read as a safetensors file ({brief(error)}); "
            "expected one that is whole"
        ) from error
    if not whole:
        raise InputError(f"{path}: its checksum is wrong; expected the file as it was written")
    return description, weights


def _checksum(weights: Mapping[str, Tensor], description: str) -> str:
    content = hashlib.sha256(description.encode())
    for name, value in sorted(weights.items()):
        content.update(name.encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
