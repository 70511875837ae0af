"""edge_gate against hand-computed values and the reference (Eqs. 1 and 2)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import _tensors, reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import assert_near

pytestmark = pytest.mark.usefixtures("device")

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
ACTIVATIONS = ("relu_sigmoid", "sigmoid")
# (B, Ce, Cm, D, H, W): one voxel, primes, more voxels than one block holds, as many channels as a
# warp of the GPU holds at a time, and more; whole vectors of channels and voxels that are none.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 3, 5, 7),
    (1, 8, 4, 7, 11, 13),
    (3, 5, 9, 1, 1, 31),
    (1, 32, 32, 2, 3, 8),
    (1, 33, 70, 1, 3, 5),
    (2, 16, 48, 3, 7, 31),
]


def arguments(
    shape: tuple[int, ...],
    gates: int,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Tensor]:
    batch, ce, cm, *size = shape
    e = torch.randn(batch, ce, *size).to(dtype).contiguous(memory_format=memory_format)
    m = torch.randn(batch, cm, *size).to(dtype).contiguous(memory_format=memory_format)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        e,
        m,
        torch.randn(gates, ce, dtype=weights) / 2,
        torch.randn(gates, cm, dtype=weights) / 2,
        torch.randn(gates, dtype=weights) / 2,
    ]


def test_by_hand() -> None:
    e = torch.tensor([2.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1, 1)
    m = torch.tensor([3.0], dtype=torch.float64).view(1, 1, 1, 1, 1)
    weight_e = torch.tensor([[1.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    weight_m = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    bias = torch.tensor([0.5, 0.25], dtype=torch.float64)
    # Sums: 2 - 2 + 3 + 0.5 = 3.5 and 1 - 1 - 3 + 0.25 = -2.75, which ReLU makes 0.
    high, low = 1 / (1 + math.exp(-3.5)), 1 / (1 + math.exp(2.75))
    gated = ops.edge_gate(e, m, weight_e, weight_m, bias).flatten()
    assert gated.tolist() == pytest.approx([2 * high + 2, -1 * 0.5 - 1])
    smooth = ops.edge_gate(e, m, weight_e, weight_m, bias, activation="sigmoid").flatten()
    assert smooth.tolist() == pytest.approx([2 * high + 2, -1 * low - 1])
    single = ops.edge_gate(e, m, weight_e[:1], weight_m[:1], bias[:1]).flatten()
    assert single.tolist() == pytest.approx([2 * high + 2, -1 * high - 1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["channel", "voxel"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_against_float64(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    activation: str,
    kind: str,
    shape: tuple[int, ...],
) -> None:
    inputs = arguments(shape, shape[1] if kind == "channel" else 1, dtype, memory_format)
    grad = torch.randn(inputs[0].shape).to(dtype)  # contiguous whatever the inputs are
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = reference.edge_gate(*exact, activation)
    expected.backward(grad.double())
    inputs = [t.requires_grad_() for t in inputs]
    result = ops.edge_gate(*inputs, activation=activation)
    result.backward(grad)
    assert result.dtype == dtype
    assert result.stride() == torch.empty_like(inputs[0]).stride()
    assert_near(result.detach(), expected.detach(), dtype)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == mine.dtype
        assert_near(mine.grad, theirs.grad, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gates", [1, 3])
def test_gradcheck(activation: str, gates: int) -> None:
    inputs = [t.requires_grad_() for t in arguments((2, 3, 2, 2, 3, 4), gates)]
    assert torch.autograd.gradcheck(lambda *a: ops.edge_gate(*a, activation=activation), inputs)


def test_e_and_m_in_different_formats() -> None:
    e, m, *weights = arguments((2, 4, 3, 3, 4, 5), 4, torch.float32)
    expected = ops.edge_gate(e, m, *weights)
    mixed = ops.edge_gate(e, m.contiguous(memory_format=torch.channels_last_3d), *weights)
    assert torch.equal(mixed, expected)
    strided = ops.edge_gate(e.transpose(2, 4).contiguous().transpose(2, 4), m, *weights)
    assert torch.equal(strided, expected)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2, 2), (2, 3, 2, 0, 2, 2)])
def test_empty_volume_has_zero_weight_gradients(shape: tuple[int, ...]) -> None:
    inputs = [t.requires_grad_() for t in arguments(shape, 3)]
    ops.edge_gate(*inputs).sum().backward()
    for t in inputs:
        assert t.grad is not None
        assert t.grad.shape == t.shape
        assert t.grad.eq(0).all()


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["channel", "voxel"])
# Over 8 MB in bf16: streamed. An odd number of voxels: no channel but the first is aligned; and
# whole cache lines of voxels and of channels.
@pytest.mark.parametrize("shape", [(1, 37, 18, 41, 53, 61), (1, 32, 16, 40, 56, 64)])
def test_many_blocks_past_the_caches(
    dtype: torch.dtype, memory_format: torch.memory_format, kind: str, shape: tuple[int, ...]
) -> None:
    inputs = arguments(shape, shape[1] if kind == "channel" else 1, dtype, memory_format)
    grad = torch.randn_like(inputs[0])
    exact = [t.double().clone().requires_grad_() for t in inputs]
    # Without ReLU, since some of so many sums round to the other side of its kink.
    expected = reference.edge_gate(*exact, "sigmoid")
    expected.backward(grad.double())
    assert_near(ops.edge_gate(*inputs, activation="sigmoid"), expected.detach(), dtype)
    gradients = torch.ops.egcnn.edge_gate_backward(grad, *inputs, False)
    for mine, theirs in zip(gradients, exact, strict=True):
        assert_near(mine, theirs.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
# Several tiles for each warp of the stand-in, which fetches one while it computes another: e in
# whole vectors and m by elements where channels are last, then both by elements.
@pytest.mark.parametrize("shape", [(3, 32, 20, 4, 9, 23), (2, 31, 5, 9, 9, 17)])
def test_many_tiles_for_each_warp(
    dtype: torch.dtype, memory_format: torch.memory_format, shape: tuple[int, ...]
) -> None:
    inputs = arguments(shape, shape[1], dtype, memory_format)
    grad = torch.randn_like(inputs[0])
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = reference.edge_gate(*exact, "sigmoid")
    expected.backward(grad.double())
    assert_near(ops.edge_gate(*inputs, activation="sigmoid"), expected.detach(), dtype)
    gradients = torch.ops.egcnn.edge_gate_backward(grad, *inputs, False)
    for mine, theirs in zip(gradients, exact, strict=True):
        assert_near(mine, theirs.grad, dtype)


def test_as_many_blocks_as_the_gpu_holds(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.callspec.params["device"] != "cuda_on_cpu":
        pytest.skip("a test of how CUDA kernels are launched")
    kernel = request.getfixturevalue("cuda_on_cpu").cpu.edge_gate_backward
    rows = []

    def call(threads: int, index: int, stream: int, allocate: Any, *tensors: Any) -> None:
        def counting(size: int) -> Tensor:
            rows.append(size / (4 * (32 + 32 + 1)))
            memory: Tensor = allocate(size)
            return memory

        kernel(threads, index, stream, counting, *tensors)

    kernels = SimpleNamespace(edge_gate_backward=call)
    monkeypatch.setattr(_tensors, "device_kernels", lambda _: kernels)
    e, m, *weights = arguments((1, 32, 32, 4, 8, 32), 1, torch.bfloat16)
    torch.ops.egcnn.edge_gate_backward(e, e, m, *weights, True)
    # The stand-in has three multiprocessors, which hold two blocks each, of four warps; each warp
    # sums its tiles' gradients of the weights in a row of the workspace.
    assert rows == [3 * 2 * 4]


def test_memory_at_odd_addresses() -> None:
    shape = (1, 3, 2, 5, 6, 7)
    inputs = arguments(shape, 3, torch.float32)
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in inputs]
    assert torch.equal(ops.edge_gate(*shifted), ops.edge_gate(*inputs))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("gates", [1, 19])
def test_nan_stays_in_its_voxel(memory_format: torch.memory_format, gates: int) -> None:
    inputs = arguments((1, 19, 2, 3, 5, 7), gates, torch.float32, memory_format)
    grad = torch.randn_like(inputs[0])
    # With gradients of e and m; those of the weights add up all voxels.
    expected = [
        ops.edge_gate(*inputs),
        *torch.ops.egcnn.edge_gate_backward(grad, *inputs, True)[:2],
    ]
    inputs[0][0, 4, 1, 2, 3] = math.nan
    gradients = torch.ops.egcnn.edge_gate_backward(grad, *inputs, True)
    for result, without in zip([ops.edge_gate(*inputs), *gradients], expected, strict=False):
        assert result[0, :, 1, 2, 3].isnan().all()  # every attention value depends on it
        result[0, :, 1, 2, 3] = without[0, :, 1, 2, 3]
        assert torch.equal(result, without)
    assert all(gradient.isnan().all() for gradient in gradients[2:])


@pytest.mark.parametrize("value", [1e3, -1e3, math.inf, -math.inf])
def test_saturated_gate(value: float) -> None:
    e = torch.full((1, 1, 1, 1, 3), 2.0).view(1, 1, 1, 1, 3)
    bias = torch.tensor([value])
    zeros = torch.zeros(1, 1)
    result = ops.edge_gate(e, e, zeros, zeros, bias, activation="sigmoid")
    assert result.flatten().tolist() == [4.0 if value > 0 else 2.0] * 3


@pytest.mark.usefixtures("cpu_kernels")
def test_same_bits_with_any_number_of_threads() -> None:
    inputs = arguments((2, 5, 3, 29, 30, 31), 5, torch.float32)
    grad = torch.randn_like(inputs[0])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(torch.ops.egcnn.edge_gate_backward(grad, *inputs, True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    for memory_format in FORMATS:
        for gates in (1, 3):
            inputs = arguments((1, 3, 2, 2, 3, 4), gates, torch.float32, memory_format)
            opcheck(torch.ops.egcnn.edge_gate_backward, (inputs[0], *inputs, True))
            opcheck(torch.ops.egcnn.edge_gate, (*(t.requires_grad_() for t in inputs), True))


def test_compiles_whole() -> None:
    inputs = arguments((1, 3, 2, 3, 4, 5), 3, torch.float32)
    compiled = torch.compile(ops.edge_gate, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), ops.edge_gate(*inputs))


def test_autocast_takes_mixed_inputs(device: str) -> None:
    e, m, *weights = arguments((1, 3, 2, 3, 4, 5), 3, torch.float32)
    weights = [w.requires_grad_() for w in weights]
    with torch.autocast(device, dtype=torch.bfloat16):
        result = ops.edge_gate(e, m.bfloat16(), *weights)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in weights)
    expected = ops.edge_gate(e.bfloat16(), m.bfloat16(), *weights)
    assert torch.equal(result, expected)


def test_reference_on_demand_allows_second_derivatives() -> None:
    inputs = [t.requires_grad_() for t in arguments((1, 2, 2, 2, 2, 2), 2)]
    (grad,) = torch.autograd.grad(ops.edge_gate(*inputs).sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="edge_gate has no second derivative"):
        grad.sum().backward()
    with ops.use_reference():
        assert ops.backend(inputs[0]) == "reference"
        assert torch.autograd.gradgradcheck(
            lambda *a: ops.edge_gate(*a, activation="sigmoid"), inputs
        )
    assert ops.backend(inputs[0]) == "native"


def _bad(index: int, tensor: Tensor) -> list[Tensor]:
    inputs = arguments((2, 3, 4, 2, 2, 2), 3, torch.float32)
    inputs[index] = tensor
    return inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(0, torch.zeros(2, 3, 2, 2)), r"e has the shape \(2, 3, 2, 2\); expected five"),
        (_bad(0, torch.zeros(2, 3, 2, 2, 2).long()), "e is int64; expected one of float64"),
        (_bad(1, torch.zeros(2, 4, 2, 2, 3)), "expected the same batch and volume size"),
        (_bad(1, torch.zeros(2, 4, 2, 2, 2).double()), "m is torch.float64 and e torch.float32"),
        (_bad(2, torch.zeros(3, 4)), r"weight_e has the shape \(3, 4\); expected \(3, 3\)"),
        (_bad(3, torch.zeros(3, 3)), r"weight_m has the shape \(3, 3\); expected \(3, 4\)"),
        (_bad(4, torch.zeros(2)), r"bias has the shape \(2,\); expected \(3,\)"),
        (_bad(4, torch.zeros(3).long()), "bias is torch.int64; expected a float"),
        (_bad(4, torch.zeros(3, device="meta")), "bias is on meta and e on cpu"),
    ],
)
def test_bad_input(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.edge_gate(*inputs)


def test_unknown_activation() -> None:
    with pytest.raises(InputError, match="activation is 'tanh'; expected one of 'relu_sigmoid'"):
        ops.edge_gate(*arguments((1, 1, 1, 1, 1, 1), 1), activation="tanh")
