"""Registry of the backbones."""

from __future__ import annotations

from dataclasses import dataclass

from egcnn.errors import InputError
from egcnn.nn.backbone import BackboneSettings, EncoderDecoder
from egcnn.nn.segnet import SegNet
from egcnn.nn.unet import UNet
from egcnn.nn.vnet import VNet


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone's entry in the registry.

    Args:
        title: display name.
        network: its class.
        stride: patches and windows are multiples of this, so that every resolution divides evenly.
    """

    title: str
    network: type[EncoderDecoder]
    stride: int


#: All backbones by name, in the order of the paper's tables.
BACKBONES = {
    "unet": BackboneEntry("U-Net", UNet, stride=8),
    "vnet": BackboneEntry("V-Net", VNet, stride=8),
    "segnet": BackboneEntry("Seg-Net", SegNet, stride=8),
}


def find_backbone(name: str) -> BackboneEntry:
    """The entry under a name.

    Raises:
        InputError: an unknown name.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone: {name!r} is unknown; expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_backbone(
    settings: BackboneSettings, in_channels: int, out_channels: int
) -> EncoderDecoder:
    """Build the backbone that the settings describe, with fresh weights.

    Raises:
        InputError: an unknown name, or as the class.
    """
    return find_backbone(settings.name).network(in_channels, out_channels, settings)
