"""Trained networks in the formats of other software."""

from __future__ import annotations

from pathlib import Path

from egcnn import safetensors
from egcnn.checkpoint import Trained, description, save
from egcnn.errors import InputError
from egcnn.export import onnx
from egcnn.export.bundle import Decoded, WindowInferer, Written, write_bundle
from egcnn.export.network import InferenceNetwork
from egcnn.export.onnx import write_onnx
from egcnn.export.program import export_program, trained_program, write_program

__all__ = [
    "Decoded",
    "InferenceNetwork",
    "WindowInferer",
    "Written",
    "check_format",
    "export",
    "export_program",
    "trained_program",
    "write_bundle",
    "write_onnx",
    "write_program",
]

_PROGRAMS = {".pt2": write_program, ".onnx": write_onnx}


def check_format(path: str | Path) -> None:
    """Check that a path's suffix names a format, and that the packages for it are installed.

    Raises:
        InputError: otherwise.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        onnx.check_installed()
    elif suffix == safetensors.SUFFIX:
        safetensors.check_installed()
    elif suffix not in ("", *_PROGRAMS):
        raise InputError(
            f"{path}: suffix {suffix!r}; expected .pt2, .onnx or {safetensors.SUFFIX}, or none for "
            "the folder of a MONAI bundle"
        )


def export(trained: Trained, path: str | Path, *, edges: bool = False) -> None:
    """Write a network in the format that the suffix names.

    ``.pt2`` is :func:`write_program`, ``.onnx`` :func:`write_onnx`, ``.safetensors``
    :func:`egcnn.checkpoint.save`; a path without suffix becomes the folder of
    :func:`write_bundle`.

    Args:
        trained: the network.
        path: the file, or the folder of the bundle.
        edges: of ``.pt2`` and ``.onnx``: return the edge logits too.

    Raises:
        InputError: ``edges`` of another format or of a network without edge stream, or as
            :func:`check_format` or the function.
    """
    suffix = Path(path).suffix.lower()
    if edges and not trained.settings.edge:
        raise InputError("edges: the network has no edge stream; expected one that has")
    if edges and suffix not in _PROGRAMS:
        raise InputError(f"edges: {path} holds the whole network anyway; expected .pt2 or .onnx")
    check_format(path)
    if suffix in _PROGRAMS:
        _PROGRAMS[suffix](trained_program(trained, edges=edges), path, description(trained))
    elif suffix == safetensors.SUFFIX:
        save(path, trained)
    else:
        write_bundle(trained, path)
