"""Seg-Net, U-Net, V-Net: taps, any size, invalid settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from egcnn.errors import InputError
from egcnn.nn import BACKBONES, ResidualBlock, SegNet, UNet, VNet

every_backbone = pytest.mark.parametrize(
    "backbone", [entry.network for entry in BACKBONES.values()]
)


def test_the_papers_configuration() -> None:
    net = SegNet(4, 3)
    assert net.encoder_channels == (32, 64, 128, 256)
    assert net.decoder_channels == 128
    blocks = [sum(isinstance(m, ResidualBlock) for m in stage) for stage in net.encoder]
    assert blocks == [1, 2, 2, 4]
    assert [len(stage) for stage in net.decoder] == [1, 1, 1]
    # By hand, all convolutions but the logits' without bias: stem 27*4*32 = 3456; a block of width
    # c has 2*27*c*c + 4*c, strided convolutions 27*c*2c, narrowing ones 2c*c, head 2*32 + 32*3 + 3.
    widths = (32, 64, 128, 256)
    block = {c: 54 * c * c + 4 * c for c in widths}
    expected = 3456 + block[32] + 2 * block[64] + 2 * block[128] + 4 * block[256]
    expected += sum(54 * c * c for c in widths[:3]) + sum(2 * c * c for c in widths[:3])
    expected += block[128] + block[64] + block[32] + 64 + 99
    assert sum(p.numel() for p in net.parameters()) == expected


@every_backbone
def test_taps(backbone: Any) -> None:
    net = backbone(2, 3, filters=4)
    features = net.features(torch.randn(2, 2, 16, 24, 8))
    assert [tuple(f.shape) for f in features.encoder] == [
        (2, 4, 16, 24, 8),
        (2, 8, 8, 12, 4),
        (2, 16, 4, 6, 2),
        (2, 32, 2, 3, 1),
    ]
    assert features.decoder.shape == (2, 16, 4, 6, 2)
    assert features.logits.shape == (2, 3, 16, 24, 8)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 3), (7, 11, 13), (8, 9, 17)])
@pytest.mark.parametrize("autocast", [False, True])
@every_backbone
def test_any_size_trains(backbone: Any, size: tuple[int, int, int], autocast: bool) -> None:
    torch.manual_seed(0)
    net = backbone(1, 2, filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    x = torch.randn(1, 1, *size)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = net(x)
    assert logits.shape == (1, 2, *size)
    if not autocast:
        assert torch.equal(logits, net.features(x).logits)
    logits.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_skip_is_added() -> None:
    torch.manual_seed(0)
    net = SegNet(1, 2, filters=4, blocks_down=(1, 1), blocks_up=(1,))
    nn.init.zeros_(net.narrow[0].weight)
    x = torch.randn(1, 1, 5, 6, 7)
    features = net.features(x)
    assert torch.equal(features.decoder, torch.zeros_like(features.decoder))
    torch.testing.assert_close(features.logits, net.head(net.decoder[0](features.encoder[0])))


@every_backbone
def test_dropout_only_while_training(backbone: Any) -> None:
    torch.manual_seed(0)
    net = backbone(1, 1, filters=8, blocks_down=(1, 1), blocks_up=(1,), dropout=0.5)
    x = torch.randn(1, 1, 4, 4, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"in_channels": 0}, "Net: in_channels is 0"),
        ({"out_channels": -1}, "Net: out_channels is -1"),
        ({"filters": 0}, "filters: 0"),
        ({"blocks_down": (1,), "blocks_up": ()}, "blocks_down: "),
        ({"blocks_down": (1, 0), "blocks_up": (1,)}, "blocks_down: "),
        ({"blocks_up": (1, 1)}, "blocks_up: "),
        ({"blocks_up": (1, 1, 0)}, "blocks_up: "),
        ({"dropout": 1.0}, r"dropout: 1\.0"),
        ({"colour": 1}, "colour: no such option; expected some of name, filters"),
    ],
)
@every_backbone
def test_rejected_options(backbone: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        backbone(**({"in_channels": 1, "out_channels": 1} | options))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (1, 4, 4, 4)])
@every_backbone
def test_rejected_inputs(backbone: Any, shape: tuple[int, ...]) -> None:
    net = backbone(1, 1, filters=4)
    with pytest.raises(InputError, match=r"expected \(B, 1, D, H, W\)"):
        net(torch.zeros(shape))


def test_depth_and_width_are_matched() -> None:
    counts, convolutions = {}, {}
    for backbone in (SegNet, UNet, VNet):
        net = backbone(4, 3)
        counts[backbone] = sum(p.numel() for p in net.parameters())
        convolutions[backbone] = sum(
            m.kernel_size == (3, 3, 3) for m in net.modules() if isinstance(m, nn.Conv3d)
        )
        assert net.encoder_channels == (32, 64, 128, 256)
    assert max(counts.values()) < 1.15 * min(counts.values())
    # Seg-Net and V-Net go down by strided convolutions, U-Net by pooling; Seg-Net has a stem.
    assert convolutions == {SegNet: 28, UNet: 24, VNet: 27}


def test_unet_by_hand() -> None:
    net = UNet(1, 1, filters=1, blocks_down=(1, 1), blocks_up=(1,))
    x = torch.randn(1, 1, 4, 5, 6)
    fine = net.encoder[0](x)
    coarse = net.encoder[1](nn.functional.max_pool3d(fine, 2, ceil_mode=True))
    up = nn.functional.conv_transpose3d(coarse, net.up[0].weight, net.up[0].bias, stride=2)
    assert up.shape[3] == 6
    expected = net.head(net.decoder[0](torch.cat([fine, up[:, :, :, :5]], 1)))
    torch.testing.assert_close(net(x), expected)


def test_vnet_stages_add_their_input() -> None:
    net = VNet(1, 2, filters=2, blocks_down=(1, 1), blocks_up=(1,))
    for name, parameter in net.named_parameters():
        if ".body." in name:
            nn.init.zeros_(parameter)
    x = torch.randn(1, 1, 4, 5, 6)
    fine = net.encoder[0].skip(x)
    features = net.features(x)
    torch.testing.assert_close(features.encoder, (fine, net.down[0](fine)))
