"""Sobel edge targets and the Sobel gradient magnitude (section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._backend import native
from egcnn.ops._tensors import (
    DEVICES,
    FLOATS,
    INTEGERS,
    check_volume,
    dense,
    empty_like,
    launch,
    memory_format,
    register_autograd,
    register_no_second_derivative,
)


def sobel_edges(
    labels: Tensor, regions: Sequence[Sequence[int]] | None = None, *, threshold: float = 0.0
) -> Tensor:
    """Binary edge targets of every region: Sobel gradient magnitude above ``threshold``.

    Separable 3D Sobel with replicated borders, scaled so that a flat face of a binary region has
    magnitude 1. Threshold 0 marks both voxels at each face, the two-voxel band.

    Args:
        labels: with ``regions``, an integer label map ``(B, 1, D, H, W)``; without, ready-made
            binary regions ``(B, R, D, H, W)``: bool or integer (0 is outside, all else inside), or
            any float, whose gradient is taken directly.
        regions: the label values that make up each region; regions may overlap.
        threshold: magnitude above which a voxel is an edge, not negative.

    Returns:
        uint8 edges ``(B, R, D, H, W)``, 1 on edges; a magnitude of NaN is no edge.

    Raises:
        InputError: a wrong rank, dtype or number of channels, an empty region, or a negative
            threshold.

    Source: Hatamizadeh et al. 2020, section 2.1.
    """
    check_threshold(threshold)
    if regions is None:
        check_volume("labels", labels, (torch.bool, *INTEGERS, *FLOATS))
    else:
        check_volume("labels", labels, (torch.bool, *INTEGERS), channels=1)
        if len(regions) == 0 or any(len(region) == 0 for region in regions):
            raise InputError(
                f"regions is {regions!r}; expected at least one region, each with a label value"
            )
    if labels.requires_grad:
        labels = labels.detach()
    if native(labels):
        return torch.ops.egcnn.sobel_edges(labels, *region_lists(regions), threshold)
    return reference.sobel_edges(labels, regions, threshold)


def check_threshold(threshold: float) -> None:
    """Raise InputError unless ``threshold`` can be one of Sobel magnitudes."""
    if not threshold >= 0:
        raise InputError(f"threshold is {threshold}; expected a number of at least 0")


def region_lists(regions: Sequence[Sequence[int]] | None) -> tuple[list[int], list[int]]:
    """The label values of all regions, one after the other, and how many each has, for kernels."""
    if regions is None:
        return [], []
    values = [int(value) for region in regions for value in region]
    return values, [len(region) for region in regions]


def sobel_magnitude(x: Tensor) -> Tensor:
    """Sobel gradient magnitude of each channel, differentiable; the slope at 0 is taken as 0.

    Args:
        x: ``(B, C, D, H, W)``, any float; borders are replicated.

    Returns:
        The magnitude, like ``x``; 1 on a flat face between 0 and 1, NaN where the 3x3x3
        neighbourhood makes it so.

    Raises:
        InputError: wrong rank or dtype.

    Source: Hatamizadeh et al. 2020, section 2.1.
    """
    check_volume("x", x, FLOATS)
    return torch.ops.egcnn.sobel_magnitude(x) if native(x) else reference.sobel_magnitude(x)


torch.library.define(
    "egcnn::sobel_edges", "(Tensor labels, int[] values, int[] counts, float threshold) -> Tensor"
)
torch.library.define("egcnn::sobel_magnitude", "(Tensor x) -> Tensor")
torch.library.define("egcnn::sobel_magnitude_backward", "(Tensor grad, Tensor x) -> Tensor")


def _empty_edges(labels: Tensor, counts: list[int]) -> Tensor:
    if not counts:
        return empty_like(labels, torch.uint8)
    shape = (labels.shape[0], len(counts), *labels.shape[2:])
    return torch.empty(shape, dtype=torch.uint8, device=labels.device)


@torch.library.register_fake("egcnn::sobel_edges")
def _(labels: Tensor, values: list[int], counts: list[int], threshold: float) -> Tensor:
    return _empty_edges(labels, counts)


@torch.library.impl("egcnn::sobel_edges", DEVICES)
def _(labels: Tensor, values: list[int], counts: list[int], threshold: float) -> Tensor:
    edges = _empty_edges(labels, counts)
    launch("sobel_edges", edges, values, counts, threshold, dense(labels), edges)
    return edges


@torch.library.register_fake("egcnn::sobel_magnitude")
def _(x: Tensor) -> Tensor:
    return empty_like(x)


@torch.library.impl("egcnn::sobel_magnitude", DEVICES)
def _(x: Tensor) -> Tensor:
    out = empty_like(x)
    launch("sobel_magnitude", x, dense(x), out)
    return out


@torch.library.register_fake("egcnn::sobel_magnitude_backward")
def _(grad: Tensor, x: Tensor) -> Tensor:
    return empty_like(x)


@torch.library.impl("egcnn::sobel_magnitude_backward", DEVICES)
def _(grad: Tensor, x: Tensor) -> Tensor:
    grad_x = empty_like(x)
    # The kernel traverses all three with the same strides.
    grad = grad.contiguous(memory_format=memory_format(x))
    launch("sobel_magnitude_backward", x, dense(x), grad, grad_x)
    return grad_x


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.ops.egcnn.sobel_magnitude_backward(grad, x)


register_autograd("sobel_magnitude", _setup_context, _backward)
register_no_second_derivative("sobel_magnitude")
