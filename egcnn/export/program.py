"""Networks as programs of ``torch.export``, which run without this package."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from egcnn.checkpoint import KEY, Trained
from egcnn.export.network import InferenceNetwork
from egcnn.files import write_bytes
from egcnn.ops import use_reference


def export_program(
    network: nn.Module,
    channels: int,
    size: Sequence[int],
    *,
    multiple: int | None = None,
    edges: bool = False,
) -> ExportedProgram:
    """Export a network through the reference operators: only torch's own are in the graph.

    Args:
        network: see :class:`egcnn.export.InferenceNetwork`. It stays as it is.
        channels: image channels (modalities).
        size: ``(D, H, W)`` of the images.
        multiple: images may have any other size too whose axes are multiples of this and at least
            twice as long; None fixes the size, for networks that allow only one.
        edges: return edge logits too.

    Returns:
        a program in evaluation mode on the CPU, of images ``(B, channels, D, H, W)`` float32 with
        any B. ``program.module()`` is callable.

    Raises:
        InputError: ``edges`` of a network without edge stream.
    """
    # Frozen: gradients would keep a workaround for thin volumes in the graph, see Conv3x3x3.
    plain = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    shapes: dict[int, Any] = {0: Dim("batch", min=1)}
    if multiple is not None:
        for axis, name in enumerate(("depth", "height", "width"), 2):
            steps = Dim(f"{name}_steps", min=2)
            shapes[axis] = multiple * steps if multiple > 1 else steps
    # Two images: torch.export takes a size of 1 for a constant.
    example = torch.zeros(2, channels, *size)
    with use_reference(), torch.no_grad():
        program = torch.export.export(
            InferenceNetwork(plain, edges=edges), (example,), dynamic_shapes={"image": shapes}
        )
    # Where the code lies on this machine is nobody else's business.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def trained_program(trained: Trained, *, edges: bool = False) -> ExportedProgram:
    """Export a trained network, with free sizes: see :func:`export_program`, :func:`multiple`."""
    step = multiple(trained)
    # Different sizes, or torch.export would take them for one.
    size = (2 * step, 3 * step, 4 * step)
    return export_program(
        trained.network, len(trained.modalities), size, multiple=step, edges=edges
    )


def multiple(trained: Trained) -> int:
    """What every axis of an exported network's images is a multiple of.

    So that each resolution divides evenly; see :class:`egcnn.nn.backbones.BackboneEntry`.
    """
    settings = trained.settings
    return int(max(settings.stride, 2 ** (len(settings.backbone.blocks_down) - 1)))


def write_program(program: ExportedProgram, path: str | Path, description: str = "") -> None:
    """Write a program, which ``torch.export.load(path, extra_files={"egcnn": ""})`` reads.

    Args:
        program: the program.
        path: the ``.pt2`` file.
        description: text of the extra file ``egcnn``, such as :func:`egcnn.checkpoint.description`.

    Raises:
        InputError: the file cannot be written.
    """
    torch.export.save(program, stream := io.BytesIO(), extra_files={KEY: description})
    write_bytes(path, stream.getvalue())
