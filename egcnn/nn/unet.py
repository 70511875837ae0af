"""U-Net: Ronneberger et al. (2015) in 3D (Çiçek et al., 2016, arXiv 1606.06650), with GroupNorm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from egcnn.nn.backbone import BackboneSettings, EncoderDecoder
from egcnn.nn.blocks import UpConv, convolutions


class UNet(EncoderDecoder):
    """Max pooling between resolutions, concatenated skips; see :class:`EncoderDecoder`.

    A block is 3x3x3 convolution, GroupNorm, ReLU, twice. Dropout follows the first block.
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
        # Round up, so that the last voxel of an odd size is kept.
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.encoder = nn.ModuleList()
        before = in_channels
        for width, count in zip(widths, self.settings.blocks_down, strict=True):
            self.encoder.append(convolutions(before, width, 2 * count))
            before = width
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, width, count in self.decoder_widths():
            self.up.append(UpConv(below, width))
            self.decoder.append(convolutions(2 * width, width, 2 * count))
        self.head = nn.Conv3d(widths[0], out_channels, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Compute the last feature at each resolution, fine to coarse."""
        encoded = [self.dropout(self.encoder[0](x))]
        for stage in self.encoder[1:]:
            encoded.append(stage(self.pool(encoded[-1])))
        return encoded

    def upsample(self, level: int, h: Tensor, skip: Tensor) -> Tensor:
        """Upsample by a transposed convolution, cropped to the size of the skip."""
        return self.up[level](h, skip)
