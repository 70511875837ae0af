"""V-Net: Milletari et al. (2016), arXiv 1606.04797, with GroupNorm and ReLU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from egcnn.nn.backbone import BackboneSettings, EncoderDecoder
from egcnn.nn.blocks import Conv3x3x3, UpConv, convolutions
from egcnn.nn.norm import NormReLU


class VNet(EncoderDecoder):
    """Residual stages, strided convolutions, concatenated skips; see :class:`EncoderDecoder`.

    A stage adds its input to a chain of 3x3x3 convolutions, each with GroupNorm and ReLU (the
    original: 5x5x5, PReLU, no norm); a block is two of them. Dropout follows the first stage.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: BackboneSettings | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, settings, **options)
        widths = self.encoder_channels
        self.down = nn.ModuleList(
            nn.Sequential(Conv3x3x3(before, width, stride=2), NormReLU(width))
            for before, width in pairwise(widths)
        )
        self.encoder = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, self.settings.blocks_down, strict=True)):
            self.encoder.append(_Stage(in_channels if level == 0 else width, width, count))
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, width, count in self.decoder_widths():
            self.up.append(UpConv(below, width))
            self.decoder.append(_Stage(2 * width, width, count))
        self.head = nn.Conv3d(widths[0], out_channels, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Compute the last feature at each resolution, fine to coarse."""
        encoded = [self.dropout(self.encoder[0](x))]
        for down, stage in zip(self.down, self.encoder[1:], strict=True):
            encoded.append(stage(down(encoded[-1])))
        return encoded

    def upsample(self, level: int, h: Tensor, skip: Tensor) -> Tensor:
        """Upsample by a transposed convolution, cropped to the size of the skip."""
        return self.up[level](h, skip)


class _Stage(nn.Module):
    """Add the input to a chain of convolutions, each with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, count: int) -> None:
        super().__init__()
        self.body = convolutions(in_channels, out_channels, 2 * count)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)
