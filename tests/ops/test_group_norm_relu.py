"""group_norm_relu against hand-computed values and its definition (Wu and He, 2018)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import LAYER, RELATIVE, assert_near

pytestmark = pytest.mark.usefixtures("device")

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
# (B, C, D, H, W) and groups: one value a group, primes, channels that fill whole vectors and that
# do not, more channels than a block of the GPU has threads, more voxels than a job has.
SHAPES = [
    ((1, 1, 1, 1, 1), 1),
    ((2, 8, 1, 1, 1), 8),
    ((2, 3, 5, 7, 11), 1),
    ((1, 12, 4, 1, 5), 4),
    ((3, 6, 1, 1, 31), 2),
    ((2, 8, 3, 5, 7), 8),
    ((1, 70, 2, 3, 5), 2),
    ((1, 300, 2, 2, 2), 4),
    ((2, 16, 11, 13, 17), 8),
    ((1, 5, 17, 31, 37), 1),
]


def arguments(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, weight and bias."""
    x = (2 * torch.randn(shape) + 3).to(dtype).contiguous(memory_format=memory_format)
    parameters = reference.accumulate_dtype(dtype)
    return x, torch.randn(shape[1], dtype=parameters), torch.randn(shape[1], dtype=parameters)


def definition(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Moments and values in float64."""
    grouped = x.double().reshape(x.shape[0], groups, -1)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    y = ((grouped - mean) / (variance + eps).sqrt()).reshape(x.shape)
    shape = (1, -1, 1, 1, 1)
    return (y * weight.double().view(shape) + bias.double().view(shape)).clamp(min=0)


def test_by_hand() -> None:
    # Two groups of two channels of one voxel: 1 and 3 have the mean 2 and the variance 1.
    x = torch.tensor([1.0, 3.0, -10.0, 10.0], dtype=torch.float64).view(1, 4, 1, 1, 1)
    weight = torch.tensor([2.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    bias = torch.tensor([0.5, 0.5, 1.5, -1.0], dtype=torch.float64)
    y = ops.group_norm_relu(x, 2, weight, bias, eps=0).flatten()
    assert y.tolist() == pytest.approx([0.0, 2.5, 0.5, 2.0])
    y = ops.group_norm_relu(x, 2, weight, bias, eps=3).flatten()
    assert y.tolist() == pytest.approx([0, 1.5, 1.5 - 10 / 103**0.5, 30 / 103**0.5 - 1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_value_and_gradients_against_float64(
    dtype: torch.dtype, memory_format: torch.memory_format, shape: tuple[int, ...], groups: int
) -> None:
    inputs = arguments(shape, dtype, memory_format)
    grad = torch.randn(shape).to(dtype)  # contiguous whatever the inputs are
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = definition(exact[0], groups, *exact[1:])
    expected.backward(grad.double())
    # What is left of one value's gradient in a group of its own are differences of these.
    steepest = torch.ops.egcnn.group_norm_relu(*inputs, groups, 1e-5)[2].max().item()
    x, weight, bias = (t.requires_grad_() for t in inputs)
    result = ops.group_norm_relu(x, groups, weight, bias)
    result.backward(grad)
    assert result.dtype == dtype
    assert result.stride() == torch.empty_like(x).stride()
    assert_near(result.detach(), expected.detach(), dtype)
    for mine, theirs in zip((x, weight, bias), exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == mine.dtype
        largest = max(theirs.grad.abs().max().item(), steepest)
        tolerance = max(RELATIVE[dtype], LAYER.get(dtype, 0)) * largest
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=tolerance)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradcheck(memory_format: torch.memory_format) -> None:
    inputs = [t.requires_grad_() for t in arguments((2, 6, 3, 2, 4), memory_format=memory_format)]

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.group_norm_relu(x, 2, weight, bias)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_large_mean_keeps_the_variance(memory_format: torch.memory_format) -> None:
    x, weight, bias = arguments((1, 8, 5, 6, 7), torch.float32, memory_format)
    x = (x - 3) / 2 + 1000
    result = ops.group_norm_relu(x, 8, weight, bias)
    torch.testing.assert_close(result.double(), definition(x, 8, weight, bias), atol=1e-3, rtol=0)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_an_outlier_first_keeps_the_variance(memory_format: torch.memory_format) -> None:
    """The value that sums may be taken around is not like the others."""
    x, weight, bias = arguments((1, 2, 16, 16, 16), torch.float32, memory_format)
    x[:, :, :1, :1, :4] = 1e6
    exact = definition(x, 1, weight, bias)
    assert_near(ops.group_norm_relu(x, 1, weight, bias), exact, torch.float32)


def test_strided_input_and_mixed_formats() -> None:
    x, weight, bias = arguments((2, 4, 3, 4, 5), torch.float32)
    expected = ops.group_norm_relu(x, 2, weight, bias)
    strided = x.transpose(2, 4).contiguous().transpose(2, 4)
    assert torch.equal(ops.group_norm_relu(strided, 2, weight, bias), expected)
    every_other = torch.stack([weight, bias], 1)
    assert torch.equal(ops.group_norm_relu(x, 2, every_other[:, 0], every_other[:, 1]), expected)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (2, 3, 0, 2, 2)])
def test_empty_volume_has_zero_weight_gradients(shape: tuple[int, ...]) -> None:
    x, weight, bias = (t.requires_grad_() for t in arguments(shape))
    y = ops.group_norm_relu(x, 3, weight, bias)
    assert y.shape == shape
    y.sum().backward()
    for t in (x, weight, bias):
        assert t.grad is not None
        assert t.grad.shape == t.shape
        assert t.grad.eq(0).all()


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
# Over 8 MB in bf16: streamed. Odd sizes: no channel but the first is aligned.
@pytest.mark.parametrize("shape", [(1, 37, 41, 53, 61), (2, 8, 64, 72, 80)])
def test_past_the_caches(
    dtype: torch.dtype, memory_format: torch.memory_format, shape: tuple[int, ...]
) -> None:
    inputs = arguments(shape, dtype, memory_format)
    groups = 1 if shape[1] == 37 else 8
    grad = torch.randn_like(inputs[0])
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = definition(exact[0], groups, *exact[1:])
    expected.backward(grad.double())
    _, mean, rstd = torch.ops.egcnn.group_norm_relu(*inputs, groups, 1e-5)
    assert_near(ops.group_norm_relu(inputs[0], groups, *inputs[1:]), expected.detach(), dtype)
    gradients = torch.ops.egcnn.group_norm_relu_backward(grad, *inputs, mean, rstd, groups)
    for mine, theirs in zip(gradients, exact, strict=True):
        assert theirs.grad is not None
        difference = (mine.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < (1e-2 if dtype == torch.bfloat16 else 1e-3)


def test_memory_at_odd_addresses() -> None:
    x, weight, bias = arguments((1, 3, 5, 6, 7), torch.float32)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    expected = ops.group_norm_relu(x, 3, weight, bias)
    assert torch.equal(ops.group_norm_relu(shifted, 3, weight, bias), expected)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_nan_stays_in_its_group(memory_format: torch.memory_format) -> None:
    x, weight, bias = arguments((2, 6, 3, 5, 7), torch.float32, memory_format)
    expected = ops.group_norm_relu(x, 3, weight, bias)
    x[1, 2, 1, 2, 3] = math.nan
    result = ops.group_norm_relu(x, 3, weight, bias)
    assert result[1, 2:4].isnan().all()
    result[1, 2:4] = expected[1, 2:4]
    assert torch.equal(result, expected)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("memory_format", FORMATS)
def test_same_bits_with_any_number_of_threads(memory_format: torch.memory_format) -> None:
    inputs = arguments((2, 5, 29, 30, 31), torch.float32, memory_format)
    grad = torch.randn_like(inputs[0])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            forward = torch.ops.egcnn.group_norm_relu(*inputs, 1, 1e-5)
            backward = torch.ops.egcnn.group_norm_relu_backward(grad, *inputs, *forward[1:], 1)
            results.append((*forward, *backward))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    for memory_format in FORMATS:
        inputs = arguments((2, 4, 2, 3, 4), torch.float32, memory_format)
        moments = torch.ops.egcnn.group_norm_relu(*inputs, 2, 1e-5)[1:]
        opcheck(torch.ops.egcnn.group_norm_relu_backward, (inputs[0], *inputs, *moments, 2))
        opcheck(torch.ops.egcnn.group_norm_relu, (*(t.requires_grad_() for t in inputs), 2, 1e-5))


def test_compiles_whole() -> None:
    x, weight, bias = arguments((1, 4, 3, 4, 5), torch.float32)
    compiled = torch.compile(ops.group_norm_relu, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, 2, weight, bias), ops.group_norm_relu(x, 2, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(device: str, dtype: torch.dtype) -> None:
    x, weight, bias = arguments((1, 4, 3, 4, 5), dtype)
    expected = ops.group_norm_relu(x, 2, weight, bias)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = ops.group_norm_relu(x, 2, weight, bias)
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_keeps_nothing_of_full_size_but_its_input() -> None:
    x, weight, bias = (t.requires_grad_() for t in arguments((1, 4, 5, 6, 7), torch.float32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.group_norm_relu(x, 2, weight, bias)
    large = [t for t in kept if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


def test_reference_on_demand_allows_second_derivatives() -> None:
    x, weight, bias = (t.requires_grad_() for t in arguments((1, 2, 2, 2, 2)))
    loss = ops.group_norm_relu(x, 1, weight, bias).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="group_norm_relu has no second derivative"):
        grad.sum().backward()
    with ops.use_reference():
        assert torch.autograd.gradgradcheck(
            lambda *a: ops.group_norm_relu(a[0], 1, *a[1:]), (x, weight, bias)
        )


def test_reference_is_the_definition() -> None:
    for shape, groups in SHAPES:
        x, weight, bias = arguments(shape)
        result = reference.group_norm_relu(x, groups, weight, bias)
        assert_near(result, definition(x, groups, weight, bias), torch.float64)
        wide = reference.group_norm_relu(x.bfloat16().float(), groups, weight, bias)
        rounded = reference.group_norm_relu(x.bfloat16(), groups, weight, bias)
        assert torch.equal(rounded, wide.bfloat16())


X = torch.zeros(2, 6, 2, 2, 2)
SIX = torch.zeros(6)


@pytest.mark.parametrize(
    ("x", "groups", "weight", "bias", "message"),
    [
        (X[0], 2, SIX, SIX, r"x has the shape \(6, 2, 2, 2\); expected five"),
        (X.long(), 2, SIX, SIX, "x is int64; expected one of float64"),
        (X, 4, SIX, SIX, "groups is 4; expected a divisor of the 6 channels of x"),
        (X, 0, SIX, SIX, "groups is 0; expected a divisor"),
        (X, 2, SIX[:3], SIX, r"weight has the shape \(3,\); expected \(6,\)"),
        (X, 2, SIX, SIX[None], r"bias has the shape \(1, 6\); expected \(6,\)"),
        (X, 2, SIX.long(), SIX, "weight is torch.int64; expected a float"),
        (X, 2, SIX, SIX.to("meta"), "bias is on meta and x on cpu"),
    ],
)
def test_bad_input(x: Tensor, groups: int, weight: Tensor, bias: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.group_norm_relu(x, groups, weight, bias)
