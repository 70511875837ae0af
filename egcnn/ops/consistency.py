"""The consistency loss: Gumbel-softmax gradient magnitude against the truth's (Eqs. 7 and 8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._backend import kernels_name, native
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

#: Exclusive classes that :func:`gumbel_consistency` takes: its kernels hold a class in a byte.
MOST_CLASSES = 255


def gumbel_consistency(
    logits: Tensor,
    target: Tensor,
    *,
    tau: float = 0.5,
    hard: bool = True,
    activation: str = "softmax",
    support: str = "gt",
    seed: Tensor | int | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Mean over edge voxels of ``| ‖∇p‖ - ‖∇y‖ |``, p a Gumbel-softmax sample of the logits.

    The gradient magnitude is that of :func:`egcnn.ops.sobel_magnitude`. The mean is taken over the
    edges of each sample and region, then over samples and regions; a region without an edge
    contributes 0.

    Args:
        logits: ``(B, C, D, H, W)``, any float; at most 255 channels for ``softmax``.
        target: for ``softmax`` the class of each voxel, integer ``(B, 1, D, H, W)``; values outside
            0 to C - 1, such as 255 or -1, are no class, and their border is an edge of the class
            beside it; for ``sigmoid`` binary regions ``(B, C, D, H, W)``, bool, integer or float
            (inside where above one half).
        tau: temperature, positive.
        hard: straight-through: the sample's value is its argmax, its gradient that of the soft
            sample (Eq. 8). Else the soft sample itself.
        activation: ``"softmax"`` for exclusive classes, ``"sigmoid"`` for regions that may overlap
            (the two-class form, with logistic noise).
        support: the voxels of the mean: ``"gt"``, edges of the truth, or ``"both"``, edges of the
            truth or of the hard sample.
        seed: an int, or an int64 tensor on the device of the logits: the same seed gives the same
            noise on every device. Of one element it is the batch's; of B elements each is the seed
            of a sample, which then draws the same in any batch and at any place in it. None draws
            one from torch's generator.
        ignored: bool ``(B, 1, D, H, W)``, the voxels that were not annotated: no voxel with one in
            its 3x3x3 neighbourhood is an edge. Where there are any, the reference serves.

    Returns:
        The loss, a scalar: float64 for float64 logits, else float32. NaN where a logit in the
        3x3x3 neighbourhood of an edge is, and so is the gradient of that voxel's logits.

    Raises:
        InputError: shapes, dtypes or devices that do not go together, more than 255 exclusive
            classes, or an unknown option.

    Source: Hatamizadeh et al. 2020, Eqs. 7 and 8; Jang et al. 2016.
    """
    check_volume("logits", logits, FLOATS)
    check_choice("activation", activation, ("softmax", "sigmoid"))
    check_choice("support", support, ("gt", "both"))
    if activation == "softmax":
        check_volume("target", target, (torch.bool, *INTEGERS), channels=1)
        check_classes(logits)
    else:
        check_volume("target", target, (torch.bool, *INTEGERS, *FLOATS), channels=logits.shape[1])
        if target.is_floating_point():
            target = target > 0.5
    check_like("target", target, "logits", logits)
    check_tau(tau)
    seeds = seed_tensor(seed, logits.shape[0], logits.device)
    options = (float(tau), hard, activation, support)
    if ignored is not None:
        check_volume("ignored", ignored, (torch.bool,), channels=1)
        check_like("ignored", ignored, "logits", logits)
        if not ignored.any():
            ignored = None
    if seeds.numel() == 1:
        return _loss(logits, target, seeds, ignored, options)
    # The mean over samples. Pieces of one split have their gradients joined in one pass.
    samples = zip(
        logits.split(1),
        target.split(1),
        seeds.split(1),
        [None] * len(seeds) if ignored is None else ignored.split(1),
        strict=True,
    )
    return torch.stack([_loss(*sample, options) for sample in samples]).mean()


def _loss(
    logits: Tensor,
    target: Tensor,
    seed: Tensor,
    ignored: Tensor | None,
    options: tuple[float, bool, str, str],
) -> Tensor:
    """The loss of checked arguments."""
    if ignored is not None:
        return reference.gumbel_consistency(logits, target, seed, *options, ignored=ignored)
    if native(logits):
        return torch.ops.egcnn.gumbel_consistency(logits, target, seed, *options)[0]
    return reference.gumbel_consistency(logits, target, seed, *options)


