"""GroupNorm with ReLU (Wu and He, 2018)."""

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
    check_volume,
    converted,
    dense,
    empty_gradients,
    empty_like,
    launch,
    memory_format,
    register_autograd,
    register_no_second_derivative,
)


def group_norm_relu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """``relu((x - mean) / sqrt(variance + eps) * weight + bias)``, moments per sample and group.

    What :func:`torch.nn.functional.group_norm` and ``relu`` compute, one value per group included,
    in the least number of passes; backward keeps ``x`` and the moments alone.

    Args:
        x: ``(B, C, D, H, W)``, any float. Autocast does not change it.
        groups: a divisor of C; each group has C / groups channels.
        weight: ``(C,)``, any float type; sums are computed in float32, or float64 if ``x`` is
            float64.
        bias: ``(C,)``.
        eps: added to the variance.

    Returns:
        The normalised, rectified ``x``, with its shape, dtype and layout.

    Raises:
        InputError: shapes, dtypes or devices that do not go together.

    Source: Wu and He 2018, arXiv 1803.08494.
    """
    check_volume("x", x, FLOATS)
    channels = x.shape[1]
    if groups < 1 or channels % groups != 0:
        raise InputError(f"groups is {groups}; expected a divisor of the {channels} channels of x")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter.shape != (channels,):
            raise InputError(
                f"{name} has the shape {tuple(parameter.shape)}; expected ({channels},), as x has "
                "channels"
            )
        if parameter.dtype not in FLOATS:
            raise InputError(f"{name} is {parameter.dtype}; expected a float type")
        if parameter.device != x.device:
            raise InputError(
                f"{name} is on {parameter.device} and x on {x.device}; expected both on one device"
            )
    if not native(x):
        return reference.group_norm_relu(x, groups, weight, bias, eps)
    weight, bias = converted(reference.accumulate_dtype(x.dtype), weight, bias)
    return torch.ops.egcnn.group_norm_relu(x, weight, bias, groups, eps)[0]


# Forward also returns the moments of each sample and group, (B, groups), for backward.
torch.library.define(
    "egcnn::group_norm_relu",
    "(Tensor x, Tensor weight, Tensor bias, int groups, float eps)"
    " -> (Tensor out, Tensor mean, Tensor rstd)",
)
torch.library.define(
    "egcnn::group_norm_relu_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, int groups)"
    " -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("egcnn::group_norm_relu")
def _results(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    moments = [weight.new_empty((x.shape[0], groups)) for _ in range(2)]
    return empty_like(x), moments[0], moments[1]


@torch.library.impl("egcnn::group_norm_relu", DEVICES)
def _(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, rstd = _results(x, weight, bias, groups, eps)
    parameters = (weight.contiguous(), bias.contiguous(), mean, rstd)
    launch("group_norm_relu", x, dense(x), groups, *parameters, eps, out)
    return out, mean, rstd


@torch.library.register_fake("egcnn::group_norm_relu_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return empty_gradients((x,), weight, bias)


@torch.library.impl("egcnn::group_norm_relu_backward", DEVICES)
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, ...]:
    gradients = empty_gradients((x,), weight, bias)
    # The kernel traverses all three volumes with the same strides.
    grad = grad.contiguous(memory_format=memory_format(x))
    parameters = (weight.contiguous(), bias.contiguous(), mean, rstd)
    launch("group_norm_relu_backward", x, dense(x), groups, *parameters, grad, *gradients)
    return gradients


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.groups = inputs[3]


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.egcnn.group_norm_relu_backward(grad, *ctx.saved_tensors, ctx.groups)
    return (*gradients, None, None)


register_autograd("group_norm_relu", _setup_context, _backward)
register_no_second_derivative("group_norm_relu")
