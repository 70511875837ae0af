"""nnU-Net's planned network within EG-CNN: ``nnUNetv2_train ... -tr nnUNetTrainerEGCNN``."""

# ruff: noqa: N801, N999  # as nnU-Net names its trainers and their files
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from egcnn.errors import InputError
from egcnn.losses import LossSettings
from egcnn.nn import EdgeStreamSettings
from egcnn.nnunet.loss import SupervisedLoss, regions_of
from egcnn.nnunet.network import PlannedEGCNN


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
            "edge_stream": self.edge_stream.to_dict(),
            "exclusive": not self.label_manager.has_regions,
        }
        super().initialize()

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        *others: Any,
        **options: Any,
    ) -> nn.Module:
        """Build the planned network, and the edge stream around it."""
        given = plans_manager, configuration_manager, num_input_channels
        planned = nnUNetTrainer.build_network_architecture(*given, *others, **options)
        strides = configuration_manager.pool_op_kernel_sizes
        return PlannedEGCNN(planned, num_input_channels, strides, **plans_manager.plans["egcnn"])

    def _build_loss(self) -> nn.Module:
        return SupervisedLoss(super()._build_loss(), regions_of(self.label_manager), self.losses)
