"""The edge-gated layer: attention over the edge stream, with residual (Eqs. 1 and 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._backend import native
from egcnn.ops._tensors import (
    DEVICES,
    FLOATS,
    check_choice,
    check_like,
    check_volume,
    converted,
    dense,
    empty_gradients,
    empty_like,
    launch,
    register_autograd,
    register_no_second_derivative,
)

_ACTIVATIONS = ("relu_sigmoid", "sigmoid")


def edge_gate(
    e: Tensor,
    m: Tensor,
    weight_e: Tensor,
    weight_m: Tensor,
    bias: Tensor,
    *,
    activation: str = "relu_sigmoid",
) -> Tensor:
    """``alpha = sigmoid(relu(We·e + Wm·m + b))``, ``out = e * alpha + e``, in one pass.

    Args:
        e: edge stream ``(B, Ce, D, H, W)``, any float.
        m: main stream at the same resolution ``(B, Cm, D, H, W)``, with the dtype of ``e`` (under
            autocast any float: both are cast to the autocast dtype).
        weight_e: ``(G, Ce)``, where G is Ce (one attention value per channel) or 1 (one per voxel).
        weight_m: ``(G, Cm)``.
        bias: ``(G,)``. Weights and bias may have any float type; sums are computed in float32, or
            float64 if ``e`` is float64.
        activation: ``"relu_sigmoid"``, where alpha lies in [0.5, 1), or ``"sigmoid"``.

    Returns:
        The gated edge stream, with shape, dtype and layout of ``e``.

    Raises:
        InputError: shapes, dtypes or devices that do not go together, or an unknown activation.

    Source: Hatamizadeh et al. 2020, Eqs. 1 and 2.
    """
    e, m = checked_inputs(e, m, weight_e, weight_m, bias, activation)
    if not native(e):
        return reference.edge_gate(e, m, weight_e, weight_m, bias, activation)
    weights = converted(reference.accumulate_dtype(e.dtype), weight_e, weight_m, bias)
    return torch.ops.egcnn.edge_gate(e, m, *weights, activation == "relu_sigmoid")


def checked_inputs(
    e: Tensor,
    m: Tensor,
    weight_e: Tensor,
    weight_m: Tensor,
    bias: Tensor,
    activation: str,
    *,
    resampled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Both streams in one dtype, under autocast its own; of any two sizes if ``resampled``.

    Raises:
        InputError: as :func:`edge_gate`.
    """
    check_volume("e", e, FLOATS)
    check_volume("m", m, FLOATS)
    check_like("m", m, "e", e, resampled=resampled)
    check_choice("activation", activation, _ACTIVATIONS)
    channels_e, channels_m = e.shape[1], m.shape[1]
    gates = bias.shape[0] if bias.dim() == 1 else -1
    if gates not in (1, channels_e):
        raise InputError(
            f"bias has the shape {tuple(bias.shape)}; expected ({channels_e},) for one attention "
            "value per channel or (1,) for one per voxel"
        )
    for name, weight, channels in (("e", weight_e, channels_e), ("m", weight_m, channels_m)):
        if weight.shape != (gates, channels):
            raise InputError(
                f"weight_{name} has the shape {tuple(weight.shape)}; expected {(gates, channels)} "
                f"for {gates} attention values and the {channels} channels of {name}"
            )
    device = e.device
    for name, weight in (("weight_e", weight_e), ("weight_m", weight_m), ("bias", bias)):
        if weight.dtype not in FLOATS:
            raise InputError(f"{name} is {weight.dtype}; expected a float type")
        if weight.device != device:
            raise InputError(
                f"{name} is on {weight.device} and e on {device}; expected both on one device"
            )

    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        e, m = e.to(dtype), m.to(dtype)
    elif e.dtype != m.dtype:
        raise InputError(f"m is {m.dtype} and e {e.dtype}; expected one dtype")
    return e, m


def define_gate(name: str) -> None:
    """Define a gate's operator and its gradient ``NAME_backward``, but not who computes them."""
    inputs = "Tensor e, Tensor m, Tensor weight_e, Tensor weight_m, Tensor bias, bool relu"
    torch.library.define(f"egcnn::{name}", f"({inputs}) -> Tensor")
    torch.library.define(
        f"egcnn::{name}_backward",
        f"(Tensor grad, {inputs}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    gradient = getattr(torch.ops.egcnn, f"{name}_backward")

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.relu = inputs[5]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*gradient(grad, *ctx.saved_tensors, ctx.relu), None)

    torch.library.register_fake(f"egcnn::{name}_backward")(gate_gradients)
    register_autograd(name, setup_context, backward)
    register_no_second_derivative(name)


def gate_gradients(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Empty gradients of a gate's tensors."""
    return empty_gradients(inputs[:2], *inputs[2:5])


define_gate("edge_gate")


@torch.library.register_fake("egcnn::edge_gate")
def _(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return empty_like(e)


@torch.library.impl("egcnn::edge_gate", DEVICES)
def _(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor, relu: bool) -> Tensor:
    out = empty_like(e)
    launch("edge_gate", e, *_arguments(e, m, weight_e, weight_m, bias, relu), out)
    return out


def _arguments(e: Tensor, m: Tensor, *others: Any) -> tuple[Any, ...]:
    """Arguments that forward and backward share."""
    return (dense(e), dense(m), *weight_arguments(e, *others))


def weight_arguments(
    e: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor, relu: bool
) -> tuple[Any, ...]:
    """The kernels' arguments after both streams."""
    # The switch of torch's own float32 matrix products.
    tf32 = torch.get_float32_matmul_precision() != "highest"
    gates = 1 if bias.numel() == 1 else e.shape[1]
    weights = [w.contiguous() for w in (weight_e, weight_m, bias)]
    return (gates, *weights, relu, tf32)


@torch.library.impl("egcnn::edge_gate_backward", DEVICES)
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    gradients = gate_gradients(grad, *inputs)
    launch("edge_gate_backward", grad, *_arguments(*inputs), dense(grad), *gradients)
    return gradients
