"""Eq. (3) for networks with deep supervision, and nnU-Net's labels as regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from egcnn.losses import EGCNNLoss, LossSettings
from egcnn.nn import Segmentation
from egcnn.regions import Activation, Regions


class SupervisedLoss(nn.Module):
    """Eq. (3), with another loss at every resolution as the semantic term.

    Args:
        semantic: called with the logits and the targets at every resolution, finest first.
        regions: what the channels of the logits mean.
        settings: weights, edge loss and consistency loss.
    """

    def __init__(self, semantic: nn.Module, regions: Regions, settings: LossSettings) -> None:
        super().__init__()
        self.semantic = semantic
        self.weight = settings.semantic_weight
        self.boundary = EGCNNLoss(regions, settings.change({"semantic_weight": 0.0}))

    def forward(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The loss of logits at every resolution and edge logits at the finest, as a scalar.

        Args:
            outputs: ``[logits, *coarser logits, edge logits]``.
            targets: at each resolution: label maps ``(B, 1, D, H, W)`` of exclusive classes, or
                regions ``(B, R, D, H, W)``, or ``(B, R + 1, D, H, W)``, where the last channel
                holds the voxels to ignore.
        """
        *supervised, edge_logits = outputs
        labels, ignored, regions = targets[0], None, self.boundary.regions
        if regions.exclusive:
            labels = labels.to(torch.int16)
        elif labels.shape[1] > len(regions):
            labels, ignored = labels.bool().tensor_split([len(regions)], 1)
        else:
            labels = labels.bool()
        segmentation = Segmentation(supervised[0], edge_logits)
        boundary = self.boundary(segmentation, labels, ignored=ignored)["loss"]
        return self.weight * self.semantic(supervised, targets) + boundary


def regions_of(labels: Any) -> Regions:
    """The regions, or exclusive classes, of nnU-Net's label manager."""
    found = labels.all_regions if labels.has_regions else labels.all_labels
    values = [tuple(np.atleast_1d(value).tolist()) for value in found]
    activation: Activation = "sigmoid" if labels.has_regions else "softmax"
    return Regions(tuple(map(str, values)), tuple(values), activation, labels.ignore_label)
