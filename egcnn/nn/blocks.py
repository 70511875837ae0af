"""Building blocks of the backbones and the edge stream."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egcnn.nn.norm import NormReLU
from egcnn.ops import reference
from egcnn.ops._tensors import memory_format


class Conv3x3x3(nn.Conv3d):
    """Padded 3x3x3 convolution, without bias since a norm with a shift follows.

    Args:
        in_channels: channels of the input ``(B, in_channels, D, H, W)``.
        out_channels: channels of the output.
        stride: 1 keeps the size, 2 halves it (rounded up).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, D, H, W)`` to ``(B, out_channels, D', H', W')``."""
        if x.device.type != "cpu":
            return super().forward(x)
        narrow = _emulated_dtype(x, self.weight)
        if narrow is None:
            return self._on_cpu(x, self.weight)
        with torch.autocast("cpu", enabled=False):
            x, weight = (tensor.to(narrow).float() for tensor in (x, self.weight))
            return self._on_cpu(x, weight).to(narrow)

    def _on_cpu(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of a CPU tensor, however torch 2.13 does it best."""
        missing = [max(0, _SAFE_SIZE - size) for size in x.shape[2:]]
        if weight.requires_grad and any(missing):
            depth, height, width = ((size - 1) // self.stride[0] + 1 for size in x.shape[2:])
            padded = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
            y = F.conv3d(padded, weight, stride=self.stride, padding=1)
            return y[:, :, :depth, :height, :width].contiguous(memory_format=memory_format(x))
        if _is_slow(x):
            return self._in_halves(x, weight)
        return F.conv3d(x, weight, stride=self.stride, padding=1)

    def _in_halves(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same, with the halves of the depth as a batch of two."""
        stride = self.stride[0]
        depth = (x.shape[2] - 1) // stride + 1
        half = (depth + 1) // 2
        read, start = stride * (half - 1) + 3, stride * half  # of a half; where the second starts
        edge = torch.zeros_like(x[:, :, :1])
        missing = start + read - 1 - x.shape[2]
        parts = [edge, x[:, :, : read - 1], x[:, :, start - 1 : start + read - 1]]
        both = torch.cat([*parts, *[edge] * missing], 2)
        # Views in channels_last_3d, where the depth lies outermost in a single sample.
        halves = both.unflatten(2, (2, read)).squeeze(0).transpose(0, 1)
        y = F.conv3d(halves, weight, stride=stride, padding=(0, 1, 1))
        y = y.transpose(0, 1).flatten(1, 2)[None, :, :depth]
        return y.contiguous(memory_format=memory_format(x))


def _emulated_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The narrow type to convolve in by float32, rounded as the narrow type's results are.

    None where oneDNN has its convolutions (bfloat16 needs AVX-512): torch's own take five to ten
    times as long as float32.
    """
    if torch.compiler.is_compiling() or x.dtype == torch.float64:  # which autocast leaves alone
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    else:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    return dtype if dtype in _slow_dtypes() else None


@functools.cache
def _slow_dtypes() -> list[torch.dtype]:
    """The narrow types in which oneDNN does not convolve on this CPU."""
    checks = {
        torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None),
        torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None),
    }
    return [dtype for dtype, check in checks.items() if check is not None and not check()]


def _is_slow(x: Tensor) -> bool:
    """Whether torch convolves ``x`` by its own loops, which take ten times as long as oneDNN.

    It does so with single small samples in float32: ``use_mkldnn`` in torch 2.13's
    ``ATen/native/Convolution.cpp``. A traced graph must not depend on the size.
    """
    return (
        not torch.compiler.is_compiling()
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.shape[0] == 1
        and x.shape[2] > 1
        and math.prod(x.shape[1:4]) <= 20480
    )


# For bfloat16 volumes thinner than this, oneDNN in torch 2.13 reads out of bounds for the weight
# gradient: garbage, NaN or a crash. Zeros appended beyond the padding change none of the voxels
# that are kept.
_SAFE_SIZE = 3


def resize(x: Tensor, like: Tensor, mode: str = "trilinear") -> Tensor:
    """Resample ``x`` to the size of ``like``, trilinear (``align_corners=False``) or nearest."""
    corners = False if mode == "trilinear" else None
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=corners)


class UpConv(nn.ConvTranspose3d):
    """Transposed 2x2x2 convolution that doubles the size.

    Args:
        in_channels: channels of the input ``(B, in_channels, D, H, W)``.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:  # type: ignore[override]
        """``(B, in_channels, D, H, W)`` to the size of ``like``, which may be odd."""
        depth, height, width = like.shape[2:]
        return super().forward(x)[:, :, :depth, :height, :width]


def convolutions(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    """``count`` times 3x3x3 convolution, GroupNorm, ReLU."""
    layers: list[nn.Module] = []
    for before in (in_channels, *(out_channels,) * (count - 1)):
        layers += [Conv3x3x3(before, out_channels), NormReLU(out_channels)]
    return nn.Sequential(*layers)


# The seeds of the samples of the forward pass that runs in this context.
_DROPOUT_SEEDS: ContextVar[Tensor | None] = ContextVar("dropout_seeds", default=None)
# Keeps the numbers apart from those that the consistency loss draws of the same seeds.
_DROPOUT = 0x64726F706F7574


@contextmanager
def dropout_seeds(seeds: Tensor) -> Iterator[None]:
    """Let dropout draw from a seed of each sample, int64 ``(B,)``, in forward passes of the block.

    A sample then loses the same channels in any batch, at any place in it and on any device.
    """
    token = _DROPOUT_SEEDS.set(seeds ^ _DROPOUT)
    try:
        yield
    finally:
        _DROPOUT_SEEDS.reset(token)


class ChannelDropout(nn.Dropout3d):
    """Dropout of whole channels, as :class:`torch.nn.Dropout3d`, seeded by :func:`dropout_seeds`.

    Args:
        p: probability of a channel to be set to 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` to the same; the identity in evaluation mode."""
        if not self.training or self.p == 0:
            return x
        seeds = _DROPOUT_SEEDS.get()
        if seeds is None:
            return super().forward(x)
        batch, channels = x.shape[:2]
        drawn = [reference.philox_uniforms(seed, 1, channels) for seed in seeds]
        kept = torch.cat(drawn).view(batch, channels, 1, 1, 1) >= self.p
        return x * (kept / (1 - self.p)).to(x.dtype)


class ResidualBlock(nn.Module):
    """GroupNorm, ReLU, 3x3x3 convolution, twice, plus the input (He et al. 2016, arXiv 1603.05027).

    Args:
        in_channels: channels of the input ``(B, in_channels, D, H, W)``.
        out_channels: channels of the output of the same size; if they differ from the input's, the
            skip is a 1x1x1 convolution instead of the identity.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            NormReLU(in_channels),
            Conv3x3x3(in_channels, out_channels),
            NormReLU(out_channels),
            Conv3x3x3(out_channels, out_channels),
        )
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, D, H, W)`` to ``(B, out_channels, D, H, W)``."""
        return self.skip(x) + self.body(x)
