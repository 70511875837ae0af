"""The encoder-decoders that there are."""

from __future__ import annotations

from dataclasses import dataclass

from egcnn.errors import InputError
from egcnn.nn.backbone import BackboneSettings, EncoderDecoder
from egcnn.nn.segnet import SegNet
from egcnn.nn.unet import UNet
from egcnn.nn.vnet import VNet


@dataclass(frozen=True)
class BackboneEntry:
    """One encoder-decoder.

    Args:
        title: for people.
        network: its class.
        stride: what patches and windows are multiples of, so that every resolution stays even.
    """

    title: str
    network: type[EncoderDecoder]
    stride: int = 8


#: By name, in the order of the paper's tables.
BACKBONES = {
    "unet": BackboneEntry("U-Net", UNet),
    "vnet": BackboneEntry("V-Net", VNet),
    "segnet": BackboneEntry("Seg-Net", SegNet),
}


def find_backbone(name: str) -> BackboneEntry:
    """The entry under a name.

    Raises:
        InputError: there is none.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone: {name!r} is unknown; expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_backbone(
    settings: BackboneSettings, in_channels: int, out_channels: int
) -> EncoderDecoder:
    """The encoder-decoder that the settings describe, with fresh weights.

    Raises:
        InputError: as the class that is named, or there is none of that name.
    """
    return find_backbone(settings.name).network(in_channels, out_channels, settings)
