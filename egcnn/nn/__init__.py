"""Networks: Seg-Net, the edge stream, and EG-CNN around a backbone."""

from egcnn.nn.backbone import Backbone, Features
from egcnn.nn.blocks import ResidualBlock
from egcnn.nn.edge_stream import EdgeGate, EdgeStream
from egcnn.nn.egcnn import EGCNN, Segmentation
from egcnn.nn.norm import NormReLU
from egcnn.nn.segnet import SegNet

__all__ = [
    "EGCNN",
    "Backbone",
    "EdgeGate",
    "EdgeStream",
    "Features",
    "NormReLU",
    "ResidualBlock",
    "SegNet",
    "Segmentation",
]
