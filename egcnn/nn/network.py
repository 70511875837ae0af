"""Networks built from settings: a backbone, with or without the edge stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from egcnn.nn.backbone import BackboneSettings
from egcnn.nn.backbones import build_backbone, find_backbone
from egcnn.nn.edge_stream import EdgeStreamSettings
from egcnn.nn.egcnn import EGCNN
from egcnn.settings import Settings


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """A network: backbone and optional edge stream.

    Args:
        backbone: the main stream.
        edge: whether to add the edge stream.
        edge_stream: the edge stream's variant.
    """

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    edge: bool = True
    edge_stream: EdgeStreamSettings = field(default_factory=EdgeStreamSettings)

    @property
    def stride(self) -> int:
        """The stride of the backbone; see :class:`egcnn.nn.backbones.BackboneEntry`."""
        return find_backbone(self.backbone.name).stride


def build_network(
    settings: NetworkSettings, in_channels: int, out_channels: int, *, exclusive: bool = False
) -> nn.Module:
    """Build the network that the settings describe, with fresh weights.

    Args:
        settings: settings of the network.
        in_channels: image channels (modalities).
        out_channels: channels of the logits (regions).
        exclusive: see :class:`egcnn.nn.EGCNN`.

    Returns:
        an :class:`egcnn.nn.EGCNN`, which returns a ``Segmentation``, or with ``edge=False`` the
        backbone alone, which returns logits ``(B, R, D, H, W)``.

    Raises:
        InputError: the backbone is unknown, or a count is not positive.
    """
    backbone = build_backbone(settings.backbone, in_channels, out_channels)
    if not settings.edge:
        return backbone
    return EGCNN(backbone, settings.edge_stream, exclusive=exclusive)
