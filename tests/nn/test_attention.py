"""Attention maps of the edge gates, beside the fused operators."""

from __future__ import annotations

import pytest
import torch

from egcnn.nn import BackboneSettings, EdgeGate, NetworkSettings, attention_maps, build_network
from egcnn.windows import attention

SMALL = NetworkSettings(BackboneSettings(filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1)))


@pytest.mark.parametrize("gate", ["channel", "voxel"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu_sigmoid"])
def test_attention_is_what_the_gate_multiplies_by(gate: str, activation: str) -> None:
    layer = EdgeGate(4, 3, gate=gate, activation=activation)
    e, m = torch.randn(2, 4, 5, 6, 7), torch.randn(2, 3, 5, 6, 7)
    alpha = layer.attention(e, m)
    assert alpha.shape == (2, 4 if gate == "channel" else 1, 5, 6, 7)
    torch.testing.assert_close(e * alpha + e, layer(e, m))
    assert alpha.min() >= (0.5 if activation == "relu_sigmoid" else 0)
    # Of a coarser edge feature too, as the stream hands it over.
    coarse = torch.randn(2, 4, 3, 3, 4)
    e = torch.nn.functional.interpolate(coarse, m.shape[2:], mode="trilinear")
    alpha = layer.attention(coarse, m)
    torch.testing.assert_close(e * alpha + e, layer(coarse, m))


def test_maps_of_a_forward_pass_from_coarse_to_fine() -> None:
    network = build_network(SMALL, 2, 3).eval()
    image = torch.randn(1, 2, 16, 24, 8)
    with attention_maps(network) as maps:
        network(image)
    assert [tuple(found.shape) for found in maps] == [
        (1, 1, 4, 6, 2),
        (1, 1, 8, 12, 4),
        (1, 1, 16, 24, 8),
    ]
    assert not any(found.requires_grad for found in maps)
    network(image)
    assert len(maps) == 3
    with attention_maps(build_network(SMALL.change({"edge": False}), 2, 3)) as none:
        network(image)
    assert none == []


def test_attention_of_a_volume_by_windows() -> None:
    network = build_network(SMALL, 2, 3).eval()
    image = torch.randn(1, 2, 16, 20, 33)
    found, coarseness = attention(network, image, (16, 16, 16), stride=4)
    assert found.shape == (1, 3, 16, 20, 33)
    assert coarseness == (4, 2, 1)
    assert 0 < found.min() < found.max() < 1
    # One window over the whole volume gives the maps themselves.
    whole, _ = attention(network, image[..., :16], (16, 20, 16), stride=4)
    with attention_maps(network) as maps:
        network(image[..., :16])
    torch.testing.assert_close(whole[:, 2:], maps[2])


def test_attention_of_a_compiled_network() -> None:
    network = build_network(SMALL, 2, 3).eval()
    image = torch.randn(1, 2, 8, 8, 8)
    plain, _ = attention(network, image, (8, 8, 8), stride=4)
    network.compile(backend="eager")
    network(image)
    compiled, _ = attention(network, image, (8, 8, 8), stride=4)
    torch.testing.assert_close(compiled, plain)
