"""Parameters and multiply-adds against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from egcnn.nn import EGCNN, EdgeGate, Features
from egcnn.nn.backbone import Backbone
from egcnn.nn.cost import cost


def test_a_convolution_by_hand() -> None:
    assert cost(nn.Conv3d(2, 5, 3, padding=1), (3, 2, 4, 5, 6)) == (
        2 * 5 * 27 + 5,
        3 * 4 * 5 * 6 * 2 * 5 * 27,
    )


def test_the_edge_stream_by_hand_without_computing() -> None:
    class Constant(Backbone):
        encoder_channels = (2,)
        decoder_channels = 2
        out_channels = 1

        def features(self, x: torch.Tensor) -> Features:
            return Features((x,), x, x[:, :1])

    with torch.device("meta"):
        network = EGCNN(Constant(), channels=2)
        found = cost(network, (1, 2, 3, 4, 5))
    # Two 3x3x3 convolutions 2 -> 2 before and after the gate, the gate's 2 x 4 weights, product and
    # residual of 2 channels, shape and correction 2 -> 1 of the edge head, the fusion 2 -> 1.
    assert found.multiply_adds == 60 * (2 * 2 * 27 * 4 + 8 + 2 + 4 + 2)
    assert found.parameters == sum(p.numel() for p in network.parameters())


def test_an_upsampled_gate_costs_what_the_gate_does() -> None:
    class Gate(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.depth = depth
            self.gate = EdgeGate(2, 3)

        def forward(self, m: torch.Tensor) -> torch.Tensor:
            return self.gate(m[:, :2, : self.depth], m)

    with torch.device("meta"):
        for depth in (4, 2):
            found = cost(Gate(depth), (1, 3, 4, 5, 6)).multiply_adds
            assert found == 120 * (2 * (2 + 3) + 2)
