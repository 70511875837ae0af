"""The edge stream: edge-gated layers that climb from the coarsest resolution to the finest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egcnn import ops
from egcnn.errors import InputError
from egcnn.nn.blocks import ResidualBlock, resize
from egcnn.nn.norm import NormReLU
from egcnn.settings import Settings

Gate = Literal["channel", "voxel"]
GateActivation = Literal["relu_sigmoid", "sigmoid"]
Upsampling = Literal["trilinear", "nearest"]
Start = Literal["decoder", "encoder"]
Residual = Literal["none", "conv", "block"]
Head = Literal["region", "union"]

#: Share of edge voxels that a fresh network predicts.
EDGE_PRIOR = 0.05


@dataclass(frozen=True)
class EdgeStreamSettings(Settings):
    """The edge stream's form.

    Args:
        gate: ``"channel"``, an attention value per channel and voxel (the Hadamard product of
            Eq. 2), or ``"voxel"``, one per voxel (Takikawa et al., 2019).
        activation: of the gate, ``"sigmoid"``, or ``"relu_sigmoid"`` as in Eq. (1), with a ReLU
            before it, which keeps alpha in [0.5, 1) and leaves no gradient where it is 0.
        channels: width of the stream at all resolutions; if None, that of the main stream at
            each, but at most eight times that at the finest.
        residual: what follows each gate, the "residual layer with kernel w_r" that the text has
            and Eq. (2) has not: ``"block"``, a residual block; ``"conv"``, a 1x1x1 convolution as
            in Takikawa et al. (2019); or ``"none"``.
        upsampling: between resolutions, ``"trilinear"`` or ``"nearest"``.
        start: what the stream starts from: ``"decoder"``, the first upsampled decoder feature, or
            ``"encoder"``, the coarsest encoder feature.
        head: ``"region"``, edge logits for each region, or ``"union"``, one channel for the edges
            of any.

    Raises:
        InputError: an unknown choice, or no channel.
    """

    gate: Gate = "channel"
    activation: GateActivation = "sigmoid"
    channels: int | None = None
    residual: Residual = "block"
    upsampling: Upsampling = "trilinear"
    start: Start = "decoder"
    head: Head = "region"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and self.channels < 1:
            raise InputError(f"channels: {self.channels}; expected at least 1")


class EdgeGate(nn.Module):
    """Edge-gated layer: Eqs. (1) and (2) of Hatamizadeh et al. (2020).

    ``alpha = sigmoid(We e + Wm m + b)``, ``out = e * alpha + e``.

    Args:
        edge_channels: channels of the edge feature ``e``.
        main_channels: channels of the main stream's feature ``m``.
        settings: of the stream; a gate reads ``gate`` and ``activation``.
        options: fields of :class:`EdgeStreamSettings` by keyword.

    Raises:
        InputError: settings that are rejected.
    """

    def __init__(
        self,
        edge_channels: int,
        main_channels: int,
        settings: EdgeStreamSettings | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        settings = EdgeStreamSettings.given(settings, options)
        gates = edge_channels if settings.gate == "channel" else 1
        self.activation = settings.activation
        self.weight_e = nn.Parameter(torch.empty(gates, edge_channels))
        self.weight_m = nn.Parameter(torch.empty(gates, main_channels))
        self.bias = nn.Parameter(torch.empty(gates))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: those of one 1x1x1 convolution over both inputs together."""
        bound = 1 / math.sqrt(self.weight_e.shape[1] + self.weight_m.shape[1])
        for parameter in (self.weight_e, self.weight_m, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, e: Tensor, m: Tensor) -> Tensor:
        """``e (B, Ce, D, H, W)`` and ``m (B, Cm, D, H, W)`` to the gated ``(B, Ce, D, H, W)``."""
        return ops.edge_gate(
            e, m, self.weight_e, self.weight_m, self.bias, activation=self.activation
        )


class EdgeStream(nn.Module):
    """Figure 1 of Hatamizadeh et al. (2020): from the decoder's first feature to edge logits.

    At every encoder resolution, coarse to fine: residual block, trilinear resampling to the size
    of the encoder's feature, edge gate with that feature. A 1x1x1 convolution ends it.

    Args:
        main_channels: channels of the encoder's features, fine to coarse.
        decoder_channels: channels of the first upsampled decoder feature.
        regions: how many; each has its edge logits, or with ``head="union"`` one channel serves
            all.
        settings: the stream's form.
        options: fields of :class:`EdgeStreamSettings` by keyword.

    Attributes:
        out_channels: channels of the edge logits.

    Raises:
        InputError: no encoder resolution, or settings that are rejected.
    """

    def __init__(
        self,
        main_channels: Sequence[int],
        decoder_channels: int,
        regions: int,
        settings: EdgeStreamSettings | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not main_channels:
            raise InputError(
                "EdgeStream: main_channels is empty; expected one entry per resolution"
            )
        self.settings = settings = EdgeStreamSettings.given(settings, options)
        self.out_channels = regions if settings.head == "region" else 1
        coarse_to_fine = main_channels[::-1]
        widths = [
            min(channels, 8 * main_channels[0]) if settings.channels is None else settings.channels
            for channels in coarse_to_fine
        ]
        first = decoder_channels if settings.start == "decoder" else main_channels[-1]
        self.blocks = nn.ModuleList(map(ResidualBlock, [first, *widths[:-1]], widths))
        self.gates = nn.ModuleList(
            EdgeGate(width, channels, settings)
            for width, channels in zip(widths, coarse_to_fine, strict=True)
        )
        self.residuals = nn.ModuleList(_residual(settings.residual, width) for width in widths)
        # Pre-activation blocks leave an unnormalised sum behind, hence a last norm (He et al.).
        logits = nn.Conv3d(widths[-1], self.out_channels, 1)
        self.head = nn.Sequential(NormReLU(widths[-1]), logits)
        # Few voxels are edges: start the head there (Lin et al. 2017, arXiv 1708.02002).
        nn.init.constant_(logits.bias, math.log(EDGE_PRIOR / (1 - EDGE_PRIOR)))  # type: ignore[arg-type]

    def forward(self, encoder: Sequence[Tensor], decoder: Tensor) -> Tensor:
        """Taps of the main stream to edge logits ``(B, out_channels, D, H, W)``.

        Args:
            encoder: features ``(B, main_channels[i], D_i, H_i, W_i)``, fine to coarse.
            decoder: the first upsampled decoder feature ``(B, decoder_channels, D_j, H_j, W_j)``.
        """
        e = decoder if self.settings.start == "decoder" else encoder[-1]
        layers = zip(self.blocks, self.gates, self.residuals, reversed(encoder), strict=True)
        for block, gate, residual, m in layers:
            e = block(e)
            if e.shape[2:] != m.shape[2:]:
                e = resize(e, m, self.settings.upsampling)
            e = residual(gate(e, m))
        return self.head(e)


def _residual(kind: Residual, width: int) -> nn.Module:
    if kind == "block":
        return ResidualBlock(width, width)
    return nn.Conv3d(width, width, 1) if kind == "conv" else nn.Identity()
