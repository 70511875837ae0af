"""V-Net: Milletari et al. (2016), arXiv 1606.04797, with GroupNorm and ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from egcnn.nn.backbone import Backbone, Features, check_input, check_sizes
from egcnn.nn.blocks import Conv3x3x3, UpConv
from egcnn.nn.norm import NormReLU


class VNet(Backbone):
    """Residual stages with strided convolutions between resolutions, concatenated skips.

    A stage adds its input to a chain of 3x3x3 convolutions, each with GroupNorm and ReLU (the
    original: 5x5x5, PReLU, no norm). The width doubles and the size halves at each resolution.
    Volumes of any size pass, odd and one-voxel ones too.

    Args:
        in_channels: image channels (modalities).
        out_channels: channels of the logits, one per region.
        filters: channels at the finest resolution.
        blocks_down: pairs of convolutions at each encoder resolution, fine to coarse.
        blocks_up: pairs of convolutions at each decoder resolution, coarse to fine; one entry
            fewer.
        dropout: rate of the channel dropout after the first stage.

    Raises:
        InputError: a count that is not positive, ``blocks_up`` that does not fit ``blocks_down``,
            fewer than two resolutions, a dropout rate outside [0, 1), or an input whose rank or
            channels do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes("VNet", in_channels, out_channels, filters, blocks_down, blocks_up, dropout)
        widths = tuple(filters << level for level in range(len(blocks_down)))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.encoder_channels = widths
        self.decoder_channels = widths[-2]

        self.dropout = nn.Dropout3d(dropout)
        self.down = nn.ModuleList(
            nn.Sequential(Conv3x3x3(before, width, stride=2), NormReLU(width))
            for before, width in pairwise(widths)
        )
        self.encoder = nn.ModuleList(
            _Stage(in_channels if level == 0 else width, width, count)
            for level, (width, count) in enumerate(zip(widths, blocks_down, strict=True))
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, count in zip(reversed(range(len(widths) - 1)), blocks_up, strict=True):
            width = widths[level]
            self.up.append(UpConv(widths[level + 1], width))
            self.decoder.append(_Stage(2 * width, width, count))
        self.head = nn.Conv3d(filters, out_channels, 1)

    def features(self, x: Tensor) -> Features:
        """Images ``(B, in_channels, D, H, W)`` to encoder and decoder taps and logits."""
        check_input("VNet", x, self.in_channels)
        h = self.dropout(self.encoder[0](x))
        encoded = [h]
        for down, stage in zip(self.down, self.encoder[1:], strict=True):
            h = stage(down(h))
            encoded.append(h)
        up_sampled: list[Tensor] = []
        for up, stage, skip in zip(self.up, self.decoder, encoded[-2::-1], strict=True):
            up_sampled.append(up(h, skip))
            h = stage(torch.cat([skip, up_sampled[-1]], 1))
        return Features(tuple(encoded), up_sampled[0], self.head(h))


class _Stage(nn.Module):
    """Convolutions, each with norm and ReLU, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, count: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (in_channels, *(out_channels,) * (2 * count - 1)):
            layers += [Conv3x3x3(before, out_channels), NormReLU(out_channels)]
        self.body = nn.Sequential(*layers)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)
