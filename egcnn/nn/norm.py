"""GroupNorm with ReLU, also fast for few channels in ``channels_last_3d`` on a CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from egcnn.ops._tensors import memory_format


def group_count(channels: int) -> int:
    """Number of groups of a GroupNorm: the largest of 8, 4, 2, 1 that divides ``channels``."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)


class NormReLU(nn.GroupNorm):
    """GroupNorm (Wu and He, 2018) with :func:`group_count` groups, then ReLU; shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__(group_count(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, D, H, W)`` per sample and group, then rectify."""
        if _needs_rows(x):
            return _RowsNormReLU.apply(x, self.num_groups, self.weight, self.bias, self.eps)
        # F.group_norm rejects groups of one value, as in a one-voxel volume; normalised, they are
        # 0.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps).relu_()


def _needs_rows(x: Tensor) -> bool:
    # torch's kernel for this layout vectorizes over one voxel's channels; with few of them its
    # backward costs more than that of a 3x3x3 convolution. From 64 channels on it is faster than
    # ours.
    return (
        x.device.type == "cpu"
        and x.shape[1] < 64
        and not torch.compiler.is_compiling()
        and memory_format(x) == torch.channels_last_3d
    )


def _rows(x: Tensor) -> Tensor:
    """View ``channels_last_3d`` memory as rows ``(B, D*H, W*C)``, long enough for wide vectors."""
    batch, channels, depth, height, width = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(batch, depth * height, width * channels)


def _row(per_channel: Tensor, width: int) -> Tensor:
    """``(B, C)`` repeated along one row, ``(B, 1, W*C)``."""
    return per_channel.repeat(1, width).unsqueeze(1)


class _RowsNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        batch, channels = x.shape[:2]
        width = x.shape[-1]
        values = channels // groups * math.prod(x.shape[2:])
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows = _rows(x).to(dtype)

        def group_mean(row_sums: Tensor) -> Tensor:
            sums = row_sums.view(batch, width, groups, -1).sum((1, 3)) / values
            return sums.repeat_interleave(channels // groups, 1)

        mean = group_mean(rows.sum(1))
        centred = rows - _row(mean, width)
        rstd = (group_mean((centred * centred).sum(1)) + eps).rsqrt()
        scale = _row(rstd * weight, width)
        shift = _row(bias.to(dtype).expand(batch, -1), width)
        out = torch.empty_like(x)
        _rows(out).copy_(torch.addcmul(shift, centred, scale).relu_())
        ctx.save_for_backward(x, out, weight, mean, rstd)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, rstd = ctx.saved_tensors
        batch, channels = x.shape[:2]
        width = x.shape[-1]
        members = channels // ctx.groups
        values = members * math.prod(x.shape[2:])
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        rows, grad_rows = _rows(x).to(mean.dtype), _rows(grad).to(mean.dtype)

        def channel_sum(row_sums: Tensor) -> Tensor:
            return row_sums.view(batch, width, channels).sum(1)

        def group_mean(per_channel: Tensor) -> Tensor:
            sums = per_channel.view(batch, ctx.groups, members).sum(2) / values
            return sums.repeat_interleave(members, 1)

        # With h = (x - mean) * rstd: dL/dx = rstd * (w g - mean(w g) - h * mean(w g h)).
        grad_sum = channel_sum(grad_rows.sum(1))
        grad_h_sum = (channel_sum((grad_rows * rows).sum(1)) - mean * grad_sum) * rstd
        slope = -rstd.square() * group_mean(weight * grad_h_sum)
        offset = -rstd * group_mean(weight * grad_sum) - slope * mean
        grad_x = torch.addcmul(_row(offset, width), rows, _row(slope, width))
        grad_x.addcmul_(grad_rows, _row(rstd * weight, width))
        result = torch.empty_like(x)
        _rows(result).copy_(grad_x)
        grad_weight = grad_h_sum.sum(0).to(weight.dtype)
        return result, None, grad_weight, grad_sum.sum(0).to(weight.dtype), None
