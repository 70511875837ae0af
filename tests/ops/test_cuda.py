"""Tests that need a GPU: streams, graphs, a second device. The operators' tests also run on CUDA,
by the ``device`` fixture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egcnn import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def _labels(device: str, size: int = 40) -> Tensor:
    labels = torch.zeros(2, 1, size, size, size, dtype=torch.uint8, device=device)
    labels[..., 8:30, 5:20, 9:31] = 1
    labels[..., 12:20, 9:16, 13:21] = 2
    return labels


def _edges(device: str) -> list[Tensor]:
    return [ops.sobel_edges(_labels(device), [(1, 2), (2,)])]


def _magnitude(device: str) -> list[Tensor]:
    x = torch.linspace(0, 1, 2 * 3 * 20**3, device=device).view(2, 3, 20, 20, 20).sin()
    x.requires_grad_()
    magnitude = ops.sobel_magnitude(x)
    return [magnitude.detach(), *torch.autograd.grad(magnitude.sum(), x)]


def _gate(device: str, gates: int, size_of_e: int, size_of_m: int) -> list[Tensor]:
    e, m = (
        (torch.linspace(-1, 1, 2 * 8 * n**3, device=device) * k).sin().view(2, 8, n, n, n)
        for k, n in ((3, size_of_e), (5, size_of_m))
    )
    weights = [
        (torch.linspace(-1, 1, gates * 8, device=device) * k).cos().view(gates, 8) for k in (1, 2)
    ]
    inputs = [t.requires_grad_() for t in (e, m, *weights, torch.zeros(gates, device=device))]
    out = ops.edge_gate_upsampled(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def _consistency(device: str) -> list[Tensor]:
    z = (torch.arange(2 * 3 * 40**3, device=device) % 97).float().view(2, 3, 40, 40, 40) / 30
    z.requires_grad_()
    seed = torch.ones((), dtype=torch.int64, device=device)
    loss = ops.gumbel_consistency(z, _labels(device), seed=seed)
    return [loss.detach(), *torch.autograd.grad(loss, z)]


def _sums(device: str, activation: str) -> list[Tensor]:
    z = torch.linspace(-9, 9, 2 * 3 * 40**3, device=device).view(2, 3, 40, 40, 40).sin() * 5
    z.requires_grad_()
    target = torch.cat([_labels(device) == value for value in range(3)], 1)
    sums = ops.region_sums(z, target, activation=activation, entropy=activation == "sigmoid")
    return [sums.detach(), *torch.autograd.grad(sums.sum(), z)]


def _norm(device: str, memory_format: torch.memory_format) -> list[Tensor]:
    x = torch.linspace(-1, 1, 2 * 8 * 20**3, device=device).mul(40).sin().view(2, 8, 20, 20, 20)
    weight, bias = torch.linspace(-1, 1, 8, device=device), torch.linspace(0, 1, 8, device=device)
    inputs = [x.contiguous(memory_format=memory_format), weight, bias]
    x, weight, bias = (t.requires_grad_() for t in inputs)
    out = ops.group_norm_relu(x, 4, weight, bias)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (x, weight, bias))]


CALLS: dict[str, Callable[[str], list[Tensor]]] = {
    "edges": _edges,
    "magnitude": _magnitude,
    "voxel gate": lambda device: _gate(device, 1, 20, 20),
    "channel gate": lambda device: _gate(device, 8, 20, 20),
    "upsampled voxel gate": lambda device: _gate(device, 1, 12, 24),
    "upsampled channel gate": lambda device: _gate(device, 8, 12, 24),
    "consistency": _consistency,
    "norm": lambda device: _norm(device, torch.contiguous_format),
    "norm, channels last": lambda device: _norm(device, torch.channels_last_3d),
    "sigmoid sums": lambda device: _sums(device, "sigmoid"),
    "softmax sums": lambda device: _sums(device, "softmax"),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@every_call
def test_same_bits_twice(call: Callable[[str], list[Tensor]]) -> None:
    first = call("cuda")
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, call("cuda"), strict=True))


@every_call
def test_agrees_with_the_cpu(call: Callable[[str], list[Tensor]]) -> None:
    for mine, theirs in zip(call("cuda"), call("cpu"), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=2e-4, atol=2e-5 * theirs.abs().max())


@every_call
def test_works_on_the_current_stream(call: Callable[[str], list[Tensor]]) -> None:
    expected = call("cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # work on any other stream would overtake this
        result = call("cuda")
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


@every_call
def test_can_be_captured_in_a_graph(call: Callable[[str], list[Tensor]]) -> None:
    expected = call("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call("cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call("cuda")
    for tensor in result:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


@every_call
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_works_on_a_device_that_is_not_the_current_one(
    call: Callable[[str], list[Tensor]],
) -> None:
    expected, result = call("cuda:0"), call("cuda:1")
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(expected, result, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_a_gpu_that_is_not_in_use_gets_no_context() -> None:
    code = """
import ctypes, torch
from egcnn import ops
x = torch.rand(1, 2, 8, 8, 8, device="cuda:1", requires_grad=True)
ops.sobel_magnitude(x).sum().backward()
ops.sobel_edges(x.detach() > 0.5)
flags, active = ctypes.c_uint(), ctypes.c_int()
ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxGetState(
    0, ctypes.byref(flags), ctypes.byref(active))
print(active.value, torch.cuda.current_device(), ops.backend(x))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "0", "native"]


def test_compiles_by_inductor() -> None:
    labels = _labels("cuda")
    z = torch.randn(2, 3, 40, 40, 40, device="cuda", requires_grad=True)

    def loss(z: Tensor) -> Tensor:
        return ops.gumbel_consistency(z.sin(), labels, seed=3) * 2

    expected = torch.autograd.grad(loss(z), z)[0]
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(z), z)[0]
    torch.testing.assert_close(compiled, expected)
