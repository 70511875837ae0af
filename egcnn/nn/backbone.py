"""What the edge stream asks of an encoder-decoder network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from egcnn.errors import InputError


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


def check_sizes(
    name: str,
    in_channels: int,
    out_channels: int,
    filters: int,
    blocks_down: Sequence[int],
    blocks_up: Sequence[int],
    dropout: float,
) -> None:
    """Raise :class:`InputError` for arguments that make no network ``name``."""
    counts = {"in_channels": in_channels, "out_channels": out_channels, "filters": filters}
    for argument, value in counts.items():
        if value < 1:
            raise InputError(f"{name}: {argument} is {value}; wanted at least 1")
    if len(blocks_down) < 2 or min(blocks_down) < 1:
        raise InputError(
            f"{name}: blocks_down is {tuple(blocks_down)}; wanted at least two resolutions "
            "with at least one block each"
        )
    if len(blocks_up) != len(blocks_down) - 1 or min(blocks_up) < 1:
        raise InputError(
            f"{name}: blocks_up is {tuple(blocks_up)}; wanted {len(blocks_down) - 1} entries "
            "of at least 1, one fewer than blocks_down"
        )
    if not 0 <= dropout < 1:
        raise InputError(f"{name}: dropout is {dropout}; wanted a rate in [0, 1)")


def check_input(name: str, x: Tensor, in_channels: int) -> None:
    """Raise :class:`InputError` unless ``x`` is ``(B, in_channels, D, H, W)``."""
    if x.ndim != 5 or x.shape[1] != in_channels:
        raise InputError(
            f"{name}: the input has shape {tuple(x.shape)}; wanted (B, {in_channels}, D, H, W)"
        )
