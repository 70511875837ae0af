"""The edge stream: edge-gated layers from the coarsest resolution to the finest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egcnn import ops
from egcnn.checks import check_range
from egcnn.errors import InputError
from egcnn.nn.backbone import MOST_CHANNELS
from egcnn.nn.blocks import ResidualBlock, resize
from egcnn.nn.norm import NormReLU
from egcnn.ops import reference
from egcnn.settings import Settings

Gate = Literal["channel", "voxel"]
GateActivation = Literal["relu_sigmoid", "sigmoid"]
Upsampling = Literal["trilinear", "nearest"]
Start = Literal["decoder", "encoder"]
Residual = Literal["none", "conv", "block"]
Head = Literal["sobel", "linear"]
Edges = Literal["region", "union"]

#: Edge probability that an untrained linear head predicts.
EDGE_PRIOR = 0.05
#: Factor on the logits of the Sobel head: steep sigmoids give narrow edges, and weights would grow
#: to this only slowly.
STEEPNESS = 4.0
#: Added to the Sobel magnitude to keep its logarithm finite.
FLOOR = 0.01


@dataclass(frozen=True)
class EdgeStreamSettings(Settings):
    """Variant of the edge stream.

    Args:
        gate: ``"channel"``, an attention value per channel and voxel (the Hadamard product of
            Eq. 2), or ``"voxel"``, one per voxel (Takikawa et al., 2019).
        activation: of the gate, ``"sigmoid"``, or ``"relu_sigmoid"`` as in Eq. (1), where a ReLU
            before the sigmoid keeps alpha in [0.5, 1) and has no gradient where it is 0.
        channels: channels of the stream at all resolutions, or one number for each, coarse to fine;
            None takes the main stream's at the finest.
        residual: layer after each gate, the "residual layer with kernel w_r" that is in the paper's
            text but not in Eq. (2): ``"block"``, a residual block; ``"conv"``, a 1x1x1 convolution
            as in Takikawa et al. (2019); or ``"none"``.
        upsampling: between resolutions, ``"trilinear"`` or ``"nearest"``.
        start: input of the stream: ``"decoder"``, the first upsampled decoder feature, or
            ``"encoder"``, the coarsest encoder feature.
        head: layer that turns the finest feature into logits: ``"sobel"``, :class:`SobelHead`, or
            ``"linear"``, :class:`LinearHead`.
        edges: ``"region"``, edge logits for each region, or ``"union"``, one channel for the edges
            of all regions.

    Raises:
        InputError: an unknown choice, or a number of channels outside 1 to
            :data:`egcnn.nn.backbone.MOST_CHANNELS`.
    """

    gate: Gate = "channel"
    activation: GateActivation = "sigmoid"
    channels: tuple[int, ...] | None = None
    residual: Residual = "block"
    upsampling: Upsampling = "trilinear"
    start: Start = "decoder"
    head: Head = "sobel"
    edges: Edges = "region"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None:
            check_range("channels", self.channels, 1, MOST_CHANNELS)


class EdgeGate(nn.Module):
    """Edge-gated layer: Eqs. (1) and (2) of Hatamizadeh et al. (2020).

    ``alpha = sigmoid(We e + Wm m + b)``, ``out = e * alpha + e``.

    Args:
        edge_channels: channels of the edge feature ``e``.
        main_channels: channels of the main stream's feature ``m``.
        settings: settings of the stream, of which only ``gate`` and ``activation`` are used.
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
        settings = EdgeStreamSettings.resolve(settings, options)
        gates = edge_channels if settings.gate == "channel" else 1
        self.activation = settings.activation
        self.weight_e = nn.Parameter(torch.empty(gates, edge_channels))
        self.weight_m = nn.Parameter(torch.empty(gates, main_channels))
        self.bias = nn.Parameter(torch.empty(gates))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights like those of one 1x1x1 convolution over both inputs together."""
        bound = 1 / math.sqrt(self.weight_e.shape[1] + self.weight_m.shape[1])
        for parameter in (self.weight_e, self.weight_m, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, e: Tensor, m: Tensor) -> Tensor:
        """Gate ``e`` by ``m (B, Cm, D, H, W)``; returns ``(B, Ce, D, H, W)``.

        Args:
            e: ``(B, Ce, D, H, W)``, or of another size, which is interpolated trilinearly on the
                way.
            m: the main stream's feature.
        """
        return ops.edge_gate_upsampled(
            e, m, self.weight_e, self.weight_m, self.bias, activation=self.activation
        )

    def attention(self, e: Tensor, m: Tensor) -> Tensor:
        """The attention map alpha of Eq. (1), which ``forward`` does not keep.

        Args:
            e: as in ``forward``.
            m: as in ``forward``.

        Returns:
            ``(B, Ce, D, H, W)``, or ``(B, 1, D, H, W)`` for one value per voxel; float32 or more.
        """
        return reference.edge_attention(
            reference.upsample(e, m), m, self.weight_e, self.weight_m, self.bias, self.activation
        )


class SobelHead(nn.Module):
    """Edge logits: the Sobel edges of the segmentation, corrected by the edge stream.

    ``scale * log(|grad sigmoid(4 (z + C1 h))| + 0.01) + C2 h``: ``z`` the main stream's logits,
    ``h`` the normalised edge feature, ``C1`` and ``C2`` 1x1x1 convolutions, ``C2`` initially 0. The
    spatial derivative is that of section 2.1, which the targets use too.

    A true edge is one exact filter away from a mask, and convolutions learn that filter slowly:
    given the true masks, a residual block and a linear head reach F1 0.96 after 1000 steps. The
    edge loss has no gradient through ``z``; it reaches the main stream only through the taps.

    Args:
        channels: channels of the edge feature ``(B, channels, D, H, W)``.
        regions: channels of the main stream's logits.
        union: one edge logit for the edges of all regions, instead of one per region.
        exclusive: the regions are mutually exclusive classes (softmax); ``z`` are then the log odds
            of each class against all others.
    """

    def __init__(
        self, channels: int, regions: int, *, union: bool = False, exclusive: bool = False
    ) -> None:
        super().__init__()
        edges = 1 if union else regions
        self.union = union
        self.exclusive = exclusive
        self.norm = NormReLU(channels)
        self.shapes = nn.Conv3d(channels, regions, 1)
        self.scale = nn.Parameter(torch.ones(edges))
        self.correction = nn.Conv3d(channels, edges, 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]

    def forward(self, e: Tensor, logits: Tensor) -> Tensor:
        """Compute edge logits of the size of ``e (B, channels, D, H, W)``."""
        h = self.norm(e)
        shapes, correction = self.shapes(h), self.correction(h)
        # In float32 even under autocast: the logarithm amplifies bfloat16's rounding errors.
        dtype = torch.promote_types(shapes.dtype, torch.float32)
        z = logits.detach().to(dtype)
        if self.exclusive:
            z = z.softmax(1).logit(eps=1e-6)
        if z.shape[2:] != e.shape[2:]:
            z = resize(z, e)
        magnitude = ops.sobel_magnitude((STEEPNESS * (z + shapes.to(dtype))).sigmoid())
        if self.union:
            magnitude = magnitude.amax(1, keepdim=True)
        scale = self.scale.view(-1, 1, 1, 1)
        return (scale * (magnitude + FLOOR).log()).to(correction.dtype) + correction


class LinearHead(nn.Sequential):
    """Edge logits: one 1x1x1 convolution of the normalised edge feature.

    Args:
        channels: channels of the edge feature ``(B, channels, D, H, W)``.
        edges: number of edge logits.
    """

    def __init__(self, channels: int, edges: int) -> None:
        logits = nn.Conv3d(channels, edges, 1)
        # Start from the rare edges' prior probability (Lin et al. 2017, arXiv 1708.02002).
        nn.init.constant_(logits.bias, math.log(EDGE_PRIOR / (1 - EDGE_PRIOR)))  # type: ignore[arg-type]
        super().__init__(NormReLU(channels), logits)

    def forward(self, e: Tensor, logits: Tensor) -> Tensor:  # type: ignore[override]
        """Compute edge logits of ``e``; the main stream's logits are ignored."""
        return super().forward(e)


