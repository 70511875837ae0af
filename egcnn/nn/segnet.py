"""Seg-Net: the encoder-decoder of Myronenko (2018), arXiv 1810.11654, without its autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from egcnn.nn.backbone import BackboneSettings, EncoderDecoder
from egcnn.nn.blocks import Conv3x3x3, ResidualBlock, resize
from egcnn.nn.norm import NormReLU


class SegNet(EncoderDecoder):
    """Pre-activation residual encoder-decoder with additive skips; see :class:`EncoderDecoder`.

    A block is a residual block. Dropout follows the first convolution.
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
        self.stem = nn.Sequential(Conv3x3x3(in_channels, widths[0]), self.dropout)
        self.encoder = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, self.settings.blocks_down, strict=True)):
            stage = _blocks(width, count)
            if level > 0:
                stage.insert(0, Conv3x3x3(widths[level - 1], width, stride=2))
            self.encoder.append(stage)
        self.narrow = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, width, count in self.decoder_widths():
            self.narrow.append(nn.Conv3d(below, width, 1, bias=False))
            self.decoder.append(_blocks(width, count))
        # Pre-activation blocks end with an unnormalised sum, hence a last norm (He et al.).
        self.head = nn.Sequential(NormReLU(widths[0]), nn.Conv3d(widths[0], out_channels, 1))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Compute the last feature at each resolution, fine to coarse."""
        encoded: list[Tensor] = []
        h = self.stem(x)
        for stage in self.encoder:
            h = stage(h)
            encoded.append(h)
        return encoded

    def upsample(self, level: int, h: Tensor, skip: Tensor) -> Tensor:
        """Reduce the channels and upsample; this order halves the cost of upsampling."""
        return resize(self.narrow[level](h), skip)

    def merge(self, skip: Tensor, upsampled: Tensor) -> Tensor:
        """Combine skip and upsampled feature into a decoder stage's input, by addition."""
        return upsampled + skip


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, width) for _ in range(count)))
