"""The edge stream: edge-gated layers that climb from the coarsest resolution to the finest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from egcnn import ops
from egcnn.errors import InputError
from egcnn.nn.blocks import ResidualBlock, resize
from egcnn.nn.norm import NormReLU

Gate = Literal["channel", "voxel"]
GateActivation = Literal["relu_sigmoid", "sigmoid"]
Upsampling = Literal["trilinear", "nearest"]
Seed = Literal["decoder", "encoder"]
Residual = Literal["none", "conv", "block"]
Head = Literal["sobel", "linear"]

#: Share of edge voxels that a fresh linear head predicts.
EDGE_PRIOR = 0.05
#: Factor on the shapes' logits: edges are as narrow as shapes are steep, and weights grow slowly.
STEEPNESS = 4.0
#: Added to the Sobel magnitude, whose logarithm has no end below.
FLOOR = 0.01


class EdgeGate(nn.Module):
    """Edge-gated layer: Eqs. (1) and (2) of Hatamizadeh et al. (2020).

    ``alpha = sigmoid(We e + Wm m + b)``, ``out = e * alpha + e``.

    Args:
        edge_channels: channels of the edge feature ``e``.
        main_channels: channels of the main stream's feature ``m``.
        gate: ``"channel"``, an attention value per channel and voxel (the Hadamard product of
            Eq. 2), or ``"voxel"``, one per voxel (Takikawa et al., 2019).
        activation: ``"sigmoid"``, or ``"relu_sigmoid"`` as in Eq. (1), with a ReLU before it, which
            keeps alpha in [0.5, 1) and leaves no gradient where it is 0.

    Raises:
        InputError: an unknown gate or activation.
    """

    def __init__(
        self,
        edge_channels: int,
        main_channels: int,
        *,
        gate: Gate = "channel",
        activation: GateActivation = "sigmoid",
    ) -> None:
        super().__init__()
        if gate not in ("channel", "voxel"):
            raise InputError(f"EdgeGate: gate is {gate!r}; wanted 'channel' or 'voxel'")
        if activation not in ("relu_sigmoid", "sigmoid"):
            raise InputError(
                f"EdgeGate: activation is {activation!r}; wanted 'relu_sigmoid' or 'sigmoid'"
            )
        gates = edge_channels if gate == "channel" else 1
        self.activation = activation
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


class SobelHead(nn.Module):
    """Edge logits: the Sobel edges of the segmentation, redrawn by what the edge stream has seen.

    ``scale * log(|grad sigmoid(4 (z + C1 h))| + 0.01) + C2 h``: ``z`` the main stream's logits,
    ``h`` the normalised edge feature, ``C1`` and ``C2`` 1x1x1 convolutions, ``C2`` 0 at first. The
    spatial derivative is that of section 2.1, which makes the targets too.

    A true edge is one exact filter away from a mask, and convolutions learn that filter slowly:
    given the true masks, a residual block and a linear head reach F1 0.96 after 1000 steps. The
    edge loss does not reach the main stream through ``z``, only through the stream's taps.

    Args:
        channels: of the edge feature ``(B, channels, D, H, W)``.
        regions: channels of the main stream's logits.
        union: one edge logit, of the edges of all regions together, instead of one per region.
        exclusive: the regions are classes that exclude one another (softmax): ``z`` are the log
            odds of each against all others.
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
        """``e (B, channels, D, H, W)`` and the main stream's logits to edge logits of e's size."""
        h = self.norm(e)
        shapes, correction = self.shapes(h), self.correction(h)
        # In float32 under autocast too: the logarithm magnifies what bfloat16 rounds.
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


class LinearHead(nn.Module):
    """Edge logits: one 1x1x1 convolution of the normalised edge feature.

    Args:
        channels: of the edge feature ``(B, channels, D, H, W)``.
        edges: how many edge logits.
    """

    def __init__(self, channels: int, edges: int) -> None:
        super().__init__()
        self.norm = NormReLU(channels)
        self.logits = nn.Conv3d(channels, edges, 1)
        # Few voxels are edges: start there (Lin et al. 2017, arXiv 1708.02002).
        nn.init.constant_(self.logits.bias, math.log(EDGE_PRIOR / (1 - EDGE_PRIOR)))  # type: ignore[arg-type]

    def forward(self, e: Tensor, logits: Tensor) -> Tensor:
        """``e`` to edge logits; the main stream's are not used."""
        return self.logits(self.norm(e))


