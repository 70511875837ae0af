"""What the CUDA sources do otherwise on other GPUs, on the stand-in: products without tensor cores
(sm_70), on those for f16 (sm_75) and on those of Ampere, which sum in fours (sm_80).

The other tests see the stand-in's usual architecture.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import pytest
import torch
from torch import Tensor

from egcnn import ops
from egcnn.ops import _backend, reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import assert_near
from .conftest import load_cuda_on_cpu

# The first test of an architecture compiles the sources for it.
pytestmark = [pytest.mark.slow, pytest.mark.thorough]
FORMATS = (torch.contiguous_format, torch.channels_last_3d)

load = cache(load_cuda_on_cpu)


@pytest.fixture(params=[70, 75, 80])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loaded = load(request.param)
    monkeypatch.setattr(_backend, "_C", loaded)
    return loaded


def check_channel_gate(e: Tensor, m: Tensor) -> None:
    dtype, channels, gates = e.dtype, (e.shape[1], m.shape[1]), e.shape[1]
    shapes = [(gates, channels[0]), (gates, channels[1]), (gates,)]
    weights = [torch.randn(s, dtype=reference.accumulate_dtype(dtype)) / 4 for s in shapes]
    exact = [t.double().clone().requires_grad_() for t in (e, m, *weights)]
    expected = reference.edge_gate_upsampled(*exact, "sigmoid")
    inputs = [t.detach().clone().requires_grad_() for t in (e, m, *weights)]
    result = ops.edge_gate_upsampled(*inputs, activation="sigmoid")
    grad = torch.randn(expected.shape).to(dtype)
    result.backward(grad)
    expected.backward(grad.double())
    assert_near(result.detach(), expected.detach(), dtype)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert_near(mine.grad, theirs.grad, dtype)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
# Chunks of 32 channels that are not full, one full of each, and more than one of each.
@pytest.mark.parametrize("channels", [(3, 5), (32, 32), (40, 70)])
def test_channel_gate(
    dtype: torch.dtype, memory_format: torch.memory_format, channels: tuple[int, int]
) -> None:
    e, m = (torch.randn(2, c, 3, 5, 8).to(dtype) for c in channels)
    check_channel_gate(*(t.contiguous(memory_format=memory_format) for t in (e, m)))


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [(3, 5), (40, 70)])
def test_upsampled_channel_gate(dtype: torch.dtype, channels: tuple[int, int]) -> None:
    e, m = torch.randn(2, channels[0], 3, 5, 8), torch.randn(2, channels[1], 6, 9, 16)
    check_channel_gate(e.to(dtype), m.to(dtype))


@pytest.mark.usefixtures("module")
def test_gradients_below_the_range_of_f16() -> None:
    e, m, grad = (torch.randn(1, 4, 3, 5, 8).half() for _ in range(3))
    grad = grad * 2.0**-14
    weights = [torch.randn(4, 4) / 4, torch.randn(4, 4) / 4, torch.randn(4)]
    # Values of 2^-6 on top: what becomes of the weights' gradients are products near 2^-28.
    inputs = [(e / 64).requires_grad_(), m, *(t.requires_grad_() for t in weights)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    reference.edge_gate(*exact, "sigmoid").backward(grad.double())
    ops.edge_gate(*inputs, activation="sigmoid").backward(grad)
    for mine, theirs in zip(inputs[2:], exact[2:], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert_near(mine.grad, theirs.grad, torch.float16)


def test_tf32_is_for_tensor_cores_that_have_it(module: ModuleType) -> None:
    inputs = [torch.randn(1, 32, 3, 5, 8), torch.randn(1, 32, 3, 5, 8)]
    inputs += [torch.randn(32, 32) / 4, torch.randn(32, 32) / 4, torch.randn(32)]
    exact = ops.edge_gate(*inputs, activation="sigmoid")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        result = ops.edge_gate(*inputs, activation="sigmoid")
    finally:
        torch.set_float32_matmul_precision(before)
    if module is load(80):
        assert not torch.equal(result, exact)
        torch.testing.assert_close(result, exact, rtol=5e-3, atol=5e-3)
    else:
        assert torch.equal(result, exact)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_consistency(dtype: torch.dtype) -> None:
    labels = torch.zeros(2, 1, 5, 18, 67, dtype=torch.uint8)
    labels[:, :, 1:4, 3:9, 5:40] = 1
    labels[:, :, 2:, 6:13, 20:60] = 2
    logits = torch.randn(2, 3, 5, 18, 67, dtype=dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    expected = reference.gumbel_consistency(exact, labels, torch.tensor(3))
    loss = ops.gumbel_consistency(logits, labels, seed=3)
    assert_near(loss.detach(), expected.detach(), loss.dtype)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_region_sums(activation: str) -> None:
    logits, target = torch.randn(2, 3, 5, 18, 67), torch.rand(2, 3, 5, 18, 67) < 0.4
    options = (activation, activation == "sigmoid")
    expected = reference.region_sums(logits.double(), target, *options)
    sums = ops.region_sums(logits, target, activation=activation, entropy=options[1])
    assert_near(sums, expected, sums.dtype)
