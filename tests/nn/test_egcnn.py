"""The whole network: fusion, gradients, sizes, autocast, memory format, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from egcnn import ops
from egcnn.errors import InputError
from egcnn.losses import EdgeLoss, EGCNNLoss
from egcnn.nn import EGCNN, Features, Segmentation, SegNet, UNet, VNet
from egcnn.nn.backbone import Backbone
from egcnn.regions import Regions

from ..tolerances import REORDERED

CLASSES = Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")
NESTED = Regions(("outer", "inner"), ((1, 2), (2,)), "sigmoid")


def small(out_channels: int = 3, backbone: type[Backbone] = SegNet, **options: Any) -> EGCNN:
    torch.manual_seed(0)
    sizes: Any = {"filters": 4, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
    return EGCNN(backbone(2, out_channels, **sizes), **options)  # type: ignore[call-arg]


def nested_boxes(batch: int, size: tuple[int, int, int]) -> Tensor:
    labels = torch.zeros(batch, 1, *size, dtype=torch.uint8)
    labels[:, :, 1:-1, 1:-1, 1:-1] = 1
    labels[:, :, 2:-2, 2:-2, 2:-2] = 2
    return labels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("autocast", [False, True])
def test_starts_as_the_backbone_to_the_bit(layout: torch.memory_format, autocast: bool) -> None:
    net = small().to(memory_format=layout)
    x = torch.randn(2, 2, 8, 12, 4).contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(x)
        alone = net.backbone(x)
    assert isinstance(out, Segmentation)
    assert out.edge_logits is not None
    assert out.logits.shape == out.edge_logits.shape == (2, 3, 8, 12, 4)
    assert torch.equal(out.logits, alone)
    assert out.edge_logits.abs().sum() > 0


def test_fusion_by_hand() -> None:
    class Constant(Backbone):
        encoder_channels = (1,)
        decoder_channels = 1
        out_channels = 2

        def features(self, x: Tensor) -> Features:
            return Features((x,), x, torch.cat([x, 2 * x], 1))

    net = EGCNN(Constant(), head="linear")
    x = torch.full((1, 1, 1, 1, 1), 3.0)
    nn.init.zeros_(net.edge_stream.head[-1].weight)
    net.edge_stream.head[-1].bias.data.copy_(torch.tensor([10.0, 20.0]))
    net.fusion.weight.data.copy_(
        torch.tensor([[1.0, 2, 3, 4], [0, 1, -1, 0.5]]).view(2, 4, 1, 1, 1)
    )
    # Logits 3, 6 and edge logits 10, 20: 3 + 12 + 30 + 80 and 6 - 10 + 10, beside the logits.
    logits, edge_logits = net(x)
    assert logits.flatten().tolist() == pytest.approx([3 + 125, 6 + 6])
    assert edge_logits.flatten().tolist() == pytest.approx([10, 20])


@pytest.mark.parametrize("regions", [CLASSES, NESTED], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("backbone", [SegNet, UNet, VNet])
def test_gradients_reach_every_parameter(
    regions: Regions, layout: torch.memory_format, backbone: type[Backbone]
) -> None:
    net = small(len(regions), backbone).to(memory_format=layout)
    x = torch.randn(2, 2, 8, 12, 8).contiguous(memory_format=layout)
    EGCNNLoss(regions)(net(x), nested_boxes(2, (8, 12, 8)), seed=1)["loss"].backward()
    parts = set()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
        parts.add(name.split(".")[0])
    assert parts == {"backbone", "edge_stream", "fusion"}


def test_the_semantic_loss_reaches_the_edge_stream_once_fusion_has_moved() -> None:
    net = small()
    x, labels = torch.randn(2, 2, 8, 12, 8), nested_boxes(2, (8, 12, 8))
    loss = EGCNNLoss(CLASSES, consistency_weight=0, edge_weight=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    head = net.edge_stream.head.correction.weight
    for step in range(2):
        optimizer.zero_grad()
        loss(net(x), labels)["loss"].backward()
        assert head.grad is not None
        assert (head.grad.abs().sum() > 0) == (step > 0)
        optimizer.step()


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (7, 11, 13)])
@pytest.mark.parametrize("gate", ["channel", "voxel"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu_sigmoid"},
        {"residual": "none"},
        {"residual": "conv"},
        {"upsampling": "nearest"},
        {"start": "encoder"},
        {"head": "linear"},
        {"exclusive": True},
        {"edges": "union"},
        {"channels": 3},
    ],
    ids=str,
)
def test_any_size_and_option(size: tuple[int, int, int], gate: str, options: Any) -> None:
    net = small(gate=gate, **options)
    logits, edge_logits = net(torch.randn(1, 2, *size))
    assert logits.shape == (1, 3, *size)
    assert edge_logits.shape == (1, 1 if "edges" in options else 3, *size)
    labels = torch.randint(0, 3, (1, 1, *size), dtype=torch.uint8)
    terms = EGCNNLoss(CLASSES)((logits, edge_logits), labels, seed=0)
    terms["loss"].backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_bf16_autocast_stays_in_bf16_and_close() -> None:
    net = small().to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 2, 8, 12, 8).contiguous(memory_format=torch.channels_last_3d)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        features = net.backbone.features(x)
        rounded = net(x)
    assert {t.dtype for t in (*features.encoder, features.decoder)} == {torch.bfloat16}
    for got, other in zip(rounded, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - other).abs().mean() < 0.05 * other.abs().mean()
    EGCNNLoss(CLASSES)(rounded, nested_boxes(2, (8, 12, 8)), seed=1)["loss"].backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all()
        for p in net.parameters()
    )


def test_channels_last_is_kept_and_gives_the_same() -> None:
    net = small()
    x = torch.randn(2, 2, 8, 12, 8)
    expected = net(x)
    net = net.to(memory_format=torch.channels_last_3d)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    # In float32 torch may change the layout for a faster path; the layout is meant for bfloat16.
    with torch.autocast("cpu", torch.bfloat16):
        features = net.backbone.features(x)
    # On processors without AVX-512 torch's bfloat16 convolutions return contiguous tensors.
    kept = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for tensor in (*features.encoder, features.decoder) if kept else ():
        assert tensor.is_contiguous(memory_format=torch.channels_last_3d)
    for got, other in zip(net(x), expected, strict=True):
        torch.testing.assert_close(got, other, atol=REORDERED, rtol=REORDERED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone", [SegNet, *(pytest.param(b, marks=pytest.mark.thorough) for b in (UNet, VNet))]
)
def test_compiles_whole(backbone: type[Backbone]) -> None:
    net = small(backbone=backbone)
    x = torch.randn(1, 2, 6, 5, 7)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    expected = net(x)
    got = compiled(x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    got.edge_logits.square().mean().backward()
    gradients = [p.grad.clone() for p in net.edge_stream.parameters()]
    net.zero_grad()
    expected.edge_logits.square().mean().backward()
    for gradient, parameter in zip(gradients, net.edge_stream.parameters(), strict=True):
        # The head's logarithm amplifies the rounding of small magnitudes.
        torch.testing.assert_close(gradient, parameter.grad, rtol=REORDERED, atol=REORDERED)


def test_state_dict_round_trip() -> None:
    net, other = small(), small()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    other.load_state_dict(net.state_dict())
    x = torch.randn(1, 2, 4, 4, 4)
    for a, b in zip(net(x), other(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"head": "canny"}, "head: 'canny'"),
        ({"edges": "all"}, "edges: 'all'"),
        ({"upsampling": "cubic"}, "upsampling: 'cubic'"),
        ({"start": "image"}, "start: 'image'"),
        ({"residual": "two"}, "residual: 'two'"),
        ({"channels": (4, 4)}, "one width, or 3"),
    ],
)
def test_rejected_options(options: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        small(**options)


def test_the_residual_layer_follows_each_gate() -> None:
    plain, mixed = small(residual="none"), small(residual="conv")
    mixed.load_state_dict(plain.state_dict(), strict=False)
    for layer in mixed.edge_stream.residuals:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(1, 2, 5, 6, 7)
    torch.testing.assert_close(mixed(x), plain(x))
    mixed.edge_stream.residuals[-1].weight.data *= 2
    heard = []
    for net in (plain, mixed):
        net.edge_stream.head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
        net(x)
    torch.testing.assert_close(heard[1], 2 * heard[0])


def test_a_residual_block_that_adds_nothing_is_no_layer() -> None:
    plain, blocks = small(residual="none"), small(residual="block")
    blocks.load_state_dict(plain.state_dict(), strict=False)
    for block in blocks.edge_stream.residuals:
        nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(1, 2, 5, 6, 7)
    torch.testing.assert_close(blocks(x), plain(x))


def test_union_edges_are_those_of_any_region() -> None:
    edge_logits = torch.randn(1, 1, 8, 9, 7)
    labels = nested_boxes(1, (8, 9, 7))
    loss = EGCNNLoss(NESTED, semantic_weight=0, consistency_weight=0)
    found = loss((torch.zeros(1, 2, 8, 9, 7), edge_logits), labels)["edge"]
    edges = ops.sobel_edges(labels, NESTED.labels)
    union = edges[:, :1] | edges[:, 1:]
    assert found.item() == pytest.approx(EdgeLoss()(edge_logits, union).item())
