"""The losses of EG-CNN: Eqs. (3) to (8) of Hatamizadeh, Terzopoulos, Myronenko (2020)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egcnn import ops
from egcnn.errors import InputError
from egcnn.regions import Activation, Regions

Reduction = Literal["balanced", "sum", "mean"]
Support = Literal["gt", "both"]

_VOXELS = (2, 3, 4)


def _check(name: str, logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 5 or not logits.is_floating_point():
        raise InputError(
            f"{name}: logits are {logits.dtype} of shape {tuple(logits.shape)}; "
            "wanted floating point (B, R, D, H, W)"
        )
    if target.shape != logits.shape:
        raise InputError(
            f"{name}: the target has shape {tuple(target.shape)}; "
            f"wanted that of the logits, {tuple(logits.shape)}"
        )


def _accurate(logits: Tensor) -> Tensor:
    # Sums over a volume overflow float16 and stall in bfloat16.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _dice_loss(probabilities: Tensor, target: Tensor, eps: float) -> Tensor:
    """Eq. (4) per sample and region, ``(B, R)``."""
    overlap = (probabilities * target).sum(_VOXELS)
    sizes = probabilities.square().sum(_VOXELS) + target.square().sum(_VOXELS)
    return 1 - 2 * overlap / (sizes + eps)


class DiceLoss(nn.Module):
    """Dice loss with squared denominator, Eq. (4), per sample and region, then the mean.

    A region absent from a sample has loss 1 whatever is predicted, as Eq. (4) says, and no
    gradient.

    Args:
        activation: turns logits into probabilities: ``"softmax"`` over channels or ``"sigmoid"``.
        eps: keeps the denominator from 0.
        include_background: count channel 0 of a softmax as a region like the others.

    Raises:
        InputError: unknown activation; shapes or dtypes that do not fit.
    """

    def __init__(
        self, *, activation: Activation, eps: float = 1e-5, include_background: bool = True
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid"):
            raise InputError(
                f"DiceLoss: activation is {activation!r}; wanted 'softmax' or 'sigmoid'"
            )
        self.activation = activation
        self.eps = eps
        self.first = 1 if activation == "softmax" and not include_background else 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits and binary regions, both ``(B, R, D, H, W)``, to a scalar."""
        _check("DiceLoss", logits, target)
        z = _accurate(logits)
        p = z.softmax(1) if self.activation == "softmax" else z.sigmoid()
        return _dice_loss(p[:, self.first :], target[:, self.first :].to(p.dtype), self.eps).mean()


