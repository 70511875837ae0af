"""region_sums by hand and against the reference, its gradients, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import RELATIVE

pytestmark = pytest.mark.usefixtures("device")

# One voxel, odd and prime sizes, more than a chunk or a run of voxels, and more than a block.
SIZES = [(1, 1, 1), (3, 5, 7), (11, 13, 17), (29, 31, 37)]
FORMATS = (torch.contiguous_format, torch.channels_last_3d)
KINDS = [("sigmoid", False), ("sigmoid", True), ("softmax", False)]


def volumes(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """Logits and regions."""
    logits = (4 * torch.randn(shape)).to(dtype).contiguous(memory_format=memory_format)
    return logits, (torch.rand(shape) < 0.3).contiguous(memory_format=memory_format)


def test_by_hand() -> None:
    logits = torch.tensor([math.log(3), 0.0, -math.log(3)]).view(1, 1, 1, 1, 3)
    target = torch.tensor([True, False, True]).view(1, 1, 1, 1, 3)
    overlap, squares, truth, inside, outside = ops.region_sums(
        logits, target, activation="sigmoid", entropy=True
    ).flatten()
    assert overlap.item() == pytest.approx(0.75 + 0.25)
    assert squares.item() == pytest.approx(0.75**2 + 0.5**2 + 0.25**2)
    assert truth.item() == 2
    assert inside.item() == pytest.approx(-math.log(0.75) - math.log(0.25))
    assert outside.item() == pytest.approx(-math.log(0.5))


@pytest.mark.parametrize(("activation", "entropy"), KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_kernel_agrees_with_the_reference(
    activation: str,
    entropy: bool,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    ignore: bool,
    size: tuple[int, int, int],
    request: pytest.FixtureRequest,
) -> None:
    if size == SIZES[-1] and request.node.callspec.params["device"] == "cuda_on_cpu":
        pytest.skip("blocks are the CPU's, and the stand-in is slow")
    logits, target = volumes((2, 3, *size), dtype, memory_format)
    ignored = (torch.rand(2, 1, *size) < 0.2) if ignore else None
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    sums = ops.region_sums(logits, target, activation=activation, entropy=entropy, ignored=ignored)
    expected = reference.region_sums(exact, target, activation, entropy, ignored)
    assert sums.dtype == reference.accumulate_dtype(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(sums.double(), expected, rtol=tolerance, atol=tolerance)

    grad = torch.randn(sums.shape, dtype=sums.dtype)
    sums.backward(grad)
    expected.backward(grad.double())
    assert logits.grad is not None
    assert logits.grad.stride() == logits.stride()
    # The slopes of a softmax cancel where a probability is near 1.
    largest = grad.abs().max().item()
    torch.testing.assert_close(
        logits.grad.double(), exact.grad, rtol=RELATIVE[dtype], atol=RELATIVE[dtype] * largest
    )


@pytest.mark.parametrize("channels", [1, 2, 5, 70])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_any_number_of_channels(channels: int, activation: str) -> None:
    logits, target = volumes((1, channels, 5, 6, 7), torch.float64)
    logits.requires_grad_()
    sums = ops.region_sums(logits, target, activation=activation)
    expected = reference.region_sums(logits, target, activation)
    torch.testing.assert_close(sums, expected)
    (grad,) = torch.autograd.grad(sums.sin().sum(), logits)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sin().sum(), logits)[0])


@pytest.mark.parametrize(("activation", "entropy"), KINDS)
def test_gradcheck(activation: str, entropy: bool) -> None:
    logits, target = volumes((2, 2, 2, 3, 5), torch.float64)

    def sums(z: Tensor) -> Tensor:
        return ops.region_sums(z, target, activation=activation, entropy=entropy)

    assert torch.autograd.gradcheck(sums, logits.requires_grad_())


@pytest.mark.parametrize(("activation", "entropy"), KINDS)
def test_opcheck(activation: str, entropy: bool) -> None:
    logits, target = volumes((2, 2, 3, 4, 5))
    options = (activation == "softmax", entropy)
    opcheck(torch.ops.egcnn.region_sums.default, (logits.requires_grad_(), target, *options))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_types_of_the_target(dtype: torch.dtype) -> None:
    logits, target = volumes((1, 2, 4, 5, 6))
    expected = ops.region_sums(logits, target, activation="sigmoid")
    found = ops.region_sums(logits, target.to(dtype), activation="sigmoid")
    torch.testing.assert_close(found, expected)
    if dtype != torch.float32:
        doubled = ops.region_sums(logits, target.to(dtype) * 2, activation="sigmoid")
        assert torch.equal(doubled, expected)


@pytest.mark.parametrize(("activation", "entropy"), KINDS)
def test_large_logits_and_infinities(activation: str, entropy: bool) -> None:
    logits = torch.tensor([-3e38, -200.0, -88.0, -20.0, 20.0, 88.0, 200.0, 3e38])
    logits = torch.stack([logits, logits.flip(0) / 2]).view(1, 2, 2, 2, 2)
    target = torch.rand(logits.shape) < 0.5
    sums = ops.region_sums(logits, target, activation=activation, entropy=entropy)
    expected = reference.region_sums(logits.double(), target, activation, entropy)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("activation", "entropy"), KINDS)
def test_nan_comes_out_of_the_region_that_has_it(activation: str, entropy: bool) -> None:
    logits, target = volumes((2, 2, 3, 4, 5))
    logits[0, 1, 1, 2, 3] = torch.nan
    sums = ops.region_sums(logits, target, activation=activation, entropy=entropy)
    assert sums[0, 1, 1].isnan()
    assert not sums[1].isnan().any()
    assert sums[0, 0, 1].isnan() == (activation == "softmax")


@pytest.mark.parametrize(("activation", "entropy"), KINDS)
@pytest.mark.parametrize("held", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("function", [ops.region_sums, reference.region_sums])
def test_ignored_voxels_have_no_part_whatever_they_hold(
    activation: str, entropy: bool, held: float, function: Callable[..., Tensor]
) -> None:
    logits, target = volumes((2, 3, 4, 5, 7))
    ignored = torch.rand(2, 1, 4, 5, 7) < 0.2
    found = []
    for value in (0.0, held):
        z = logits.masked_fill(ignored, value).requires_grad_()
        sums = function(z, target, activation=activation, entropy=entropy, ignored=ignored)
        sums.sin().sum().backward()
        assert z.grad is not None
        assert not z.grad.masked_select(ignored).any()  # NaN is true
        found.append((sums.detach(), z.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_same_bits_with_any_number_of_threads() -> None:
    logits, target = volumes((2, 3, 40, 41, 42))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(ops.region_sums(logits, target, activation="softmax"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(sums, found[0]) for sums in found)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5), (1, 0, 3, 4, 5), (1, 2, 3, 0, 5)])
def test_empty(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    sums = ops.region_sums(logits, torch.zeros(shape, dtype=torch.bool), activation="sigmoid")
    assert sums.shape == (*shape[:2], 3)
    assert not sums.any()
    sums.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == shape


def test_memory_without_an_order_is_taken() -> None:
    logits, target = volumes((1, 2, 6, 5, 4))
    expected = ops.region_sums(logits, target, activation="sigmoid")
    strided = ops.region_sums(
        logits.transpose(2, 4), target.transpose(2, 4).contiguous(), activation="sigmoid"
    )
    torch.testing.assert_close(strided, expected)
    mixed = target.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(ops.region_sums(logits, mixed, activation="sigmoid"), expected)


X = torch.zeros(1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (X[0], X, {}, "logits has the shape"),
        (X.long(), X, {}, "logits is int64"),
        (X, X[:, :1], {}, "target has 1 channels; expected 2"),
        (X, X[..., :1], {}, "target has the shape"),
        (X, X, {"activation": "tanh"}, "activation is 'tanh'"),
        (X, X, {"activation": "softmax", "entropy": True}, "entropy is True; expected False"),
        (X, X, {"ignored": X[:, :1]}, "ignored is float32; expected one of bool"),
        (X, X, {"ignored": X[:, :1, 1:].bool()}, "ignored has the shape"),
    ],
)
def test_rejections(logits: Tensor, target: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.region_sums(
            logits.to(torch.get_default_device()),
            target.to(torch.get_default_device()),
            **{"activation": "sigmoid", **options},
        )
