"""The interface of encoder-decoders to the edge stream, and the base of Seg-Net, U-Net, V-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from egcnn.checks import check_range
from egcnn.errors import InputError
from egcnn.nn.blocks import ChannelDropout
from egcnn.settings import Settings

# No volume needs more, and a mistyped number would take all memory or hours to build.
MOST_CHANNELS = 4096
MOST_RESOLUTIONS = 8
MOST_BLOCKS = 64


class Features(NamedTuple):
    """The features and logits of one forward pass that the edge stream takes.

    Attributes:
        encoder: the last feature at each encoder resolution, fine to coarse, each
            ``(B, encoder_channels[i], D_i, H_i, W_i)``.
        decoder: the first upsampled decoder feature, ``(B, decoder_channels, D_j, H_j, W_j)``.
        logits: ``(B, out_channels, D, H, W)``.
        others: what else the backbone returned, such as the coarser logits of deep supervision.
    """

    encoder: tuple[Tensor, ...]
    decoder: Tensor
    logits: Tensor
    others: tuple[Any, ...] = ()


class Backbone(nn.Module):
    """Base of the backbones; subclasses define :meth:`features`.

    Attributes:
        encoder_channels: channels at each encoder resolution, fine to coarse.
        decoder_channels: channels of the first upsampled decoder feature.
        out_channels: channels of the logits, one per region.
    """

    encoder_channels: tuple[int, ...]
    decoder_channels: int
    out_channels: int

    def features(self, x: Tensor) -> Features:
        """Compute taps and logits of images ``(B, in_channels, D, H, W)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits ``(B, out_channels, D, H, W)`` of images ``(B, in_channels, D, H, W)``."""
        return self.features(x).logits


@dataclass(frozen=True)
class BackboneSettings(Settings):
    """Which backbone, and its size.

    Args:
        name: one of :data:`egcnn.nn.BACKBONES`; ignored when a class is constructed directly.
        filters: channels at the finest resolution; they double at each coarser one.
        blocks_down: blocks at each encoder resolution, fine to coarse.
        blocks_up: blocks at each decoder resolution, coarse to fine; one entry fewer.
        dropout: rate of the channel dropout at the finest resolution (the paper's is 0.2).

    Raises:
        InputError: a count that is not positive or beyond :data:`MOST_CHANNELS`,
            :data:`MOST_RESOLUTIONS` or :data:`MOST_BLOCKS`, fewer than two resolutions,
            ``blocks_up`` that does not fit ``blocks_down``, or a dropout rate outside [0, 1).
    """

    name: str = "segnet"
    filters: int = 32
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("filters", self.filters, 1, MOST_CHANNELS)
        check_range("blocks_down", self.blocks_down, 1, MOST_BLOCKS)
        resolutions = len(self.blocks_down)
        if not 2 <= resolutions <= MOST_RESOLUTIONS:
            raise InputError(
                f"blocks_down: {self.blocks_down}; expected 2 to {MOST_RESOLUTIONS} entries, one "
                "per resolution"
            )
        check_range("blocks_up", self.blocks_up, 1, MOST_BLOCKS)
        if len(self.blocks_up) != resolutions - 1:
            raise InputError(
                f"blocks_up: {self.blocks_up}; expected {resolutions - 1} entries, one fewer than "
                "blocks_down"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: {self.dropout}; expected a rate in [0, 1)")


class EncoderDecoder(Backbone):
    """Base of Seg-Net, U-Net and V-Net: widths, skips, and the encoder and decoder loops.

    The width doubles and the size halves at each resolution. Any volume size works, including odd
    sizes and one voxel: upsampling targets the size of the skip.

    Args:
        in_channels: image channels (modalities).
        out_channels: channels of the logits, one per region.
        settings: the sizes.
        options: fields of :class:`BackboneSettings` by keyword.

    Raises:
        InputError: a count that is not positive, invalid settings, or an input whose rank or
            channels do not fit.
    """

    encoder: nn.ModuleList
    decoder: nn.ModuleList
    head: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: BackboneSettings | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1:
                raise InputError(f"{type(self).__name__}: {name} is {value}; expected at least 1")
        self.settings = BackboneSettings.resolve(settings, options)
        self.in_channels = in_channels
        self.out_channels = out_channels
        filters, levels = self.settings.filters, len(self.settings.blocks_down)
        self.encoder_channels = tuple(filters << level for level in range(levels))
        self.decoder_channels = self.encoder_channels[-2]
        self.dropout = ChannelDropout(self.settings.dropout)

    def decoder_widths(self) -> list[tuple[int, int, int]]:
        """Input channels, output channels and blocks of each decoder resolution, coarse to fine."""
        widths = self.encoder_channels[::-1]
        return list(zip(widths, widths[1:], self.settings.blocks_up, strict=False))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Compute the last feature at each resolution, fine to coarse."""
        raise NotImplementedError

    def upsample(self, level: int, h: Tensor, skip: Tensor) -> Tensor:
        """Bring a decoder feature to the size and width of its skip connection.

        Args:
            level: index of the decoder's resolution; 0 is the coarsest.
            h: the feature of the next coarser resolution.
            skip: the encoder's feature at this resolution.
        """
        raise NotImplementedError

    def merge(self, skip: Tensor, upsampled: Tensor) -> Tensor:
        """Combine skip and upsampled feature into a decoder stage's input, by concatenation."""
        return torch.cat([skip, upsampled], 1)

    def features(self, x: Tensor) -> Features:
        """Compute encoder and decoder taps and logits of images ``(B, in_channels, D, H, W)``."""
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise InputError(
                f"{type(self).__name__}: the input has shape {tuple(x.shape)}; "
                f"expected (B, {self.in_channels}, D, H, W)"
            )
        encoded = self.encode(x)
        h = encoded[-1]
        upsampled: list[Tensor] = []
        for level, (stage, skip) in enumerate(zip(self.decoder, encoded[-2::-1], strict=True)):
            upsampled.append(self.upsample(level, h, skip))
            h = stage(self.merge(skip, upsampled[-1]))
        return Features(tuple(encoded), upsampled[0], self.head(h))
