"""What the edge stream asks of an encoder-decoder network."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """One forward pass of an encoder-decoder, as the edge stream taps it.

    Attributes:
        encoder: the last feature at each encoder resolution, fine to coarse, each
            ``(B, encoder_channels[i], D_i, H_i, W_i)``.
        decoder: the first up-sampled decoder feature, ``(B, decoder_channels, D_j, H_j, W_j)``.
        logits: ``(B, out_channels, D, H, W)``.
    """

    encoder: tuple[Tensor, ...]
    decoder: Tensor
    logits: Tensor


class Backbone(nn.Module):
    """Base of the encoder-decoders: :meth:`features` is theirs to define, logits follow from it.

    Attributes:
        encoder_channels: channels at each encoder resolution, fine to coarse.
        decoder_channels: channels of the first up-sampled decoder feature.
        out_channels: channels of the logits, one per region.
    """

    encoder_channels: tuple[int, ...]
    decoder_channels: int
    out_channels: int

    def features(self, x: Tensor) -> Features:
        """Images ``(B, in_channels, D, H, W)`` to the taps and logits."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_channels, D, H, W)`` to logits ``(B, out_channels, D, H, W)``."""
        return self.features(x).logits
