"""EG-CNN: an encoder-decoder, its edge stream, and the fusion of the two."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from egcnn.nn.backbone import Backbone
from egcnn.nn.edge_stream import EdgeStream, Gate, GateActivation


class Segmentation(NamedTuple):
    """What a network returns for images ``(B, C, D, H, W)``.

    Attributes:
        logits: one channel per region, ``(B, R, D, H, W)``.
        edge_logits: logits of the regions' edges, ``(B, R, D, H, W)``; None without edge stream.
    """

    logits: Tensor
    edge_logits: Tensor | None


class EGCNN(nn.Module):
    """Edge-Gated CNN of Hatamizadeh et al. (2020), section 2.1 and Figure 1.

    The edge logits are concatenated with the backbone's logits and fused by a 1x1x1 convolution,
    which starts as the identity on the backbone's logits: a trained backbone loses nothing.

    Args:
        backbone: the main stream.
        gate: see :class:`egcnn.nn.EdgeGate`.
        activation: see :class:`egcnn.nn.EdgeGate`.
        edge_channels: width of the edge stream; the backbone's finest width if None.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        gate: Gate = "channel",
        activation: GateActivation = "relu_sigmoid",
        edge_channels: int | None = None,
    ) -> None:
        super().__init__()
        regions = backbone.out_channels
        self.backbone = backbone
        self.edge_stream = EdgeStream(
            backbone.encoder_channels,
            backbone.decoder_channels,
            regions,
            edge_channels=edge_channels,
            gate=gate,
            activation=activation,
        )
        self.fusion = nn.Conv3d(2 * regions, regions, 1)
        nn.init.dirac_(self.fusion.weight)
        nn.init.zeros_(self.fusion.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Segmentation:
        """Images ``(B, in_channels, D, H, W)`` to fused logits and edge logits."""
        encoder, decoder, logits = self.backbone.features(x)
        edge_logits = self.edge_stream(encoder, decoder)
        return Segmentation(self.fusion(torch.cat([logits, edge_logits], 1)), edge_logits)
