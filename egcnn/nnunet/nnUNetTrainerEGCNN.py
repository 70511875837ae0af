"""nnU-Net's planned network within EG-CNN: ``nnUNetv2_train ... -tr nnUNetTrainerEGCNN``."""

# ruff: noqa: N801, N999  # as nnU-Net names its trainers and their files
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from egcnn.errors import InputError
from egcnn.losses import EGCNNLoss, LossSettings
from egcnn.nn import EGCNN, EdgeStreamSettings, Segmentation
from egcnn.regions import Activation, Regions


class Network(EGCNN):
    """EG-CNN around a network of nnU-Net's, with the outputs that nnU-Net expects."""

    @property
    def decoder(self) -> Any:
        """The decoder, whose ``deep_supervision`` nnU-Net switches."""
        return self.backbone.decoder

    def forward(self, x: Tensor) -> Any:
        """The logits; with deep supervision ``[logits, *coarser logits, edge logits]``."""
        features = self.features(x)
        segmentation = self.fuse(features)
        if not self.decoder.deep_supervision:
            return segmentation.logits
        return [segmentation.logits, *features.others, segmentation.edge_logits]


class Loss(nn.Module):
    """Eq. (3), with nnU-Net's loss at every resolution as the semantic term.

    Args:
        semantic: nnU-Net's loss, for deep supervision.
        labels: nnU-Net's label manager.
        settings: weights, edge loss and consistency loss.
    """

    def __init__(self, semantic: nn.Module, labels: Any, settings: LossSettings) -> None:
        super().__init__()
        self.semantic = semantic
        self.weight = settings.semantic_weight
        found = labels.all_regions if labels.has_regions else labels.all_labels
        values = [tuple(np.atleast_1d(value).tolist()) for value in found]
        activation: Activation = "sigmoid" if labels.has_regions else "softmax"
        regions = Regions(tuple(map(str, values)), tuple(values), activation, labels.ignore_label)
        self.boundary = EGCNNLoss(regions, settings.change({"semantic_weight": 0.0}))

    def forward(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The loss of the network's outputs and of the targets at each resolution."""
        *supervised, edge_logits = outputs
        labels, ignored, regions = targets[0], None, self.boundary.regions
        if regions.exclusive:
            labels = labels.to(torch.int16)
        elif labels.shape[1] > len(regions):  # the last one holds the voxels to ignore
            labels, ignored = labels.bool().tensor_split([len(regions)], 1)
        else:
            labels = labels.bool()
        segmentation = Segmentation(supervised[0], edge_logits)
        boundary = self.boundary(segmentation, labels, ignored=ignored)["loss"]
        return self.weight * self.semantic(supervised, targets) + boundary


class nnUNetTrainerEGCNN(nnUNetTrainer):
    """nnU-Net's trainer with the planned network inside EG-CNN; subclasses set the attributes.

    Attributes:
        edge_stream: the edge stream's variant.
        losses: the weights of Eq. (3), the edge loss and the consistency loss.

    Raises:
        InputError: a 2D configuration, or training without deep supervision.
    """

    edge_stream = EdgeStreamSettings()
    losses = LossSettings()

    def initialize(self) -> None:
        """Build network, optimizer and loss."""
        if not self.enable_deep_supervision:
            raise InputError(
                f"{type(self).__name__}: enable_deep_supervision is False; expected True, since "
                "the edge logits are one of the supervised outputs"
            )
        # nnU-Net saves the plans beside the weights, and predicts with what they describe.
        self.plans_manager.plans["egcnn"] = {
            "exclusive": not self.label_manager.has_regions,
            "edge_stream": self.edge_stream.to_dict(),
        }
        super().initialize()

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        *arguments: Any,
        **options: Any,
    ) -> nn.Module:
        """Build the planned network, and the edge stream around it."""
        strides = np.array(configuration_manager.pool_op_kernel_sizes)
        if strides.shape[1] != 3:
            raise InputError(
                "nnUNetTrainerEGCNN: the configuration is 2D; expected a 3D one, as 3d_fullres"
            )
        planned = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, *arguments, **options
        )
        settings = plans_manager.plans["egcnn"]
        return Network(
            planned,
            EdgeStreamSettings.from_dict(settings["edge_stream"]),
            # The smallest volume that instance norm takes: two voxels at the coarsest resolution.
            example=(1, num_input_channels, *(2 * strides.prod(0)).tolist()),
            exclusive=settings["exclusive"],
        )

    def _build_loss(self) -> nn.Module:
        return Loss(super()._build_loss(), self.label_manager, self.losses)
