"""The sums over voxels that the Dice loss and the balanced cross entropy are made of."""

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
    INTEGERS,
    check_choice,
    check_like,
    check_volume,
    dense,
    empty_like,
    launch,
    register_autograd,
    register_no_second_derivative,
)

# A value of the target whose voxels count in no sum.
_UNCOUNTED = 2


def region_sums(
    logits: Tensor,
    target: Tensor,
    *,
    activation: str,
    entropy: bool = False,
    ignored: Tensor | None = None,
) -> Tensor:
    """Sums over the voxels, from which the losses of Eqs. 4 to 6 follow by arithmetic on scalars.

    With probabilities ``p`` and the truth ``y``, of each sample and region: the sums of ``p y``,
    ``p²`` and ``y²``, and with ``entropy`` also of ``-y log p`` and ``-(1 - y) log(1 - p)``. One
    pass over the logits forward, one backward, and nothing is kept between but logits and regions.

    Args:
        logits: ``(B, R, D, H, W)``, any float.
        target: regions of the same shape: bool or integer (0 is outside, all else inside), or any
            float, for which the reference serves.
        activation: ``"softmax"`` over channels or ``"sigmoid"``.
        entropy: whether to add up the cross entropies too; for ``"sigmoid"`` only.
        ignored: bool ``(B, 1, D, H, W)``, voxels that do not count.

    Returns:
        The sums ``(B, R, 3)``, or ``(B, R, 5)`` with ``entropy``: float64 for float64 logits, else
        float32.

    Raises:
        InputError: shapes, dtypes or devices that do not go together, or an unknown option.

    Source: Hatamizadeh et al. 2020, Eqs. 4 to 6.
    """
    check_volume("logits", logits, FLOATS)
    check_volume("target", target, (torch.bool, *INTEGERS, *FLOATS), channels=logits.shape[1])
    check_like("target", target, "logits", logits)
    check_choice("activation", activation, ("softmax", "sigmoid"))
    if entropy and activation == "softmax":
        raise InputError("entropy is True; expected False with softmax, whose entropy it is not")
    if ignored is not None:
        check_volume("ignored", ignored, (torch.bool,), channels=1)
        check_like("ignored", ignored, "logits", logits)
    if target.is_floating_point() or not native(logits):
        return reference.region_sums(logits, target, activation, entropy, ignored)
    if target.dtype != torch.bool:
        target = target != 0
    if ignored is not None:
        target = target.to(torch.uint8).masked_fill_(ignored, _UNCOUNTED)
    return torch.ops.egcnn.region_sums(logits, target, activation == "softmax", entropy)


_INPUTS = "Tensor logits, Tensor target, bool softmax, bool entropy"
torch.library.define("egcnn::region_sums", f"({_INPUTS}) -> Tensor")
torch.library.define("egcnn::region_sums_backward", f"(Tensor grad, {_INPUTS}) -> Tensor")


@torch.library.register_fake("egcnn::region_sums")
def _empty_sums(logits: Tensor, target: Tensor, softmax: bool, entropy: bool) -> Tensor:
    dtype = reference.accumulate_dtype(logits.dtype)
    return torch.empty(*logits.shape[:2], 5 if entropy else 3, dtype=dtype, device=logits.device)


@torch.library.impl("egcnn::region_sums", DEVICES)
def _(logits: Tensor, target: Tensor, softmax: bool, entropy: bool) -> Tensor:
    sums = _empty_sums(logits, target, softmax, entropy)
    launch("region_sums", logits, dense(logits), dense(target), softmax, entropy, sums)
    return sums


@torch.library.register_fake("egcnn::region_sums_backward")
def _(grad: Tensor, logits: Tensor, target: Tensor, softmax: bool, entropy: bool) -> Tensor:
    return empty_like(logits)


@torch.library.impl("egcnn::region_sums_backward", DEVICES)
def _(grad: Tensor, logits: Tensor, target: Tensor, softmax: bool, entropy: bool) -> Tensor:
    grad_logits = empty_like(logits)
    inputs = (dense(logits), dense(target), softmax, entropy)
    launch("region_sums_backward", logits, *inputs, grad.contiguous(), grad_logits)
    return grad_logits


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.egcnn.region_sums_backward(grad, *ctx.saved_tensors, *ctx.options)
    return (grad_logits, None, None, None)


register_autograd("region_sums", _setup_context, _backward)
register_no_second_derivative("region_sums")
