"""Networks as ONNX models."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from egcnn.checkpoint import KEY, Trained, description
from egcnn.errors import InputError
from egcnn.export.program import OUTPUTS, multiple, trained_program
from egcnn.files import write_bytes

#: A file of Protocol Buffers cannot be larger.
_LARGEST = 2**31 - 1


def write_onnx(trained: Trained, path: str | Path, *, edges: bool = False) -> None:
    """Write a network as an ONNX model, in one file.

    Its input is ``image (B, M, D, H, W)``, its outputs are ``logits`` and, with ``edges``,
    ``edge_logits``; sizes as in :func:`egcnn.export.trained_program`. Its metadata has the
    description as JSON under ``egcnn``.

    Args:
        trained: the network.
        path: the ``.onnx`` file.
        edges: return edge logits too.

    Raises:
        InputError: ``edges`` of a network without edge stream, a package is missing, the weights
            are too large, or the file cannot be written.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(
                f"export: {package} is not installed; expected pip install 'egcnn[export]'"
            ) from None
    size = sum(value.nbytes for value in trained.network.state_dict().values())
    if size > _LARGEST:
        raise InputError(
            f"{path}: {size / 1e9:.1f} GB of weights; expected at most {_LARGEST / 1e9:.1f} GB in "
            "an ONNX file"
        )
    program = trained_program(trained, edges=edges)
    with _quiet():
        model = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(OUTPUTS[: 1 + edges]),
            verbose=False,
        )
    assert model is not None
    _name_axes(model.model.graph, multiple(trained))
    model.model.metadata_props[KEY] = description(trained)
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


def _name_axes(graph: Any, step: int) -> None:
    """Name the free axes of inputs and outputs, which torch numbers."""
    free = {0: "batch"} | {
        axis: f"{step}*{name}" for axis, name in enumerate(("depth", "height", "width"), 2)
    }
    for value in (*graph.inputs, *graph.outputs):
        for axis, name in free.items():
            value.shape[axis] = name
