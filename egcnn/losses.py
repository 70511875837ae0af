"""The losses of EG-CNN: Eqs. (3) to (8) of Hatamizadeh, Terzopoulos, Myronenko (2020)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egcnn import ops
from egcnn.checks import check_temperature
from egcnn.errors import InputError
from egcnn.ops.reference import near
from egcnn.regions import Activation, Regions, check_activation
from egcnn.settings import Settings

Reduction = Literal["balanced", "sum", "mean"]
Support = Literal["gt", "both"]

_VOXELS = (2, 3, 4)


@dataclass(frozen=True)
class DiceSettings(Settings):
    """The Dice loss, Eq. (4).

    Args:
        include_background: count channel 0 of a softmax as a region like the others.
        eps: added to the denominator, which could be 0.
    """

    include_background: bool = True
    eps: float = 1e-5


@dataclass(frozen=True)
class EdgeLossSettings(Settings):
    """The edge loss, Eqs. (5) and (6).

    Args:
        lambda1: weight of the Dice loss, Eq. (4).
        lambda2: weight of the cross entropy.
        reduction: over voxels. ``"balanced"`` divides by the sum of the voxels' weights: ln 2 for
            logits 0, at any size; with ``weight_negatives`` it is half the mean over edge voxels
            plus half the mean over the others, and where one of the two sets is empty, its half is
            0. ``"sum"`` is Eq. (6) itself, ``"mean"`` Eq. (6) over the number of voxels.
        weight_negatives: False gives non-edge voxels the weight 1 instead of 1 - beta (the
            sentence after Eq. 6).
        eps: ``eps`` of the Dice loss.
    """

    lambda1: float = 1.0
    lambda2: float = 0.5
    reduction: Reduction = "balanced"
    weight_negatives: bool = False
    eps: float = 1e-5


@dataclass(frozen=True)
class ConsistencySettings(Settings):
    """The consistency loss, Eqs. (7) and (8).

    Args:
        tau: temperature of the Gumbel-softmax.
        hard: straight-through sample (forward argmax, backward Eq. 8) instead of the soft one.
        support: voxels that count: the true edges (``"gt"``), or the true and the predicted edges
            (``"both"``).

    Raises:
        InputError: an unknown support, or a temperature that is not above 0.
    """

    tau: float = 0.5
    hard: bool = True
    support: Support = "gt"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature("tau", self.tau)


@dataclass(frozen=True)
class LossSettings(Settings):
    """The total loss, Eq. (3).

    Args:
        semantic_weight: weight of the Dice loss on the logits.
        consistency_weight: weight of the consistency loss; None means 1 with an edge stream and 0
            without.
        edge_weight: weight of the edge loss.
        edge_threshold: Sobel magnitude above which a voxel is an edge in the target of the edge
            loss.
        dice: the Dice loss on the logits.
        consistency: the consistency loss.
        edge: the edge loss.
    """

    semantic_weight: float = 1.0
    consistency_weight: float | None = None
    edge_weight: float = 1.0
    edge_threshold: float = 0.0
    dice: DiceSettings = field(default_factory=DiceSettings)
    consistency: ConsistencySettings = field(default_factory=ConsistencySettings)
    edge: EdgeLossSettings = field(default_factory=EdgeLossSettings)

    def weights(self, edge_stream: bool) -> dict[str, float]:
        """The weight of each term.

        Args:
            edge_stream: whether the network has an edge stream.
        """
        consistency = self.consistency_weight
        return {
            "semantic": self.semantic_weight,
            "consistency": float(edge_stream) if consistency is None else consistency,
            "edge": self.edge_weight if edge_stream else 0.0,
        }


def _check(name: str, logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 5 or not logits.is_floating_point():
        raise InputError(
            f"{name}: logits are {logits.dtype} of shape {tuple(logits.shape)}; "
            "expected floating point (B, R, D, H, W)"
        )
    if target.shape != logits.shape:
        raise InputError(
            f"{name}: the target has shape {tuple(target.shape)}; "
            f"expected that of the logits, {tuple(logits.shape)}"
        )


def _dice_losses(sums: Tensor, eps: float) -> Tensor:
    """Eq. (4) per sample and region, ``(B, R)``, from :func:`egcnn.ops.region_sums`."""
    overlap, squares, truth = sums[..., :3].unbind(-1)
    return 1 - 2 * overlap / (squares + truth + eps)


class DiceLoss(nn.Module):
    """Dice loss with squared denominator, Eq. (4), per sample and region, then the mean.

    As in Eq. (4), a region absent from a sample has loss 1 and no gradient, whatever is predicted.

    Args:
        activation: turns logits into probabilities: ``"softmax"`` over channels or ``"sigmoid"``.
        settings: background and eps.
        options: fields of :class:`DiceSettings` by keyword.

    Raises:
        InputError: unknown activation, invalid settings, or shapes or dtypes that do not fit.
    """

    def __init__(
        self, settings: DiceSettings | None = None, *, activation: Activation, **options: Any
    ) -> None:
        super().__init__()
        check_activation("DiceLoss", activation)
        self.activation = activation
        settings = DiceSettings.resolve(settings, options)
        self.eps = settings.eps
        self.first = 1 if activation == "softmax" and not settings.include_background else 0

    def forward(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        """The loss of logits and binary regions, both ``(B, R, D, H, W)``, as a scalar.

        Voxels of ``ignored``, bool ``(B, 1, D, H, W)``, do not count.
        """
        _check("DiceLoss", logits, target)
        sums = ops.region_sums(logits, target, activation=self.activation, ignored=ignored)
        return self.of_sums(sums)

    def of_sums(self, sums: Tensor) -> Tensor:
        """The loss from the sums ``(B, R, 3)`` of :func:`egcnn.ops.region_sums`."""
        return _dice_losses(sums[:, self.first :], self.eps).mean()


class EdgeLoss(nn.Module):
    """Edge loss, Eq. (5): ``lambda1 * Dice + lambda2 * balanced cross entropy`` (Eq. 6).

    Eq. (6) weighs each edge voxel by beta, the share of non-edge voxels, and each other voxel by
    1 - beta, per sample and region. Samples and regions are averaged.

    Args:
        settings: weights and reduction.
        options: fields of :class:`EdgeLossSettings` by keyword.

    Raises:
        InputError: invalid settings, or shapes or dtypes that do not fit.
    """

    def __init__(self, settings: EdgeLossSettings | None = None, **options: Any) -> None:
        super().__init__()
        self.settings = EdgeLossSettings.resolve(settings, options)

    def forward(self, edge_logits: Tensor, edges: Tensor, ignored: Tensor | None = None) -> Tensor:
        """The loss of edge logits and binary edges, both ``(B, R, D, H, W)``, as a scalar.

        Voxels of ``ignored``, bool ``(B, 1, D, H, W)``, and those beside them, whose edges are not
        known, do not count.
        """
        _check("EdgeLoss", edge_logits, edges)
        voxels: Tensor | int = edges[0, 0].numel()
        if ignored is not None:
            ignored = near(ignored)
            voxels = (voxels - ignored.sum(_VOXELS)).clamp(min=1)
        sums = ops.region_sums(
            edge_logits, edges, activation="sigmoid", entropy=True, ignored=ignored
        )
        return self.of_sums(sums, voxels)

    def of_sums(self, sums: Tensor, voxels: Tensor | int) -> Tensor:
        """The loss from the sums ``(B, R, 5)`` of :func:`egcnn.ops.region_sums` over voxels."""
        dice = _dice_losses(sums, self.settings.eps).mean()
        edge_voxels, inside, outside = sums[..., 2:].unbind(-1)
        positive, negative = self._weights(edge_voxels, voxels)
        entropy = (positive * inside + negative * outside).mean()
        return self.settings.lambda1 * dice + self.settings.lambda2 * entropy

    def _weights(self, edge_voxels: Tensor, voxels: Tensor | int) -> tuple[Tensor, Tensor]:
        """The weights of edge voxels and of the other voxels, each ``(B, R)``."""
        reduction, weight_negatives = self.settings.reduction, self.settings.weight_negatives
        other_voxels = voxels - edge_voxels
        if reduction == "balanced" and weight_negatives:
            # Eq. (6)'s ratio, written so that an empty set does not change the weight of the other
            # set.
            return 0.5 / edge_voxels.clamp(min=1), 0.5 / other_voxels.clamp(min=1)
        positive = other_voxels / voxels
        negative = 1 - positive if weight_negatives else torch.ones_like(positive)
        if reduction == "balanced":
            total = positive * edge_voxels + negative * other_voxels
            scale = torch.where(total > 0, total, 1)
        else:
            scale = torch.ones_like(positive) * (voxels if reduction == "mean" else 1)
        return positive / scale, negative / scale


class ConsistencyLoss(nn.Module):
    """Consistency of predicted and true boundaries, Eqs. (7) and (8).

    Args:
        settings: temperature and support.
        activation: ``"softmax"`` over channels or ``"sigmoid"`` per region.
        options: fields of :class:`ConsistencySettings` by keyword.

    Attributes:
        tau: the temperature; it may be annealed during training.

    Raises:
        InputError: invalid settings, or shapes or dtypes that do not fit.
    """

    def __init__(
        self,
        settings: ConsistencySettings | None = None,
        *,
        activation: Activation,
        **options: Any,
    ) -> None:
        super().__init__()
        self.settings = ConsistencySettings.resolve(settings, options)
        self.activation = activation
        self.tau = self.settings.tau

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        seed: Tensor | int | None = None,
        ignored: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits and truth, as a scalar.

        Args:
            logits: ``(B, R, D, H, W)``.
            target: class indices ``(B, 1, D, H, W)`` for softmax, binary regions
                ``(B, R, D, H, W)`` for sigmoid.
            seed: seed of the noise, or one per sample; see :func:`egcnn.ops.gumbel_consistency`.
            ignored: voxels that were not annotated, bool ``(B, 1, D, H, W)``; see
                :func:`egcnn.ops.gumbel_consistency`.
        """
        return ops.gumbel_consistency(
            logits,
            target,
            tau=self.tau,
            hard=self.settings.hard,
            activation=self.activation,
            support=self.settings.support,
            seed=seed,
            ignored=ignored,
        )


