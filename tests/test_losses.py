"""The losses by hand (Eqs. 3 to 7) and in edge cases: empty, full, 16-bit, huge logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from egcnn import ops
from egcnn.data import BRATS
from egcnn.errors import InputError
from egcnn.losses import (
    ConsistencyLoss,
    ConsistencySettings,
    DiceLoss,
    EdgeLoss,
    EdgeLossSettings,
    EGCNNLoss,
    LossSettings,
)
from egcnn.regions import Regions

from .tolerances import BY_HAND, BY_SUM

CLASSES = Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")


def volume(*values: float) -> Tensor:
    """One sample, one region, the values along the last axis."""
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_dice_by_hand() -> None:
    # p = 0.8, 0.5, 0.2 and y = 1, 1, 0: 1 - 2 * 1.3 / (2 + 0.64 + 0.25 + 0.04).
    z = volume(logit(0.8), 0.0, logit(0.2))
    loss = DiceLoss(activation="sigmoid", eps=0.0)(z, volume(1, 1, 0))
    assert loss.item() == pytest.approx(1 - 2.6 / 2.93, rel=BY_HAND)


def test_dice_eps_is_in_the_denominator_alone() -> None:
    z = volume(0.0, 0.0)
    loss = DiceLoss(activation="sigmoid", eps=0.5)(z, volume(1, 0))
    assert loss.item() == pytest.approx(1 - 1.0 / (1 + 0.5 + 0.5), rel=BY_HAND)


def test_dice_is_the_mean_over_samples_and_regions() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(2, 3, 2, 3, 4), torch.randint(0, 2, (2, 3, 2, 3, 4), dtype=torch.uint8)
    loss = DiceLoss(activation="sigmoid")
    single = [
        loss(z[b : b + 1, r : r + 1], y[b : b + 1, r : r + 1]) for b in (0, 1) for r in range(3)
    ]
    torch.testing.assert_close(loss(z, y), torch.stack(single).mean())


def test_dice_softmax_with_and_without_background() -> None:
    # Two voxels, two classes; p of class 1 is 0.75 and 0.5, the truth 1 and 0.
    z = torch.stack([volume(0.0, 0.0)[0, 0], volume(math.log(3), 0.0)[0, 0]])[None]
    y = torch.stack([volume(0, 1)[0, 0], volume(1, 0)[0, 0]])[None]
    background = 1 - 2 * 0.5 / (1 + 0.0625 + 0.25)
    foreground = 1 - 2 * 0.75 / (1 + 0.5625 + 0.25)
    whole = DiceLoss(activation="softmax", eps=0.0)(z, y)
    assert whole.item() == pytest.approx((background + foreground) / 2, rel=BY_HAND)
    part = DiceLoss(activation="softmax", eps=0.0, include_background=False)(z, y)
    assert part.item() == pytest.approx(foreground, rel=BY_HAND)


# One edge voxel with P = 0.8, three others with P = 0.5, 0.5, 0.1: beta = 3/4.
EDGE_Z = (logit(0.8), 0.0, 0.0, logit(0.1))
EDGE_Y = (1.0, 0.0, 0.0, 0.0)
POSITIVE = -math.log(0.8)
NEGATIVE = -2 * math.log(0.5) - math.log(0.9)


@pytest.mark.parametrize(
    ("reduction", "weight_negatives", "expected"),
    [
        ("sum", True, 0.75 * POSITIVE + 0.25 * NEGATIVE),
        ("mean", True, (0.75 * POSITIVE + 0.25 * NEGATIVE) / 4),
        ("balanced", True, 0.5 * POSITIVE + 0.5 * NEGATIVE / 3),
        ("sum", False, 0.75 * POSITIVE + NEGATIVE),
        ("mean", False, (0.75 * POSITIVE + NEGATIVE) / 4),
        ("balanced", False, (0.75 * POSITIVE + NEGATIVE) / (0.75 + 3)),
    ],
)
def test_balanced_cross_entropy_by_hand(
    reduction: Any, weight_negatives: bool, expected: float
) -> None:
    loss = EdgeLoss(lambda1=0, lambda2=1, reduction=reduction, weight_negatives=weight_negatives)
    assert loss(volume(*EDGE_Z), volume(*EDGE_Y)).item() == pytest.approx(expected, rel=BY_SUM)


def test_edge_loss_is_the_weighted_sum_of_both() -> None:
    z, y = volume(*EDGE_Z), volume(*EDGE_Y)
    dice = 1 - 1.6 / (1 + 0.64 + 0.25 + 0.25 + 0.01 + 1e-5)
    entropy = (0.75 * POSITIVE + NEGATIVE) / (0.75 + 3)
    assert EdgeLoss()(z, y).item() == pytest.approx(dice + 0.5 * entropy, rel=BY_SUM)
    loss = EdgeLoss(lambda1=2.0, lambda2=3.0)
    assert loss(z, y).item() == pytest.approx(2 * dice + 3 * entropy, rel=BY_SUM)


@pytest.mark.parametrize("weight_negatives", [True, False])
@pytest.mark.parametrize("size", [(2, 3, 4), (7, 5, 11)])
def test_balanced_starts_at_ln_2(size: tuple[int, int, int], weight_negatives: bool) -> None:
    edges = torch.zeros(1, 2, *size, dtype=torch.uint8)
    edges[:, 0, 0], edges[:, 1, 0, 0, 0] = 1, 1
    loss = EdgeLoss(lambda1=0, lambda2=1, weight_negatives=weight_negatives)
    assert loss(torch.zeros(1, 2, *size), edges).item() == pytest.approx(math.log(2), rel=BY_SUM)


def test_balanced_keeps_the_half_that_is_there() -> None:
    loss = EdgeLoss(lambda1=0, lambda2=1, weight_negatives=True)
    z = volume(logit(0.2), logit(0.4))
    none, full = loss(z, volume(0, 0)).item(), loss(z, volume(1, 1)).item()
    assert none == pytest.approx(-0.25 * (math.log(0.8) + math.log(0.6)), rel=BY_SUM)
    assert full == pytest.approx(-0.25 * (math.log(0.2) + math.log(0.4)), rel=BY_SUM)


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("reduction", ["balanced", "sum", "mean"])
@pytest.mark.parametrize("weight_negatives", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_edge_loss_is_always_finite(
    fill: int, reduction: Any, weight_negatives: bool, dtype: torch.dtype, scale: float
) -> None:
    torch.manual_seed(0)
    z = (scale * torch.randn(2, 2, 3, 4, 5)).to(dtype).requires_grad_()
    edges = torch.full(z.shape, fill, dtype=torch.uint8)
    loss = EdgeLoss(reduction=reduction, weight_negatives=weight_negatives)(z, edges)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dice_is_always_finite(
    activation: Any, scale: float, fill: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    z = (scale * torch.randn(2, 3, 3, 4, 5)).to(dtype).requires_grad_()
    loss = DiceLoss(activation=activation)(z, torch.full(z.shape, fill, dtype=torch.uint8))
    loss.backward()
    assert z.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_bf16_sums_do_not_stall() -> None:
    # 64 000 equal voxels: a bfloat16 sum would stop growing at 256.
    z = torch.full((1, 1, 40, 40, 40), logit(0.5) + 1).to(torch.bfloat16)
    y = torch.ones(z.shape, dtype=torch.uint8)
    p = torch.sigmoid(torch.tensor(1.0)).item()
    loss = DiceLoss(activation="sigmoid")(z, y)
    assert loss.item() == pytest.approx(1 - 2 * p / (1 + p * p), rel=BY_SUM)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_gradcheck(activation: Any) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, z.shape)
    assert torch.autograd.gradcheck(lambda z: DiceLoss(activation=activation)(z, y), (z,))


@pytest.mark.parametrize("reduction", ["balanced", "sum", "mean"])
def test_edge_gradcheck(reduction: Any) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, z.shape)
    assert torch.autograd.gradcheck(lambda z: EdgeLoss(reduction=reduction)(z, y), (z,))


def test_consistency_by_hand() -> None:
    # Logits so large that the noise has no effect. The truth is a half space, whose edge band has
    # magnitude 1; a prediction of all background has magnitude 0 there, a perfect one 1.
    labels = torch.zeros(1, 1, 4, 5, 6, dtype=torch.int64)
    labels[..., 3:] = 1
    right = torch.cat([1 - 2 * labels, 2 * labels - 1], 1) * 100.0
    empty = torch.cat([torch.ones_like(labels), -torch.ones_like(labels)], 1) * 100.0
    loss = ConsistencyLoss(activation="softmax")
    assert loss(right, labels, 1).item() == pytest.approx(0.0, abs=BY_HAND)
    assert loss(empty, labels, 1).item() == pytest.approx(1.0, rel=BY_HAND)
    sigmoid = ConsistencyLoss(activation="sigmoid")
    assert sigmoid(right[:, 1:], labels, 1).item() == pytest.approx(0.0, abs=BY_HAND)
    assert sigmoid(empty[:, 1:], labels, 1).item() == pytest.approx(1.0, rel=BY_HAND)


def test_consistency_hands_its_options_on() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(1, 2, 4, 5, 6), torch.randint(0, 2, (1, 2, 4, 5, 6), dtype=torch.uint8)
    options: dict[str, Any] = {"tau": 0.9, "hard": False, "support": "both"}
    got = ConsistencyLoss(activation="sigmoid", **options)(z, y, 3)
    expected = ops.gumbel_consistency(z, y, activation="sigmoid", seed=3, **options)
    assert torch.equal(got, expected)
    assert not torch.equal(got, ConsistencyLoss(activation="sigmoid")(z, y, 3))


def labels_for(regions: Regions, kind: str) -> Tensor:
    labels = torch.zeros(2, 1, 6, 7, 5, dtype=torch.uint8)
    if kind == "full":
        labels.fill_(regions.values[-1])
    elif kind == "boxes":
        labels[:, :, 1:5, 1:6, 1:4] = regions.values[1]
        labels[:, :, 2:4, 2:5, 2:3] = regions.values[-1]
    elif kind == "checkerboard":
        index = torch.arange(labels.numel()).view(labels.shape)
        labels[index % 2 == 0] = regions.values[-1]
    return labels


@pytest.mark.parametrize("regions", [CLASSES, BRATS], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["empty", "full", "boxes", "checkerboard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_total_is_finite_and_adds_up(
    regions: Regions, kind: str, dtype: torch.dtype, scale: float
) -> None:
    torch.manual_seed(0)
    z, e = ((scale * torch.randn(2, 3, 6, 7, 5)).to(dtype).requires_grad_() for _ in range(2))
    loss = EGCNNLoss(regions, semantic_weight=2.0, consistency_weight=0.5, edge_weight=3.0)
    terms = loss((z, e), labels_for(regions, kind), seed=1)
    assert set(terms) == {"loss", "semantic", "consistency", "edge"}
    expected = 2 * terms["semantic"] + 0.5 * terms["consistency"] + 3 * terms["edge"]
    torch.testing.assert_close(terms["loss"], expected)
    terms["loss"].backward()
    for tensor in (*terms.values(), z.grad, e.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("regions", [BRATS, CLASSES], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("edge_channels", [3, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [5, [5, 6]])
def test_total_is_the_sum_of_its_parts(
    regions: Regions, edge_channels: int, dtype: torch.dtype, seed: Any
) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 3, 6, 7, 5, dtype=dtype).requires_grad_()
    e = torch.randn(2, edge_channels, 6, 7, 5, dtype=dtype).requires_grad_()
    labels = labels_for(regions, "boxes")
    labels[0, 0, 0, 0, 0] = 100  # a value of no region
    seed = torch.tensor(seed)
    activation = regions.activation
    settings = LossSettings(edge_threshold=0.4, edge=EdgeLossSettings(reduction="mean"))
    settings = settings.change({"semantic_weight": 0.5, "dice.include_background": False})
    terms = EGCNNLoss(regions, settings)((z, e), labels, seed)
    masks = regions.masks(labels)
    edges = ops.sobel_edges(masks, threshold=0.4)
    classes = regions.classes(labels, other=3) if regions.exclusive else masks
    parts = {
        "semantic": DiceLoss(settings.dice, activation=activation)(z, masks),
        "consistency": ConsistencyLoss(activation=activation)(z, classes, seed),
        "edge": EdgeLoss(settings.edge)(e, edges if edge_channels == 3 else edges.amax(1, True)),
    }
    for name, part in parts.items():
        torch.testing.assert_close(terms[name], part, rtol=BY_SUM, atol=BY_SUM)
    total = 0.5 * parts["semantic"] + parts["consistency"] + parts["edge"]
    torch.testing.assert_close(terms["loss"], total, rtol=BY_SUM, atol=BY_SUM)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for mine, other in zip(
        *(torch.autograd.grad(t, (z, e)) for t in (terms["loss"], total)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * 1e-2)


def test_total_takes_one_pass_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    at_once = ops.loss_sums

    def counted(*arguments: Any, **options: Any) -> ops.LossSums:
        calls.append(options)
        return at_once(*arguments, **options)

    monkeypatch.setattr(ops, "loss_sums", counted)
    z, e, labels = (
        torch.randn(2, 3, 6, 7, 5),
        torch.randn(2, 3, 6, 7, 5),
        labels_for(BRATS, "boxes"),
    )
    ignored = torch.zeros(2, 1, 6, 7, 5, dtype=torch.bool)
    EGCNNLoss(BRATS)((z, e), labels, seed=5)
    assert len(calls) == 1
    EGCNNLoss(BRATS)((z, e), labels, seed=5, ignored=ignored)
    EGCNNLoss(BRATS)((z, None), labels, seed=5)
    EGCNNLoss(BRATS)((z, e.double()), labels, seed=5)
    EGCNNLoss(BRATS, edge_weight=0)((z, e), labels, seed=5)
    EGCNNLoss(BRATS, consistency=ConsistencySettings(support="both"))((z, e), labels, seed=5)
    assert len(calls) == 1


def test_total_of_ready_made_regions() -> None:
    """Binary regions in place of the label map, and the ignored voxels beside them."""
    torch.manual_seed(0)
    z, e = torch.randn(2, 3, 6, 7, 5), torch.randn(2, 3, 6, 7, 5)
    regions = Regions(BRATS.names, BRATS.labels, "sigmoid", ignore_index=9)
    labels = labels_for(BRATS, "boxes")
    masks = regions.masks(labels).bool()
    expected = EGCNNLoss(regions)((z, e), labels, seed=5)["loss"]
    found = EGCNNLoss(regions)((z, e), masks, seed=5)["loss"]
    torch.testing.assert_close(found, expected)  # in one pass and by three
    labels[:, :, 0] = 9
    masks, ignored = regions.masks(labels).bool(), labels == 9
    expected = EGCNNLoss(regions)((z, e), labels, seed=5)["loss"]
    found = EGCNNLoss(BRATS)((z, e), masks, seed=5, ignored=ignored)["loss"]
    assert torch.equal(found, expected)
    # Those of the labels and of the argument together.
    ignored[:, :, 5] = True
    both = labels.masked_fill(ignored, 9)
    found = EGCNNLoss(regions)((z, e), labels, seed=5, ignored=ignored)["loss"]
    assert torch.equal(found, EGCNNLoss(regions)((z, e), both, seed=5)["loss"])
    assert not torch.equal(found, expected)


def test_terms_that_do_not_count_are_absent() -> None:
    torch.manual_seed(0)
    z, e = torch.randn(2, 3, 6, 7, 5), torch.randn(2, 3, 6, 7, 5)
    labels = labels_for(CLASSES, "boxes")
    alone = EGCNNLoss(CLASSES, consistency_weight=0)((z, None), labels)
    assert set(alone) == {"loss", "semantic"}
    assert torch.equal(alone["loss"], alone["semantic"])
    assert set(EGCNNLoss(CLASSES)((z, None), labels)) == {"loss", "semantic"}
    both = EGCNNLoss(CLASSES, consistency_weight=1)((z, None), labels)
    assert set(both) == {"loss", "semantic", "consistency"}
    assert "consistency" not in EGCNNLoss(CLASSES, consistency_weight=0)((z, e), labels)
    assert "edge" not in EGCNNLoss(CLASSES, edge_weight=0)((z, e), labels)
    assert "semantic" not in EGCNNLoss(CLASSES, semantic_weight=0)((z, e), labels)


@pytest.mark.parametrize("edge_weight", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_count_in_no_term_have_a_gradient_of_zeros(
    edge_weight: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    z, e = (torch.randn(2, 3, 6, 7, 5, dtype=dtype, requires_grad=True) for _ in range(2))
    loss = EGCNNLoss(CLASSES, semantic_weight=0, consistency_weight=0, edge_weight=edge_weight)
    terms = loss((z, e), labels_for(CLASSES, "boxes"))
    assert set(terms) == ({"loss", "edge"} if edge_weight else {"loss"})
    assert torch.equal(terms["loss"].float(), terms.get("edge", torch.zeros(())))
    terms["loss"].backward()
    assert z.grad is not None
    assert not z.grad.any()
    assert (e.grad is not None) == bool(edge_weight)


def test_the_seed_fixes_the_noise() -> None:
    torch.manual_seed(0)
    z, e = torch.randn(2, 3, 6, 7, 5), torch.randn(2, 3, 6, 7, 5)
    loss, labels = EGCNNLoss(CLASSES), labels_for(CLASSES, "boxes")
    first = loss((z, e), labels, seed=1)["loss"]
    assert torch.equal(first, loss((z, e), labels, seed=torch.tensor(1))["loss"])
    assert not torch.equal(first, loss((z, e), labels, seed=2)["loss"])


def test_rejections() -> None:
    z = torch.zeros(1, 2, 3, 3, 3)
    with pytest.raises(InputError, match="activation is 'relu'"):
        DiceLoss(activation="relu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reduction: 'median'"):
        EdgeLoss(reduction="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="DiceLoss: the target has shape"):
        DiceLoss(activation="sigmoid")(z, z[:, :1])
    with pytest.raises(InputError, match=r"EdgeLoss: logits are torch\.int64"):
        EdgeLoss()(z.long(), z)
    with pytest.raises(InputError, match=r"EGCNNLoss: labels are torch\.float32"):
        EGCNNLoss(CLASSES)((z, z), torch.zeros(1, 1, 3, 3, 3))
    with pytest.raises(InputError, match=r"integers \(B, 1, D, H, W\) or bool \(1, 2, 3, 3, 3\)"):
        EGCNNLoss(BRATS)((z, z), z)


def test_the_consistency_loss_counts_with_an_edge_stream_unless_told() -> None:
    weights = LossSettings().weights
    assert (weights(True)["consistency"], weights(False)["consistency"]) == (1, 0)
    assert LossSettings(consistency_weight=0.3).weights(False)["consistency"] == 0.3
    assert LossSettings(consistency_weight=0).weights(True)["consistency"] == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["balanced", "mean"])
def test_ignored_voxels_count_in_no_term(activation: Any, reduction: Any) -> None:
    labels = torch.zeros(1, 1, 6, 7, 16, dtype=torch.uint8)
    labels[..., 4:] = 1
    labels[..., 9:] = 4
    regions = Regions(("background", "a"), ((0,), (1,)), activation, ignore_index=4)
    loss = EGCNNLoss(regions, edge=EdgeLossSettings(reduction=reduction))
    logits = torch.randn(1, 2, 6, 7, 16).requires_grad_()
    edge_logits = torch.randn(1, 2, 6, 7, 16).requires_grad_()
    terms = loss((logits, edge_logits), labels, seed=1)
    grads = torch.autograd.grad(terms["loss"], (logits, edge_logits))
    assert grads[0][..., 9:].eq(0).all()
    assert grads[0][..., :9].ne(0).any()
    # Whether a voxel beside an ignored one is an edge is not known.
    assert grads[1][..., 8:].eq(0).all()
    assert grads[1][..., :8].ne(0).all()
    # The same as of the part that is known, of which no edge is at the cut.
    with torch.no_grad():
        other = (logits.clone(), edge_logits.clone())
        other[0][..., 9:], other[1][..., 8:] = 7, -7
        again = loss(other, labels, seed=1)
        assert all(torch.equal(again[name], terms[name]) for name in terms)
        edges = ops.sobel_edges(regions.masks(labels))[..., :8]
        cut = EdgeLoss(reduction=reduction)(edge_logits[..., :8], edges)
        torch.testing.assert_close(terms["edge"], cut)
