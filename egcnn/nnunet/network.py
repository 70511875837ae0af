"""nnU-Net's planned networks within EG-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from egcnn.errors import InputError
from egcnn.nn import EGCNN, EdgeStreamSettings


class PlannedEGCNN(EGCNN):
    """EG-CNN around a network of nnU-Net's, with the outputs that nnU-Net expects.

    Args:
        planned: a network whose ``decoder`` has the switch ``deep_supervision``.
        channels: of its images.
        strides: of its resolutions along each axis, finest first.
        edge_stream: the edge stream's variant, as its ``to_dict()``.
        exclusive: whether classes are exclusive, or regions may overlap.

    Raises:
        InputError: a 2D network.
    """

    def __init__(
        self,
        planned: nn.Module,
        channels: int,
        strides: Sequence[Sequence[int]],
        edge_stream: Mapping[str, Any],
        exclusive: bool,
    ) -> None:
        if len(strides[0]) != 3:
            raise InputError(
                "nnUNetTrainerEGCNN: the configuration is 2D; expected a 3D one, as 3d_fullres"
            )
        # The smallest volume that instance norm takes: two voxels at the coarsest resolution.
        size = (2 * np.prod(strides, 0)).tolist()
        settings = EdgeStreamSettings.from_dict(edge_stream)
        super().__init__(planned, settings, example=(1, channels, *size), exclusive=exclusive)

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
