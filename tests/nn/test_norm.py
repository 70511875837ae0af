"""NormReLU: the layer; its operator's tests are in tests/ops/test_group_norm_relu.py."""

from __future__ import annotations

import pytest
import torch

from egcnn.nn import NormReLU
from egcnn.nn.norm import group_count

from ..tolerances import REORDERED

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 8), (12, 4), (32, 8)]
)
def test_group_count(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_group_norm_and_relu(dtype: torch.dtype, layout: str) -> None:
    norm = NormReLU(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5, 7).to(dtype).contiguous(memory_format=FORMATS[layout])
    y = norm(x)
    expected = torch.nn.functional.group_norm(x.float(), 2, norm.weight, norm.bias, norm.eps).relu()
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[layout])
    rounded = REORDERED if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(y.float(), expected, rtol=rounded, atol=rounded)


def test_one_voxel_gives_the_shift() -> None:
    norm = NormReLU(8)
    torch.nn.init.constant_(norm.bias, 0.25)
    x = torch.randn(1, 8, 1, 1, 1, requires_grad=True)
    y = norm(x)
    torch.testing.assert_close(y, torch.full_like(y, 0.25), atol=1e-3, rtol=0)
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_one_operator_in_a_step() -> None:
    """No copies, no sums of each channel, which took longer than the convolutions."""
    norm = NormReLU(8)
    x = torch.randn(2, 8, 4, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        norm(x).backward(torch.ones_like(x))
    names = {event.key for event in profiler.key_averages()}
    assert {"egcnn::group_norm_relu", "egcnn::group_norm_relu_backward"} <= names
    assert not names & {"aten::copy_", "aten::sum", "aten::mul", "aten::addcmul"}
