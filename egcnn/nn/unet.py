"""U-Net: Ronneberger et al. (2015) in 3D (Çiçek et al., 2016, arXiv 1606.06650), with GroupNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from egcnn.nn.backbone import Backbone, Features, check_input, check_sizes
from egcnn.nn.blocks import Conv3x3x3, UpConv
from egcnn.nn.norm import NormReLU


class UNet(Backbone):
    """Convolutions with max pooling between resolutions, concatenated skips.

    A block is two times 3x3x3 convolution, GroupNorm, ReLU. The width doubles and the size halves
    at each resolution. Volumes of any size pass, odd and one-voxel ones too.

    Args:
        in_channels: image channels (modalities).
        out_channels: channels of the logits, one per region.
        filters: channels at the finest resolution.
        blocks_down: blocks at each encoder resolution, fine to coarse.
        blocks_up: blocks at each decoder resolution, coarse to fine; one entry fewer.
        dropout: rate of the channel dropout after the first block.

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
        check_sizes("UNet", in_channels, out_channels, filters, blocks_down, blocks_up, dropout)
        widths = tuple(filters << level for level in range(len(blocks_down)))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.encoder_channels = widths
        self.decoder_channels = widths[-2]

        # Rounded up, so that an odd last voxel is not lost.
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.dropout = nn.Dropout3d(dropout)
        self.encoder = nn.ModuleList(
            _blocks(before, width, count)
            for before, width, count in zip(
                (in_channels, *widths[:-1]), widths, blocks_down, strict=True
            )
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, count in zip(reversed(range(len(widths) - 1)), blocks_up, strict=True):
            self.up.append(UpConv(widths[level + 1], widths[level]))
            self.decoder.append(_blocks(2 * widths[level], widths[level], count))
        self.head = nn.Conv3d(filters, out_channels, 1)

    def features(self, x: Tensor) -> Features:
        """Images ``(B, in_channels, D, H, W)`` to encoder and decoder taps and logits."""
        check_input("UNet", x, self.in_channels)
        encoded: list[Tensor] = []
        h = x
        for stage in self.encoder:
            h = stage(self.pool(h)) if encoded else self.dropout(stage(h))
            encoded.append(h)
        up_sampled: list[Tensor] = []
        for up, stage, skip in zip(self.up, self.decoder, encoded[-2::-1], strict=True):
            up_sampled.append(up(h, skip))
            h = stage(torch.cat([skip, up_sampled[-1]], 1))
        return Features(tuple(encoded), up_sampled[0], self.head(h))


def _blocks(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, *(out_channels,) * (2 * count - 1)):
        layers += [Conv3x3x3(before, out_channels), NormReLU(out_channels)]
    return nn.Sequential(*layers)
