"""The residual block against its formula, and resampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from egcnn.nn import ResidualBlock, blocks
from egcnn.nn.blocks import Conv3x3x3, resize

from ..tolerances import LAYER


def test_identity_skip_to_the_bit_when_the_body_is_silent() -> None:
    block = ResidualBlock(4, 4)
    nn.init.zeros_(block.body[3].weight)
    x = torch.randn(2, 4, 3, 5, 2)
    assert torch.equal(block(x), x)


def test_projection_where_channels_change() -> None:
    block = ResidualBlock(3, 6)
    nn.init.zeros_(block.body[3].weight)
    x = torch.randn(2, 3, 3, 5, 2)
    weight = block.skip.weight[:, :, 0, 0, 0]
    torch.testing.assert_close(block(x), torch.einsum("oc,bcdhw->bodhw", weight, x))


def test_one_voxel_by_hand() -> None:
    # One voxel normalises to 0, so that norm and ReLU pass their shift: 2, and 3 after the first
    # convolution; only the kernels' centres see data. Out = skip 7 + 3 * second centre 0.5.
    block = ResidualBlock(1, 1)
    for index, shift in ((0, 2.0), (2, 3.0)):
        nn.init.constant_(block.body[index].bias, shift)
    nn.init.constant_(block.body[3].weight, 0.5)
    assert block(torch.full((1, 1, 1, 1, 1), 7.0)).item() == pytest.approx(8.5)


def test_convolutions_pad_with_zeros() -> None:
    # Two voxels -1, 1 normalise to -1, 1, rectify to 0, 1; kernels of ones sum both: 1, 1, which
    # normalise to 0, 0, so that the second convolution adds nothing.
    block = ResidualBlock(1, 1)
    for index in (1, 3):
        nn.init.ones_(block.body[index].weight)
    x = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 1, 2)
    torch.testing.assert_close(block(x), x)
    nn.init.ones_(block.body[2].bias)
    torch.testing.assert_close(block(x), x + 2)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 2), (7, 1, 4)])
def test_resize_takes_the_size_and_keeps_constants(size: tuple[int, int, int]) -> None:
    y = resize(torch.full((1, 2, 2, 3, 1), 1.5), torch.empty(1, 9, *size))
    assert y.shape == (1, 2, *size)
    torch.testing.assert_close(y, torch.full_like(y, 1.5))


def test_resize_does_not_align_corners() -> None:
    x = torch.tensor([0.0, 4.0]).view(1, 1, 1, 1, 2)
    y = resize(x, torch.empty(1, 1, 1, 1, 4))
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 1.0, 3.0, 4.0]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 4, 4), (2, 3, 2), (5, 5, 1), (3, 3, 3)])
def test_bf16_weight_gradients_of_thin_volumes(
    size: tuple[int, int, int], stride: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = Conv3x3x3(8, 8, stride).to(torch.bfloat16).to(memory_format=layout)
    x = torch.randn(2, 8, *size).to(torch.bfloat16).contiguous(memory_format=layout)
    weight = conv.weight.detach().double().requires_grad_()
    expected = nn.functional.conv3d(x.double(), weight, stride=stride, padding=1)
    upstream = torch.randn_like(expected).to(torch.bfloat16)
    expected.backward(upstream.double())
    y = conv(x)
    for _ in range(5):
        # NaN in freed memory, so that a read outside the tensors shows.
        del [torch.full((1 << k,), float("nan")) for k in range(8, 17)][:]
        (gradient,) = torch.autograd.grad(y, conv.weight, upstream, retain_graph=True)
        torch.testing.assert_close(gradient.double(), weight.grad, atol=0.1, rtol=0.02)
    assert y.shape == expected.shape
    torch.testing.assert_close(
        y.double(), expected, atol=LAYER[torch.bfloat16], rtol=LAYER[torch.bfloat16]
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depth", range(1, 9))
def test_single_samples_in_halves(depth: int, stride: int, layout: torch.memory_format) -> None:
    """Small single samples in float32, which torch alone convolves slowly, as float64 has them."""
    conv = Conv3x3x3(3, 5, stride).to(memory_format=layout)
    x = torch.randn(1, 3, depth, 6, 7).to(memory_format=layout).requires_grad_()
    y = conv(x)
    expected_x = x.detach().double().requires_grad_()
    weight = conv.weight.detach().double().requires_grad_()
    expected = nn.functional.conv3d(expected_x, weight, stride=stride, padding=1)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    assert y.is_contiguous(memory_format=layout)
    for actual, true in ((y, expected), (x.grad, expected_x.grad), (conv.weight.grad, weight.grad)):
        torch.testing.assert_close(
            actual, true, check_dtype=False, atol=LAYER[torch.float32], rtol=LAYER[torch.float32]
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(2, 3, 1, 5, 4), (1, 3, 8, 6, 7), (1, 3, 7, 6, 7)])
def test_narrow_types_by_float32_where_torch_is_slow_in_them(
    size: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded where the narrow type rounds: the operands, the result, the gradients."""
    monkeypatch.setattr(blocks, "_slow_dtypes", lambda: [torch.bfloat16, torch.float16])
    convolved = []
    convolve = nn.functional.conv3d

    def watched(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        convolved.append(x.dtype)
        return convolve(x, *args, **options)

    monkeypatch.setattr(nn.functional, "conv3d", watched)
    conv = Conv3x3x3(3, 5)
    x = torch.randn(size, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = conv(x)
    assert convolved == [torch.float32]
    expected_x, weight = (
        tensor.detach().to(dtype).double().requires_grad_() for tensor in (x, conv.weight)
    )
    expected = convolve(expected_x, weight, padding=1)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    assert y.dtype == dtype
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32
    for actual, true in ((y, expected), (x.grad, expected_x.grad), (conv.weight.grad, weight.grad)):
        assert torch.equal(actual, actual.to(dtype).to(actual.dtype))
        torch.testing.assert_close(
            actual, true, check_dtype=False, atol=LAYER[torch.float32], rtol=torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_other_types_than_the_weights_are_refused_where_narrow_ones_are_slow(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_slow_dtypes", lambda: [torch.bfloat16, torch.float16])
    with pytest.raises(RuntimeError, match="type"):
        Conv3x3x3(3, 5)(torch.zeros(1, 3, 4, 4, 4, dtype=dtype))


def test_resampling_compiles_for_sizes_that_change() -> None:
    compiled = torch.compile(resize, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((3, 4, 5), (4, 3, 6)):
        x = torch.randn(1, 2, *size, requires_grad=True)
        like = torch.empty(1, 1, *(2 * length - 1 for length in size))
        result, expected = compiled(x, like), resize(x, like)
        torch.testing.assert_close(result, expected)
        grads = (torch.autograd.grad(y.square().sum(), x)[0] for y in (result, expected))
        torch.testing.assert_close(*grads)