class EdgeStream(nn.Module):
    """Figure 1 of Hatamizadeh et al. (2020): from the decoder's first feature to edge logits.

    At every encoder resolution, coarse to fine: residual block, trilinear resampling to the size
    of the encoder's feature, edge gate with that feature. A head ends it.

    Args:
        main_channels: channels of the encoder's features, fine to coarse.
        seed_channels: channels of the first up-sampled decoder feature.
        regions: channels of the main stream's logits.
        edge_channels: width of the stream at all resolutions; if None, that of the main stream at
            the finest.
        gate: see :class:`EdgeGate`.
        activation: see :class:`EdgeGate`.
        residual: what follows each gate, the "residual layer with kernel w_r" that the text has
            and Eq. (2) has not: ``"block"``, a residual block; ``"conv"``, a 1x1x1 convolution as
            in Takikawa et al. (2019); or ``"none"``.
        upsampling: between resolutions, ``"trilinear"`` or ``"nearest"``.
        seed: what the stream starts from: ``"decoder"``, the first up-sampled decoder feature, or
            ``"encoder"``, the coarsest encoder feature.
        head: what turns the finest feature into logits: ``"sobel"``, :class:`SobelHead`, or
            ``"linear"``, :class:`LinearHead`.
        union: see :class:`SobelHead`.
        exclusive: see :class:`SobelHead`.

    Raises:
        InputError: no encoder resolution, or an option that is unknown.
    """

    def __init__(
        self,
        main_channels: Sequence[int],
        seed_channels: int,
        regions: int,
        *,
        edge_channels: int | None = None,
        gate: Gate = "channel",
        activation: GateActivation = "sigmoid",
        residual: Residual = "block",
        upsampling: Upsampling = "trilinear",
        seed: Seed = "decoder",
        head: Head = "sobel",
        union: bool = False,
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        if upsampling not in ("trilinear", "nearest"):
            raise InputError(
                f"EdgeStream: upsampling is {upsampling!r}; wanted 'trilinear' or 'nearest'"
            )
        if seed not in ("decoder", "encoder"):
            raise InputError(f"EdgeStream: seed is {seed!r}; wanted 'decoder' or 'encoder'")
        if residual not in get_args(Residual):
            raise InputError(
                f"EdgeStream: residual is {residual!r}; expected 'none', 'conv' or 'block'"
            )
        if head not in get_args(Head):
            raise InputError(f"EdgeStream: head is {head!r}; expected 'sobel' or 'linear'")
        if not main_channels:
            raise InputError("EdgeStream: main_channels is empty; wanted one entry per resolution")
        if edge_channels is not None and edge_channels < 1:
            raise InputError(f"EdgeStream: edge_channels is {edge_channels}; wanted at least 1")
        coarse_to_fine = main_channels[::-1]
        width = main_channels[0] if edge_channels is None else edge_channels
        self.upsampling = upsampling
        self.seed = seed
        first = seed_channels if seed == "decoder" else main_channels[-1]
        inputs = [first, *[width] * (len(main_channels) - 1)]
        self.blocks = nn.ModuleList(ResidualBlock(channels, width) for channels in inputs)
        self.gates = nn.ModuleList(
            EdgeGate(width, channels, gate=gate, activation=activation)
            for channels in coarse_to_fine
        )
        self.residuals = nn.ModuleList(_residual(residual, width) for _ in coarse_to_fine)
        # Pre-activation blocks leave an unnormalised sum behind: both heads normalise (He et al.).
        self.head: nn.Module
        if head == "sobel":
            self.head = SobelHead(width, regions, union=union, exclusive=exclusive)
        else:
            self.head = LinearHead(width, 1 if union else regions)

    def forward(self, encoder: Sequence[Tensor], decoder: Tensor, logits: Tensor) -> Tensor:
        """Taps of the main stream to edge logits ``(B, regions or 1, D, H, W)``.

        Args:
            encoder: features ``(B, main_channels[i], D_i, H_i, W_i)``, fine to coarse.
            decoder: the first up-sampled decoder feature ``(B, seed_channels, D_j, H_j, W_j)``.
            logits: the main stream's, ``(B, regions, D, H, W)``.
        """
        e = decoder if self.seed == "decoder" else encoder[-1]
        layers = zip(self.blocks, self.gates, self.residuals, reversed(encoder), strict=True)
        for block, gate, residual, m in layers:
            e = block(e)
            if e.shape[2:] != m.shape[2:]:
                e = resize(e, m, self.upsampling)
            e = residual(gate(e, m))
        return self.head(e, logits)


def _residual(kind: Residual, width: int) -> nn.Module:
    if kind == "block":
        return ResidualBlock(width, width)
    return nn.Conv3d(width, width, 1) if kind == "conv" else nn.Identity()
