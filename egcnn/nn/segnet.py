"""Seg-Net: the encoder-decoder of Myronenko (2018), arXiv 1810.11654, without its autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from egcnn.nn.backbone import Backbone, Features, check_input, check_sizes
from egcnn.nn.blocks import Conv3x3x3, ResidualBlock, resize
from egcnn.nn.norm import NormReLU


class SegNet(Backbone):
    """Pre-activation residual encoder-decoder with additive skips.

    The width doubles and the size halves at each resolution. Volumes of any size pass, odd and
    one-voxel ones too: up-sampling goes to the size of the skip.

    Args:
        in_channels: image channels (modalities).
        out_channels: channels of the logits, one per region.
        filters: channels at the finest resolution.
        blocks_down: residual blocks at each encoder resolution, fine to coarse.
        blocks_up: residual blocks at each decoder resolution, coarse to fine; one entry fewer.
        dropout: rate of the channel dropout after the first convolution (the paper's is 0.2).

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
        check_sizes("SegNet", in_channels, out_channels, filters, blocks_down, blocks_up, dropout)
        widths = tuple(filters << level for level in range(len(blocks_down)))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.encoder_channels = widths
        self.decoder_channels = widths[-2]

        self.stem = nn.Sequential(Conv3x3x3(in_channels, filters), nn.Dropout3d(dropout))
        self.encoder = nn.ModuleList()
        for level, (width, blocks) in enumerate(zip(widths, blocks_down, strict=True)):
            stage = nn.Sequential(*(ResidualBlock(width, width) for _ in range(blocks)))
            if level > 0:
                stage.insert(0, Conv3x3x3(widths[level - 1], width, stride=2))
            self.encoder.append(stage)
        self.narrow = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, blocks in zip(reversed(range(len(widths) - 1)), blocks_up, strict=True):
            width = widths[level]
            self.narrow.append(nn.Conv3d(widths[level + 1], width, 1, bias=False))
            self.decoder.append(
                nn.Sequential(*(ResidualBlock(width, width) for _ in range(blocks)))
            )
        # Pre-activation blocks leave an unnormalised sum behind, hence a last norm (He et al.).
        self.head = nn.Sequential(NormReLU(filters), nn.Conv3d(filters, out_channels, 1))

    def features(self, x: Tensor) -> Features:
        """Images ``(B, in_channels, D, H, W)`` to encoder and decoder taps and logits."""
        check_input("SegNet", x, self.in_channels)
        encoded: list[Tensor] = []
        h = self.stem(x)
        for stage in self.encoder:
            h = stage(h)
            encoded.append(h)
        up_sampled: list[Tensor] = []
        for narrow, stage, skip in zip(self.narrow, self.decoder, encoded[-2::-1], strict=True):
            # Narrowing first makes the up-sampling half as dear.
            up_sampled.append(resize(narrow(h), skip))
            h = stage(up_sampled[-1] + skip)
        return Features(tuple(encoded), up_sampled[0], self.head(h))
