"""Programs as ONNX models."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from egcnn.checkpoint import KEY
from egcnn.errors import InputError, not_installed
from egcnn.files import write_bytes

#: A file of Protocol Buffers cannot be larger.
_LARGEST = 2**31 - 1
_OUTPUTS = ["logits", "edge_logits"]
_AXES = ("batch", "modalities", "depth", "height", "width")
_SYMBOL = re.compile(r"[a-z]\w*")


def check_installed() -> None:
    """Raise InputError if a package that writes ONNX models is missing."""
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise not_installed("export", package, "export") from None


def write_onnx(program: ExportedProgram, path: str | Path, description: str = "") -> None:
    """Write a program as an ONNX model, in one file.

    Its input is ``image``, its outputs are ``logits`` and, if the program has them,
    ``edge_logits``.

    Args:
        program: of :func:`egcnn.export.export_program`.
        path: the ``.onnx`` file.
        description: text of the metadata's entry ``egcnn``, such as
            :func:`egcnn.checkpoint.description`.

    Raises:
        InputError: a package is missing, the weights are too large, or the file cannot be written.
    """
    check_installed()
    size = sum(value.nbytes for value in program.state_dict.values())
    if size > _LARGEST:
        raise InputError(
            f"{path}: {size / 1e9:.1f} GB of weights; expected at most {_LARGEST / 1e9:.1f} GB in "
            "an ONNX file"
        )
    names = _OUTPUTS[: len(program.graph_signature.user_outputs)]
    with _quiet():
        model = torch.onnx.export(
            program, dynamo=True, input_names=["image"], output_names=names, verbose=False
        )
    assert model is not None
    _name_axes(model.model.graph)
    model.model.metadata_props[KEY] = description
    write_bytes(path, model.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself, such as that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_axes(graph: Any) -> None:
    """Name the free sizes of inputs and outputs, as ``8*depth``; torch numbers them."""
    names = {}
    for name, size in zip(_AXES, graph.inputs[0].shape, strict=True):
        names.update(dict.fromkeys(_SYMBOL.findall(str(size)), name))
    for value in (*graph.inputs, *graph.outputs):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[axis] = _SYMBOL.sub(lambda found: names[found[0]], str(size))
