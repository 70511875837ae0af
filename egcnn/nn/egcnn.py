"""EG-CNN: an encoder-decoder, its edge stream, and the fusion of the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from egcnn.nn.backbone import Backbone, Features
from egcnn.nn.blocks import resize
from egcnn.nn.edge_stream import EdgeStream, EdgeStreamSettings
from egcnn.nn.taps import Tapped, Taps


class Segmentation(NamedTuple):
    """Output of a network for images ``(B, C, D, H, W)``.

    Attributes:
        logits: one channel per region, ``(B, R, D, H, W)``.
        edge_logits: logits of the regions' edges, ``(B, R, D, H, W)``, or of their union,
            ``(B, 1, D, H, W)``; None without edge stream.
    """

    logits: Tensor
    edge_logits: Tensor | None


class EGCNN(nn.Module):
    """Edge-Gated CNN of Hatamizadeh et al. (2020), section 2.1 and Figure 1.

    The edge logits are concatenated with the backbone's logits and fused by a 1x1x1 convolution,
    which is initially the identity on the backbone's logits, so a trained backbone keeps its
    accuracy.

    Args:
        backbone: the main stream: a :class:`egcnn.nn.Backbone`, or any module that maps images to
            logits ``(B, R, D, H, W)``. It is not modified and keeps its own names under
            ``backbone.`` in the state dict.
        settings: the edge stream's variant.
        taps: tap points of a backbone that is not an :class:`egcnn.nn.Backbone`:
            :class:`egcnn.nn.Taps` or ``{"encoder": [names, fine to coarse], "decoder": name}``;
            None finds them by one probing pass.
        example: input of the probing pass, or its shape ``(B, C, D, H, W)``; see
            :class:`egcnn.nn.taps.Tapped`.
        exclusive: the regions are mutually exclusive classes (softmax) instead of regions that may
            overlap (sigmoid); see :class:`egcnn.nn.SobelHead`.
        options: fields of :class:`egcnn.nn.EdgeStreamSettings` by keyword, such as
            ``gate="voxel"``.

    Raises:
        InputError: taps that cannot be found or do not fit, or invalid settings.
    """

    def __init__(
        self,
        backbone: nn.Module,
        settings: EdgeStreamSettings | None = None,
        *,
        taps: Taps | dict[str, Any] | None = None,
        example: Tensor | Sequence[int] | None = None,
        exclusive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        settings = EdgeStreamSettings.resolve(settings, options)
        self.backbone = backbone
        self.tapped = None if isinstance(backbone, Backbone) else Tapped(backbone, taps, example)
        source: Any = self.tapped or backbone
        regions = source.out_channels
        self.edge_stream = EdgeStream(
            source.encoder_channels,
            source.decoder_channels,
            regions,
            settings,
            exclusive=exclusive,
        )
        # The fusion's correction of the backbone's logits, initially 0. The sum is the 1x1x1
        # convolution of Figure 1, and initially the exact identity in any precision.
        self.fusion = nn.Conv3d(regions + self.edge_stream.out_channels, regions, 1)
        nn.init.zeros_(self.fusion.weight)
        nn.init.zeros_(self.fusion.bias)  # type: ignore[arg-type]
        like = next(backbone.parameters(), None)
        if like is not None:
            self.to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Segmentation:
        """Compute fused logits and edge logits of images ``(B, in_channels, D, H, W)``."""
        return self.fuse(self.features(x))

    def features(self, x: Tensor) -> Features:
        """Compute the backbone's taps and logits of images ``(B, in_channels, D, H, W)``."""
        if self.tapped is not None:
            return self.tapped.features(self.backbone, x)
        return self.backbone.features(x)  # type: ignore[operator]

    def fuse(self, features: Features) -> Segmentation:
        """Compute edge logits, and fuse them with the backbone's logits."""
        logits = features.logits
        edge_logits = self.edge_stream(features.encoder, features.decoder, logits)
        if edge_logits.shape[2:] != logits.shape[2:]:
            # An encoder that begins with a strided layer has no feature at the images' resolution.
            edge_logits = resize(edge_logits, logits)
        return Segmentation(logits + self.fusion(torch.cat([logits, edge_logits], 1)), edge_logits)
