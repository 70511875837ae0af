"""Every instruction set that this machine supports agrees with the reference.

The other tests use only the newest one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from egcnn import _C, ops  # type: ignore[attr-defined]
from egcnn.ops import _backend, _tensors, reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import RELATIVE, assert_near

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
SIZES = [(1, 1, 1), (3, 5, 7), (9, 18, 67), (5, 40, 130)]
REGIONS = [(1, 2, 4), (1, 4), (4,), (0, 3)]


@pytest.fixture(params=list(_C.cpu_by_instruction_set), autouse=True)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = _C.cpu_by_instruction_set[request.param]
    monkeypatch.setattr(_backend, "_C", SimpleNamespace(cpu=kernels))
    monkeypatch.setattr(_tensors, "GRAIN", 1)


def objects(batch: int, size: tuple[int, ...]) -> Tensor:
    """Labels 0 to 4 in boxes, so that most rows have no edge, with a few random voxels."""
    labels = torch.zeros(batch, 1, *size, dtype=torch.uint8)
    for value in (2, 1, 4):
        low = [int(torch.randint(0, max(1, n // 2), ())) for n in size]
        box = tuple(slice(a, a + max(1, n // 3)) for a, n in zip(low, size, strict=True))
        labels[(..., *box)] = value
    return torch.where(torch.rand(labels.shape) > 0.995, 3, labels).to(torch.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_sobel(size: tuple[int, ...], memory_format: torch.memory_format) -> None:
    labels = objects(2, size)
    for dtype in (torch.uint8, torch.int16, torch.int64):
        edges = ops.sobel_edges(labels.to(dtype), REGIONS)
        assert torch.equal(edges, reference.sobel_edges(labels, REGIONS))
    masks = torch.cat([labels > 1, labels == 3, torch.rand(labels.shape) > 0.5], 1)
    for threshold in (0.0, 0.75):
        for inside in (masks, masks.int(), masks.half()):
            edges = ops.sobel_edges(
                inside.contiguous(memory_format=memory_format), threshold=threshold
            )
            expected = reference.sobel_edges(masks, threshold=threshold)
            assert torch.equal(edges, expected)
    for dtype in FLOATS:
        x = torch.randn(1, 2, *size).to(dtype)
        exact = x.double().clone().requires_grad_()
        expected = reference.sobel_magnitude(exact)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        magnitude = ops.sobel_magnitude(x)
        assert_near(magnitude.detach(), expected.detach(), dtype)
        if dtype == torch.float64:
            grad = torch.randn(x.shape)
            magnitude.backward(grad)
            expected.backward(grad)
            assert x.grad is not None
            assert exact.grad is not None
            assert_near(x.grad, exact.grad, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [(1, 1), (7, 5), (32, 32)])
def test_edge_gate(
    dtype: torch.dtype, memory_format: torch.memory_format, channels: tuple[int, int]
) -> None:
    e, m = (torch.randn(2, c, 5, 9, 31).to(dtype) for c in channels)
    e, m = (t.contiguous(memory_format=memory_format) for t in (e, m))
    for gates in {1, channels[0]}:
        shapes = [(gates, channels[0]), (gates, channels[1]), (gates,)]
        weights = [torch.randn(s, dtype=reference.accumulate_dtype(dtype)) / 4 for s in shapes]
        exact = [t.double().clone().requires_grad_() for t in (e, m, *weights)]
        expected = reference.edge_gate(*exact)
        inputs = [t.detach().clone().requires_grad_() for t in (e, m, *weights)]
        result = ops.edge_gate(*inputs)
        grad = torch.randn(e.shape).to(dtype)
        result.backward(grad)
        expected.backward(grad.double())
        assert_near(result.detach(), expected.detach(), dtype)
        for mine, theirs in zip(inputs, exact, strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            assert_near(mine.grad, theirs.grad, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [(1, 1), (7, 5), (32, 16)])
@pytest.mark.parametrize("coarse", [(3, 4, 20), (7, 10, 43), (1, 2, 3), (2, 9, 39)])
def test_edge_gate_upsampled(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    channels: tuple[int, int],
    coarse: tuple[int, int, int],
) -> None:
    sizes = (coarse, (5, 9, 39))
    e, m = (torch.randn(2, c, *s).to(dtype) for c, s in zip(channels, sizes, strict=True))
    e, m = (t.contiguous(memory_format=memory_format) for t in (e, m))
    for gates in {1, channels[0]}:
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


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 7, 8, 32])
def test_group_norm_relu(
    dtype: torch.dtype, memory_format: torch.memory_format, channels: int
) -> None:
    x = torch.randn(2, channels, 5, 9, 31).to(dtype).contiguous(memory_format=memory_format)
    parameters = reference.accumulate_dtype(dtype)
    # Positive values have no kink to be rounded over.
    inputs = [
        x,
        torch.rand(channels, dtype=parameters),
        torch.full((channels,), 6.0).to(parameters),
    ]
    groups = channels if channels % 2 else channels // 2
    grad = torch.randn(x.shape).to(dtype)
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = reference.group_norm_relu(exact[0], groups, *exact[1:])
    expected.backward(grad.double())
    x, weight, bias = (t.requires_grad_() for t in inputs)
    result = ops.group_norm_relu(x, groups, weight, bias)
    result.backward(grad)
    assert_near(result.detach(), expected.detach(), dtype)
    for mine, theirs in zip((x, weight, bias), exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert_near(mine.grad, theirs.grad, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", SIZES)
def test_region_sums(
    dtype: torch.dtype, memory_format: torch.memory_format, activation: str, size: tuple[int, ...]
) -> None:
    logits = (4 * torch.randn(2, 3, *size)).to(dtype).contiguous(memory_format=memory_format)
    target, ignored = torch.rand(logits.shape) < 0.3, torch.rand(2, 1, *size) < 0.2
    options = {"activation": activation, "entropy": activation == "sigmoid", "ignored": ignored}
    exact = logits.double().clone().requires_grad_()
    expected = reference.region_sums(exact, target, **options)
    sums = ops.region_sums(logits.requires_grad_(), target, **options)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(sums.shape, dtype=sums.dtype)
    sums.backward(grad)
    expected.backward(grad.double())
    assert logits.grad is not None
    # The slopes of a softmax cancel where a probability is near 1.
    close = RELATIVE[dtype] * grad.abs().max().item()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=RELATIVE[dtype], atol=close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", SIZES)
def test_loss_sums(
    dtype: torch.dtype, memory_format: torch.memory_format, activation: str, size: tuple[int, ...]
) -> None:
    labels = objects(2, size)
    regions = REGIONS if activation == "sigmoid" else [(0,), (1,), (2,), (3,)]
    for label_dtype, threshold in ((torch.uint8, 0.0), (torch.int16, 0.6), (torch.int64, 0.0)):
        options = {"activation": activation, "threshold": threshold, "tau": 0.7, "seed": 3}
        shape = (2, 4, *size)
        logits, edge_logits = (
            (3 * torch.randn(shape)).to(dtype).contiguous(memory_format=memory_format)
            for _ in range(2)
        )
        exact = [tensor.double().requires_grad_() for tensor in (logits, edge_logits)]
        with ops.use_reference():
            expected = ops.loss_sums(*exact, labels, regions, **options)
        inputs = [tensor.requires_grad_() for tensor in (logits, edge_logits)]
        sums = ops.loss_sums(*inputs, labels.to(label_dtype), regions, **options)
        grads = [torch.randn_like(each) for each in sums]
        for found, other in zip(sums, expected, strict=True):
            torch.testing.assert_close(found.double(), other, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(sums, inputs, grads)
        others = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
        for found, other in zip(gradients, others, strict=True):
            close = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 1.2e-2}[dtype]
            largest = max(1.0, other.abs().max().item())
            torch.testing.assert_close(found.double(), other, rtol=close, atol=close * largest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", SIZES)
def test_consistency(dtype: torch.dtype, activation: str, size: tuple[int, ...]) -> None:
    labels = objects(2, size)
    target = labels if activation == "softmax" else torch.cat([labels == c for c in range(5)], 1)
    for support in ("gt", "both"):
        for hard in (True, False):
            options = {"tau": 0.7, "hard": hard, "activation": activation, "support": support}
            logits = torch.randn(2, 5, *size).to(dtype).requires_grad_()
            exact = logits.detach().double().clone().requires_grad_()
            expected = reference.gumbel_consistency(exact, target, torch.tensor(3), **options)
            expected.backward()
            loss = ops.gumbel_consistency(logits, target, seed=3, **options)
            loss.backward()
            assert_near(loss.detach(), expected.detach(), loss.dtype)
            assert logits.grad is not None
            assert exact.grad is not None
            largest = exact.grad.abs().max().item()
            # Where a magnitude is near 0, its slope changes with the last bit of the sample.
            rtol = {torch.float64: 1e-11, torch.float32: 2e-4, torch.bfloat16: 1.2e-2}[dtype]
            torch.testing.assert_close(
                logits.grad.double(), exact.grad, rtol=rtol, atol=rtol * largest + 1e-300
            )