class EdgeLoss(nn.Module):
    """Edge loss, Eq. (5): ``lambda1 * Dice + lambda2 * balanced cross entropy`` (Eq. 6).

    Eq. (6) weighs each edge voxel by beta, the share of non-edge voxels, and each other voxel by
    1 - beta, per sample and region. Samples and regions are averaged.

    Args:
        lambda1: weight of the Dice loss, Eq. (4).
        lambda2: weight of the cross entropy.
        reduction: over voxels. ``"balanced"`` divides by the sum of the voxels' weights: ln 2 for
            logits 0, at any size; with ``weight_negatives`` it is half the mean over edge voxels
            plus half the mean over the others, and where one of the two sets is empty, its half is
            0. ``"sum"`` is Eq. (6) itself, ``"mean"`` Eq. (6) over the number of voxels.
        weight_negatives: False gives non-edge voxels the weight 1 instead of 1 - beta (the
            sentence after Eq. 6).
        eps: of the Dice loss.

    Raises:
        InputError: unknown reduction; shapes or dtypes that do not fit.
    """

    def __init__(
        self,
        *,
        lambda1: float = 1.0,
        lambda2: float = 0.5,
        reduction: Reduction = "balanced",
        weight_negatives: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if reduction not in ("balanced", "sum", "mean"):
            raise InputError(
                f"EdgeLoss: reduction is {reduction!r}; wanted 'balanced', 'sum' or 'mean'"
            )
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.reduction = reduction
        self.weight_negatives = weight_negatives
        self.eps = eps

    def forward(self, edge_logits: Tensor, edges: Tensor) -> Tensor:
        """Edge logits and binary edges, both ``(B, R, D, H, W)``, to a scalar."""
        _check("EdgeLoss", edge_logits, edges)
        z = _accurate(edge_logits)
        truth = edges.to(z.dtype)
        dice = _dice_loss(z.sigmoid(), truth, self.eps).mean()
        positive, negative = self._weights(truth)
        weight = torch.where(edges.bool(), positive, negative)
        entropy = F.binary_cross_entropy_with_logits(z, truth, weight, reduction="sum")
        return self.lambda1 * dice + self.lambda2 * entropy / (z.shape[0] * z.shape[1])

    def _weights(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of edge and of other voxels, each ``(B, R, 1, 1, 1)``."""
        voxels = truth[0, 0].numel()
        edge_voxels = truth.sum(_VOXELS, keepdim=True)
        other_voxels = voxels - edge_voxels
        if self.reduction == "balanced" and self.weight_negatives:
            # Eq. (6)'s ratio, written so that an empty set takes nothing from the other one.
            return 0.5 / edge_voxels.clamp(min=1), 0.5 / other_voxels.clamp(min=1)
        positive = other_voxels / voxels
        negative = 1 - positive if self.weight_negatives else torch.ones_like(positive)
        if self.reduction == "balanced":
            total = positive * edge_voxels + negative * other_voxels
            scale = torch.where(total > 0, total, 1)
        else:
            scale = torch.full_like(positive, voxels if self.reduction == "mean" else 1)
        return positive / scale, negative / scale


class ConsistencyLoss(nn.Module):
    """Consistency of predicted and true boundaries, Eqs. (7) and (8).

    Args:
        tau: temperature of the Gumbel-softmax.
        hard: straight-through sample (forward argmax, backward Eq. 8) instead of the soft one.
        activation: ``"softmax"`` over channels or ``"sigmoid"`` per region.
        support: voxels that count: the true edges (``"gt"``) or the predicted ones too
            (``"both"``).

    Raises:
        InputError: an option, shape or dtype that :func:`egcnn.ops.gumbel_consistency` rejects.
    """

    def __init__(
        self,
        *,
        activation: Activation,
        tau: float = 0.5,
        hard: bool = True,
        support: Support = "gt",
    ) -> None:
        super().__init__()
        self.activation = activation
        self.tau = tau
        self.hard = hard
        self.support = support

    def forward(self, logits: Tensor, target: Tensor, seed: Tensor | int | None = None) -> Tensor:
        """Logits ``(B, R, D, H, W)`` and truth to a scalar.

        Args:
            logits: ``(B, R, D, H, W)``.
            target: class indices ``(B, 1, D, H, W)`` for softmax, binary regions
                ``(B, R, D, H, W)`` for sigmoid.
            seed: of the noise; None draws one from torch's generator.
        """
        return ops.gumbel_consistency(
            logits,
            target,
            tau=self.tau,
            hard=self.hard,
            activation=self.activation,
            support=self.support,
            seed=seed,
        )


class EGCNNLoss(nn.Module):
    """Total loss, Eq. (3): semantic + consistency + edge.

    Args:
        regions: what the channels of the logits mean.
        semantic: weight of :class:`DiceLoss` on the logits.
        consistency: weight of :class:`ConsistencyLoss`; 0 leaves the term out.
        edge: weight of :class:`EdgeLoss`; 0 leaves the term out.
        include_background: see :class:`DiceLoss`.
        lambda1: see :class:`EdgeLoss`.
        lambda2: see :class:`EdgeLoss`.
        reduction: see :class:`EdgeLoss`.
        weight_negatives: see :class:`EdgeLoss`.
        tau: see :class:`ConsistencyLoss`.
        hard: see :class:`ConsistencyLoss`.
        support: see :class:`ConsistencyLoss`.
        edge_threshold: Sobel magnitude above which a voxel is an edge of the edge loss.
        eps: of both Dice losses.

    Raises:
        InputError: an option that one of the losses rejects; logits and labels that do not fit.
    """

    def __init__(
        self,
        regions: Regions,
        *,
        semantic: float = 1.0,
        consistency: float = 1.0,
        edge: float = 1.0,
        include_background: bool = True,
        lambda1: float = 1.0,
        lambda2: float = 0.5,
        reduction: Reduction = "balanced",
        weight_negatives: bool = False,
        tau: float = 0.5,
        hard: bool = True,
        support: Support = "gt",
        edge_threshold: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.edge_threshold = edge_threshold
        self.weights = {"semantic": semantic, "consistency": consistency, "edge": edge}
        self.semantic = DiceLoss(
            activation=regions.activation, eps=eps, include_background=include_background
        )
        self.consistency = ConsistencyLoss(
            activation=regions.activation, tau=tau, hard=hard, support=support
        )
        self.edge = EdgeLoss(
            lambda1=lambda1,
            lambda2=lambda2,
            reduction=reduction,
            weight_negatives=weight_negatives,
            eps=eps,
        )

    def forward(
        self,
        segmentation: tuple[Tensor, Tensor | None],
        labels: Tensor,
        seed: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The weighted sum as ``"loss"`` beside its unweighted terms.

        Args:
            segmentation: logits and edge logits, each ``(B, R, D, H, W)``, as
                :class:`egcnn.nn.Segmentation` holds them; edge logits ``(B, 1, D, H, W)`` are
                those of any region's edge; None (no edge stream) leaves the edge term out.
            labels: integer label map ``(B, 1, D, H, W)``.
            seed: of the consistency loss's noise; None draws one.

        Returns:
            Scalars ``"loss"``, ``"semantic"`` and, where they count, ``"consistency"``, ``"edge"``.
        """
        logits, edge_logits = segmentation
        if labels.ndim != 5 or labels.shape[1] != 1 or labels.is_floating_point():
            raise InputError(
                f"EGCNNLoss: labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                "wanted integers (B, 1, D, H, W)"
            )
        masks = self.regions.masks(labels)
        terms = {"semantic": self.semantic(logits, masks)}
        if self.weights["consistency"] != 0:
            softmax = self.regions.activation == "softmax"
            target = self.regions.classes(labels) if softmax else masks
            terms["consistency"] = self.consistency(logits, target, seed)
        if edge_logits is not None and self.weights["edge"] != 0:
            edges = ops.sobel_edges(masks, threshold=self.edge_threshold)
            if edge_logits.shape[1] == 1:
                edges = edges.amax(1, keepdim=True)
            terms["edge"] = self.edge(edge_logits, edges)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}
