"""GroupNorm with ReLU."""

from __future__ import annotations

from torch import Tensor, nn

from egcnn import ops


def group_count(channels: int) -> int:
    """Number of groups of a GroupNorm: the largest of 8, 4, 2, 1 that divides ``channels``."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)


class NormReLU(nn.GroupNorm):
    """GroupNorm (Wu and He, 2018) with :func:`group_count` groups, then ReLU; shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__(group_count(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, D, H, W)`` per sample and group, then rectify."""
        return ops.group_norm_relu(x, self.num_groups, self.weight, self.bias, self.eps)