def check_tau(tau: float) -> None:
    """Raise InputError unless ``tau`` is a temperature."""
    if not tau > 0:
        raise InputError(f"tau is {tau}; expected a temperature above 0")


def check_classes(logits: Tensor) -> None:
    """Raise :class:`InputError` if there are more exclusive classes than the kernels take."""
    if logits.shape[1] > MOST_CLASSES:
        raise InputError(
            f"logits has {logits.shape[1]} channels; expected at most {MOST_CLASSES} exclusive "
            "classes"
        )


def seed_tensor(seed: Tensor | int | None, samples: int, device: torch.device) -> Tensor:
    """The seed, or one per sample, as an int64 tensor on a device; None draws one."""
    if seed is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        return torch.full((), seed, dtype=torch.int64, device=device)
    fits = seed.numel() == 1 or (seed.numel() > 0 and seed.shape == (samples,))
    if seed.dtype != torch.int64 or not fits or seed.device != device:
        raise InputError(
            f"seed is {seed.dtype} of shape {tuple(seed.shape)} on {seed.device}; "
            f"expected one int64 element, or {samples}, on {device}"
        )
    return seed


# Forward also returns the number of edges of each sample and class, (B, C): it scales the
# gradients, and backward would otherwise need a pass of its own to count them. On CUDA it also
# keeps where edges may be, one bit a voxel, so that backward need not search the target again.
_OPTIONS = "float tau, bool hard, str activation, str support"
torch.library.define(
    "egcnn::gumbel_consistency",
    f"(Tensor logits, Tensor target, Tensor seed, {_OPTIONS}) "
    "-> (Tensor loss, Tensor edges, Tensor candidates)",
)
torch.library.define(
    "egcnn::gumbel_consistency_backward",
    "(Tensor grad, Tensor logits, Tensor target, Tensor seed, Tensor edges, Tensor candidates, "
    f"{_OPTIONS}) -> Tensor",
)


def _arguments(
    logits: Tensor,
    target: Tensor,
    seed: Tensor,
    edges: Tensor,
    candidates: Tensor,
    tau: float,
    hard: bool,
    activation: str,
    support: str,
) -> tuple[Any, ...]:
    """Arguments that forward and backward share."""
    options = (activation == "softmax", support == "both", tau, hard)
    return (dense(logits), *options, dense(target), seed, edges, candidates)


@torch.library.register_fake("egcnn::gumbel_consistency")
def _results(logits: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    device = logits.device
    loss = torch.empty((), dtype=reference.accumulate_dtype(logits.dtype), device=device)
    edges = torch.empty(logits.shape[:2], dtype=torch.int64, device=device)
    batch, volumes, depth, height, width = target.shape
    words = (width + 31) // 32 if kernels_name(device.type) == "cuda" else 0
    shape = (batch * volumes, depth, height, words)
    return loss, edges, torch.empty(shape, dtype=torch.int32, device=device)


@torch.library.impl("egcnn::gumbel_consistency", DEVICES)
def _(logits: Tensor, target: Tensor, seed: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, edges, candidates = _results(logits, target)
    arguments = _arguments(logits, target, seed, edges, candidates, *options)
    launch("consistency", logits, *arguments, loss)
    return loss, edges, candidates


@torch.library.register_fake("egcnn::gumbel_consistency_backward")
def _(grad: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return empty_like(logits)


@torch.library.impl("egcnn::gumbel_consistency_backward", DEVICES)
def _(grad: Tensor, logits: Tensor, *others: Any) -> Tensor:
    grad_logits = empty_like(logits)
    launch("consistency_backward", logits, *_arguments(logits, *others), grad, grad_logits)
    return grad_logits


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    gradient = torch.ops.egcnn.gumbel_consistency_backward(grad, *ctx.saved_tensors, *ctx.options)
    return (gradient, *(None,) * 6)


register_autograd("gumbel_consistency", _setup_context, _backward)
register_no_second_derivative("gumbel_consistency")
