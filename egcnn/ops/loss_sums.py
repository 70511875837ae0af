"""The sums of the total loss (Eq. 3), in one pass over the logits forward and one backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    class_indices,
    dense,
    empty_like,
    launch,
    region_masks,
    register_autograd,
    register_no_second_derivative,
)
from egcnn.ops.consistency import check_classes, check_tau, gumbel_consistency, seed_tensor
from egcnn.ops.region_sums import region_sums
from egcnn.ops.sobel_edges import check_threshold, region_lists, sobel_edges


class LossSums(NamedTuple):
    """What :func:`loss_sums` computes, float64 for float64 logits, else float32.

    Attributes:
        regions: of the logits over the regions, ``(B, R, 3)``; see :func:`region_sums`.
        edges: of the edge logits over the regions' edges, ``(B, R, 5)`` or ``(B, 1, 5)``.
        consistency: the consistency loss, a scalar; see :func:`gumbel_consistency`.
    """

    regions: Tensor
    edges: Tensor
    consistency: Tensor


def loss_sums(
    logits: Tensor,
    edge_logits: Tensor,
    labels: Tensor,
    regions: Sequence[Sequence[int]] | None = None,
    *,
    activation: str,
    threshold: float = 0.0,
    tau: float = 0.5,
    hard: bool = True,
    seed: Tensor | int | None = None,
) -> LossSums:
    """The sums of the Dice loss, the edge loss and the consistency loss, Eqs. 4 to 8, at once.

    The same as :func:`region_sums` of the logits, :func:`gumbel_consistency`, and
    :func:`region_sums` of the edge logits with the :func:`sobel_edges` as the target, to rounding.
    On the CPU one pass over logits, edge logits and labels forward, and one backward, which writes
    each gradient once; no mask, no edge and no probability is written or kept.

    Args:
        logits: ``(B, R, D, H, W)``, any float.
        edge_logits: of the same type and shape, or ``(B, 1, D, H, W)`` for the edges of any region.
        labels: a label map, integer ``(B, 1, D, H, W)``; without ``regions`` the regions themselves
            ``(B, R, D, H, W)``, bool or integer (0 is outside, all else inside), for
            ``"sigmoid"``.
        regions: the label values of each region or class; a voxel of another value is in none.
        activation: ``"softmax"`` for exclusive classes, which share no value, or ``"sigmoid"``.
        threshold: Sobel magnitude above which a voxel is an edge of the edge logits.
        tau: temperature of the consistency loss, positive.
        hard: whether its sample is straight-through.
        seed: of its noise, or one per sample; see :func:`gumbel_consistency`.

    Raises:
        InputError: shapes, dtypes or devices that do not go together, or an invalid option.

    Source: Hatamizadeh et al. 2020, Eqs. 3 to 8.
    """
    check_volume("logits", logits, FLOATS)
    channels = logits.shape[1]
    check_volume("edge_logits", edge_logits, (logits.dtype,))
    if edge_logits.shape[1] not in (1, channels):
        raise InputError(
            f"edge_logits has {edge_logits.shape[1]} channels; expected {channels}, or 1 for the "
            "edges of any region"
        )
    check_like("edge_logits", edge_logits, "logits", logits)
    check_choice("activation", activation, ("softmax", "sigmoid"))
    if activation == "softmax":
        check_classes(logits)
    if regions is None and activation == "softmax":
        raise InputError("regions is None; expected the label values of each class with softmax")
    if regions is not None and (len(regions) != channels or not all(map(len, regions))):
        raise InputError(
            f"regions is {regions!r}; expected label values for each of the {channels} channels of "
            "logits"
        )
    types = (torch.bool, *INTEGERS)
    check_volume("labels", labels, types, channels=channels if regions is None else 1)
    check_like("labels", labels, "logits", logits)
    check_threshold(threshold)
    check_tau(tau)
    seeds = seed_tensor(seed, logits.shape[0], logits.device)
    # Only the CPU's kernels do it at once.
    if not native(logits) or kernels_name(logits.device.type) == "cuda" or logits.numel() == 0:
        return _one_by_one(
            logits, edge_logits, labels, regions, activation, threshold, tau, hard, seeds
        )
    softmax = activation == "softmax"
    options = (softmax, *region_lists(regions), float(tau), hard, float(threshold))
    sums, edge_sums, consistency, _ = torch.ops.egcnn.loss_sums(
        logits, edge_logits, labels, seeds, *options
    )
    return LossSums(sums, edge_sums, consistency)


def _one_by_one(
    logits: Tensor,
    edge_logits: Tensor,
    labels: Tensor,
    regions: Sequence[Sequence[int]] | None,
    activation: str,
    threshold: float,
    tau: float,
    hard: bool,
    seeds: Tensor,
) -> LossSums:
    """:func:`loss_sums` by the operators for each of its sums."""
    channels = logits.shape[1]
    if regions is None:
        masks, target = labels != 0, labels
    else:
        masks = region_masks(labels, regions)
        softmax = activation == "softmax"
        target = class_indices(labels, regions, other=channels) if softmax else masks
    edges = sobel_edges(masks, threshold=threshold)
    if edge_logits.shape[1] < channels:
        edges = edges.amax(1, keepdim=True)
    return LossSums(
        region_sums(logits, masks, activation=activation),
        region_sums(edge_logits, edges.view(torch.bool), activation="sigmoid", entropy=True),
        gumbel_consistency(logits, target, tau=tau, hard=hard, activation=activation, seed=seeds),
    )


# Forward also returns the number of edges of each sample and region, (B, R), which scales
# backward's gradients.
_INPUTS = (
    "Tensor logits, Tensor edge_logits, Tensor labels, Tensor seeds, "
    "bool softmax, int[] values, int[] counts, float tau, bool hard, float threshold"
)
torch.library.define(
    "egcnn::loss_sums",
    f"({_INPUTS}) -> (Tensor sums, Tensor edge_sums, Tensor consistency, Tensor edges)",
)
torch.library.define(
    "egcnn::loss_sums_backward",
    "(Tensor grad_sums, Tensor grad_edge_sums, Tensor grad_consistency, Tensor edges, "
    f"{_INPUTS}) -> (Tensor grad_logits, Tensor grad_edge_logits)",
)


def _arguments(
    edges: Tensor,
    logits: Tensor,
    edge_logits: Tensor,
    labels: Tensor,
    seeds: Tensor,
    softmax: bool,
    values: list[int],
    counts: list[int],
    tau: float,
    hard: bool,
    threshold: float,
) -> tuple[Any, ...]:
    """Arguments that forward and backward share."""
    volumes = (dense(logits), dense(edge_logits), softmax, values, counts, dense(labels))
    return (*volumes, tau, hard, threshold, seeds.numel() > 1, seeds, edges)


@torch.library.register_fake("egcnn::loss_sums")
def _results(logits: Tensor, edge_logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(
            shape, dtype=reference.accumulate_dtype(logits.dtype), device=logits.device
        )

    edges = torch.empty(logits.shape[:2], dtype=torch.int64, device=logits.device)
    return empty(*logits.shape[:2], 3), empty(*edge_logits.shape[:2], 5), empty(), edges


@torch.library.impl("egcnn::loss_sums", DEVICES)
def _(logits: Tensor, edge_logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums, edge_sums, consistency, edges = _results(logits, edge_logits)
    arguments = _arguments(edges, logits, edge_logits, *others)
    launch("loss_sums", logits, *arguments, consistency, sums, edge_sums)
    return sums, edge_sums, consistency, edges


@torch.library.register_fake("egcnn::loss_sums_backward")
def _(
    grad_sums: Tensor,
    grad_edge_sums: Tensor,
    grad_consistency: Tensor,
    edges: Tensor,
    logits: Tensor,
    edge_logits: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    return empty_like(logits), empty_like(edge_logits)


@torch.library.impl("egcnn::loss_sums_backward", DEVICES)
def _(
    grad_sums: Tensor, grad_edge_sums: Tensor, grad_consistency: Tensor, edges: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    grad_logits, grad_edge_logits = (empty_like(tensor) for tensor in inputs[:2])
    grads = (grad_consistency, grad_sums.contiguous(), grad_edge_sums.contiguous())
    arguments = (*_arguments(edges, *inputs), *grads, grad_logits, grad_edge_logits)
    launch("loss_sums_backward", inputs[0], *arguments)
    return grad_logits, grad_edge_logits


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[3], *inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.egcnn.loss_sums_backward(*grads[:3], *ctx.saved_tensors, *ctx.options)
    return (*gradients, *(None,) * 8)


register_autograd("loss_sums", _setup_context, _backward)
register_no_second_derivative("loss_sums")
