"""Networks: U-Net, V-Net, Seg-Net, the edge stream, and EG-CNN around any encoder-decoder."""

from egcnn.nn.attention import attention_maps
from egcnn.nn.backbone import Backbone, BackboneSettings, EncoderDecoder, Features
from egcnn.nn.backbones import BACKBONES
from egcnn.nn.blocks import ResidualBlock
from egcnn.nn.edge_stream import EdgeGate, EdgeStream, EdgeStreamSettings, SobelHead
from egcnn.nn.egcnn import EGCNN, Segmentation
from egcnn.nn.network import NetworkSettings, build_network
from egcnn.nn.norm import NormReLU
from egcnn.nn.segnet import SegNet
from egcnn.nn.taps import Taps, candidates
from egcnn.nn.unet import UNet
from egcnn.nn.vnet import VNet

__all__ = [
    "BACKBONES",
    "EGCNN",
    "Backbone",
    "BackboneSettings",
    "EdgeGate",
    "EdgeStream",
    "EdgeStreamSettings",
    "EncoderDecoder",
    "Features",
    "NetworkSettings",
    "NormReLU",
    "ResidualBlock",
    "SegNet",
    "Segmentation",
    "SobelHead",
    "Taps",
    "UNet",
    "VNet",
    "attention_maps",
    "build_network",
    "candidates",
]