class EdgeStream(nn.Module):
    """The edge stream of Figure 1 of Hatamizadeh et al. (2020).

    At every encoder resolution, coarse to fine: residual block, trilinear resampling to the size of
    the encoder's feature, edge gate with that feature. A head follows. The gate resamples on the
    way, so that the resampled feature is never written.

    Args:
        main_channels: channels of the encoder's features, fine to coarse.
        decoder_channels: channels of the first upsampled decoder feature.
        regions: channels of the main stream's logits; each has its edge logits, unless
            ``edges="union"``.
        settings: the stream's variant.
        exclusive: see :class:`SobelHead`.
        options: fields of :class:`EdgeStreamSettings` by keyword.

    Attributes:
        out_channels: channels of the edge logits.

    Raises:
        InputError: no encoder resolution, or invalid settings.
    """

    def __init__(
        self,
        main_channels: Sequence[int],
        decoder_channels: int,
        regions: int,
        settings: EdgeStreamSettings | None = None,
        *,
        exclusive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not main_channels:
            raise InputError(
                "EdgeStream: main_channels is empty; expected one entry per resolution"
            )
        self.settings = settings = EdgeStreamSettings.resolve(settings, options)
        self.out_channels = regions if settings.edges == "region" else 1
        coarse_to_fine = main_channels[::-1]
        widths = settings.channels or main_channels[:1]
        if len(widths) == 1:
            widths = tuple(widths) * len(main_channels)
        if len(widths) != len(main_channels):
            raise InputError(
                f"channels: {settings.channels}; expected one width, or {len(main_channels)}"
            )
        first = decoder_channels if settings.start == "decoder" else main_channels[-1]
        self.blocks = nn.ModuleList(map(ResidualBlock, [first, *widths[:-1]], widths))
        self.gates = nn.ModuleList(
            EdgeGate(width, channels, settings)
            for width, channels in zip(widths, coarse_to_fine, strict=True)
        )
        self.residuals = nn.ModuleList(_residual(settings.residual, width) for width in widths)
        # Pre-activation blocks end with an unnormalised sum, so both heads normalise (He et al.).
        self.head: nn.Module
        if settings.head == "sobel":
            union = settings.edges == "union"
            self.head = SobelHead(widths[-1], regions, union=union, exclusive=exclusive)
        else:
            self.head = LinearHead(widths[-1], self.out_channels)

    def forward(self, encoder: Sequence[Tensor], decoder: Tensor, logits: Tensor) -> Tensor:
        """Compute edge logits ``(B, out_channels, D, H, W)`` from the main stream's taps.

        Args:
            encoder: features ``(B, main_channels[i], D_i, H_i, W_i)``, fine to coarse.
            decoder: the first upsampled decoder feature ``(B, decoder_channels, D_j, H_j, W_j)``.
            logits: the main stream's logits ``(B, regions, D, H, W)``.
        """
        e = decoder if self.settings.start == "decoder" else encoder[-1]
        layers = zip(self.blocks, self.gates, self.residuals, reversed(encoder), strict=True)
        for block, gate, residual, m in layers:
            e = block(e)
            # The gate itself interpolates trilinearly.
            if self.settings.upsampling == "nearest" and e.shape[2:] != m.shape[2:]:
                e = resize(e, m, "nearest")
            e = residual(gate(e, m))
        return self.head(e, logits)


def _residual(kind: Residual, width: int) -> nn.Module:
    if kind == "block":
        return ResidualBlock(width, width)
    return nn.Conv3d(width, width, 1) if kind == "conv" else nn.Identity()