class EGCNNLoss(nn.Module):
    """Total loss, Eq. (3): semantic + consistency + edge.

    Args:
        regions: what the channels of the logits mean.
        settings: the terms and their weights; a weight of 0 leaves a term out.
        options: fields of :class:`LossSettings` by keyword.

    Raises:
        InputError: invalid settings, or logits and labels that do not fit.
    """

    def __init__(
        self, regions: Regions, settings: LossSettings | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.regions = regions
        self.settings = settings = LossSettings.resolve(settings, options)
        self.semantic = DiceLoss(settings.dice, activation=regions.activation)
        self.consistency = ConsistencyLoss(settings.consistency, activation=regions.activation)
        self.edge = EdgeLoss(settings.edge)

    def forward(
        self,
        segmentation: tuple[Tensor, Tensor | None],
        labels: Tensor,
        seed: Tensor | int | None = None,
        ignored: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted sum as ``"loss"``, along with its unweighted terms.

        Args:
            segmentation: logits and edge logits, each ``(B, R, D, H, W)``, as
                :class:`egcnn.nn.Segmentation` holds them; edge logits ``(B, 1, D, H, W)`` stand for
                the edges of any region; None (no edge stream) omits the edge term.
            labels: integer label map ``(B, 1, D, H, W)``; voxels of the regions' ``ignore_index``
                count in no term. For sigmoid regions also the regions themselves, bool
                ``(B, R, D, H, W)``.
            seed: seed of the consistency loss's noise, or one per sample; None draws one.
            ignored: voxels that count in no term, bool ``(B, 1, D, H, W)``, besides those of
                ``ignore_index``.

        Returns:
            Scalars ``"loss"`` and, if weighted, ``"semantic"``, ``"consistency"``, ``"edge"``.
        """
        logits, edge_logits = segmentation
        exclusive = self.regions.exclusive
        ready = not exclusive and labels.dtype == torch.bool and labels.shape == logits.shape
        if not ready:
            if labels.ndim != 5 or labels.shape[1] != 1 or labels.is_floating_point():
                also = "" if exclusive else f" or bool {tuple(logits.shape)}"
                raise InputError(
                    f"EGCNNLoss: labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                    f"expected integers (B, 1, D, H, W){also}"
                )
            if (unlabelled := self.regions.ignored(labels)) is not None:
                ignored = unlabelled if ignored is None else ignored | unlabelled
        weights = self.settings.weights(edge_logits is not None)
        support = self.settings.consistency.support
        whole = ignored is None and all(weights.values()) and support == "gt"
        if whole and edge_logits is not None and edge_logits.dtype == logits.dtype:
            regions, edges, consistency = ops.loss_sums(
                logits,
                edge_logits,
                labels,
                None if ready else self.regions.labels,
                activation=self.regions.activation,
                threshold=self.settings.edge_threshold,
                tau=self.consistency.tau,
                hard=self.consistency.settings.hard,
                seed=seed,
            )
            terms = {"semantic": self.semantic.of_sums(regions), "consistency": consistency}
            terms["edge"] = self.edge.of_sums(edges, logits[0, 0].numel())
        else:
            masks = labels if ready else self.regions.masks(labels).view(torch.bool)
            terms = self._one_by_one(segmentation, labels, masks, seed, ignored)
        weighted = [weights[name] * term for name, term in terms.items()]
        if not {"semantic", "consistency"} & set(terms):
            # Zero, whose gradient is zero too: weights without one fail in training by DDP.
            weighted.append(logits[:, :0].sum())
        return {"loss": torch.stack(weighted).sum(), **terms}

    def _one_by_one(
        self,
        segmentation: tuple[Tensor, Tensor | None],
        labels: Tensor,
        masks: Tensor,
        seed: Tensor | int | None,
        ignored: Tensor | None,
    ) -> dict[str, Tensor]:
        """The terms that have a weight, from labels and their regions."""
        (logits, edge_logits), regions = segmentation, self.regions
        weights = self.settings.weights(edge_logits is not None)
        terms = {}
        if weights["semantic"] != 0:
            terms["semantic"] = self.semantic(logits, masks, ignored)
        if weights["consistency"] != 0:
            # As in the masks, a label that no class has is none.
            target = regions.classes(labels, len(regions)) if regions.exclusive else masks
            terms["consistency"] = self.consistency(logits, target, seed, ignored)
        if edge_logits is not None and weights["edge"] != 0:
            edges = ops.sobel_edges(masks, threshold=self.settings.edge_threshold).view(torch.bool)
            if edge_logits.shape[1] == 1:
                edges = edges.any(1, keepdim=True)
            terms["edge"] = self.edge(edge_logits, edges, ignored)
        return terms
