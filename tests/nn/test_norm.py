"""GroupNorm with ReLU against its definition, in both memory formats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from egcnn.nn import NormReLU
from egcnn.nn.norm import group_count

from ..tolerances import LAYER

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


def definition(x: Tensor, norm: NormReLU) -> Tensor:
    """GroupNorm (Wu and He, 2018) and ReLU by definition, in float64."""
    grouped = x.double().reshape(x.shape[0], norm.num_groups, -1)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    y = ((grouped - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)
    shape = (1, -1, 1, 1, 1)
    return (y * norm.weight.double().view(shape) + norm.bias.double().view(shape)).clamp(min=0)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 8), (12, 4), (32, 8)]
)
def test_group_count(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "shape", [(2, 8, 3, 5, 7), (1, 12, 4, 1, 5), (3, 6, 1, 1, 2), (1, 64, 3, 2, 3)]
)
@pytest.mark.parametrize("dtype", LAYER)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    norm = NormReLU(shape[1]).to(torch.float64 if dtype == torch.float64 else torch.float32)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (2 * torch.randn(shape) + 3).to(dtype).contiguous(memory_format=FORMATS[layout])
    upstream = torch.randn(shape).to(dtype)

    exact = x.double().requires_grad_()
    expected = definition(exact, norm)
    expected_gradients = torch.autograd.grad(
        expected, (exact, norm.weight, norm.bias), upstream.double()
    )
    x.requires_grad_()
    y = norm(x)
    gradients = torch.autograd.grad(y, (x, norm.weight, norm.bias), upstream)

    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[layout])
    for got, other in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        error = (got.double() - other.double()).abs().max() / other.double().abs().max()
        assert error < LAYER[dtype]


def test_gradcheck_channels_last() -> None:
    torch.manual_seed(0)
    norm = NormReLU(6).double()
    x = torch.randn(2, 6, 3, 2, 4, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias))


def test_one_voxel_gives_the_shift() -> None:
    norm = NormReLU(8)
    torch.nn.init.constant_(norm.bias, 0.25)
    x = torch.randn(1, 8, 1, 1, 1, requires_grad=True)
    y = norm(x)
    torch.testing.assert_close(y, torch.full_like(y, 0.25), atol=1e-3, rtol=0)
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_large_mean_keeps_the_variance() -> None:
    torch.manual_seed(0)
    norm = NormReLU(8)
    x = torch.randn(1, 8, 5, 6, 7) + 1000
    x = x.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(norm(x).double(), definition(x, norm), atol=2e-3, rtol=0)
