"""The edge-gated layer with the edge stream at another resolution, interpolated on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcnn.ops import reference
from egcnn.ops._backend import native
from egcnn.ops._tensors import (
    DEVICES,
    converted,
    dense,
    launch,
    memory_format,
)
from egcnn.ops.edge_gate import (
    checked_inputs,
    define_gate,
    edge_gate,
    gate_gradients,
    weight_arguments,
)


def edge_gate_upsampled(
    e: Tensor,
    m: Tensor,
    weight_e: Tensor,
    weight_m: Tensor,
    bias: Tensor,
    *,
    activation: str = "relu_sigmoid",
) -> Tensor:
    """``edge_gate(up(e), m, ...)``, where ``up`` is trilinear interpolation to the size of ``m``.

    The interpolation is that of :func:`torch.nn.functional.interpolate` with
    ``align_corners=False``, to a larger or a smaller volume. Its result is neither written nor
    kept: it is computed on the way, in the accumulation type, and again in the backward pass.

    Args:
        e: edge stream ``(B, Ce, d, h, w)``, any float.
        m: main stream ``(B, Cm, D, H, W)``, with the dtype of ``e`` (under autocast any float:
            both are cast to the autocast dtype).
        weight_e: as in :func:`edge_gate`.
        weight_m: as in :func:`edge_gate`.
        bias: as in :func:`edge_gate`.
        activation: as in :func:`edge_gate`.

    Returns:
        The gated edge stream ``(B, Ce, D, H, W)``, with the dtype of ``e`` and the layout of ``m``
        (of ``e`` if both have one size).

    Raises:
        InputError: as :func:`edge_gate`; and for a volume without voxels, unless both have one
            size.

    Source: Hatamizadeh et al. 2020, Figure 1, Eqs. 1 and 2.
    """
    inputs = (e, m, weight_e, weight_m, bias)
    if isinstance(e, Tensor) and isinstance(m, Tensor) and e.shape[2:] == m.shape[2:]:
        return edge_gate(*inputs, activation=activation)
    e, m = checked_inputs(*inputs, activation, resampled=True)
    if not native(e):
        return reference.edge_gate_upsampled(e, m, weight_e, weight_m, bias, activation)
    weights = converted(reference.accumulate_dtype(e.dtype), weight_e, weight_m, bias)
    return torch.ops.egcnn.edge_gate_upsampled(e, m, *weights, activation == "relu_sigmoid")


define_gate("edge_gate_upsampled")


def _empty_output(e: Tensor, m: Tensor) -> Tensor:
    return torch.empty(
        (*e.shape[:2], *m.shape[2:]),
        dtype=e.dtype,
        device=e.device,
        memory_format=memory_format(m),
    )


@torch.library.register_fake("egcnn::edge_gate_upsampled")
def _(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return _empty_output(e, m)


@torch.library.impl("egcnn::edge_gate_upsampled", DEVICES)
def _(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor, relu: bool) -> Tensor:
    out = _empty_output(e, m)
    launch("edge_gate_upsampled", out, *_arguments(e, m, weight_e, weight_m, bias, relu), out)
    return out


def _arguments(e: Tensor, m: Tensor, *others: Any) -> tuple[Any, ...]:
    """Arguments that forward and backward share; m comes first, since it has the output's size."""
    return (dense(m), dense(e), *weight_arguments(e, *others))


@torch.library.impl("egcnn::edge_gate_upsampled_backward", DEVICES)
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    gradients = gate_gradients(grad, *inputs)
    arguments = (*_arguments(*inputs), dense(grad), *gradients)
    launch("edge_gate_upsampled_backward", grad, *arguments)
    return gradients
