"""edge_gate_upsampled against up-sampling and the gate by hand, and against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import assert_near

pytestmark = pytest.mark.usefixtures("device")

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
# (B, Ce, Cm), (d, h, w), (D, H, W): one voxel, doubled, primes, an axis of one size, an axis that
# shrinks, all that shrink, much larger, and rows longer than two vectors.
SHAPES = [
    ((1, 1, 1), (1, 1, 1), (2, 2, 2)),
    ((2, 3, 5), (1, 1, 1), (3, 4, 5)),
    ((2, 3, 5), (2, 3, 4), (4, 6, 8)),
    ((1, 8, 4), (3, 5, 7), (7, 11, 13)),
    ((3, 5, 9), (1, 4, 2), (1, 7, 31)),
    ((2, 4, 2), (5, 2, 9), (3, 4, 9)),
    ((1, 3, 2), (7, 5, 23), (2, 5, 4)),
    ((1, 2, 3), (2, 2, 3), (11, 2, 29)),
    ((1, 33, 20), (4, 3, 20), (8, 5, 40)),
    ((1, 16, 32), (3, 2, 37), (5, 4, 73)),
]


def arguments(
    channels: tuple[int, int, int],
    coarse: tuple[int, int, int],
    fine: tuple[int, int, int],
    gates: int,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Tensor]:
    batch, ce, cm = channels
    weights = reference.accumulate_dtype(dtype)
    return [
        torch.randn(batch, ce, *coarse).to(dtype).contiguous(memory_format=memory_format),
        torch.randn(batch, cm, *fine).to(dtype).contiguous(memory_format=memory_format),
        torch.randn(gates, ce, dtype=weights) / 2,
        torch.randn(gates, cm, dtype=weights) / 2,
        torch.randn(gates, dtype=weights) / 2,
    ]


def assert_gradients_near(
    gradients: Sequence[Tensor | None], exact: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Each stream's gradient against that of ``exact``; those of the weights and the bias together.

    The bias of one gate is a single number, which may nearly cancel.
    """
    pairs = list(zip(gradients, (t.grad for t in exact), strict=True))
    for mine, theirs in pairs[:2]:
        assert mine is not None
        assert theirs is not None
        assert_near(mine, theirs, dtype)
    weights = [torch.cat([t.flatten() for t in side]) for side in zip(*pairs[2:], strict=True)]
    assert_near(*weights, dtype)


def test_by_hand() -> None:
    # From two voxels to four: weights of 1, 1/4 and 3/4.
    e = torch.tensor([4.0, 8.0], dtype=torch.float64).view(1, 1, 1, 1, 2)
    m = torch.zeros(1, 1, 1, 1, 4, dtype=torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    bias = torch.tensor([math.log(3)], dtype=torch.float64)  # alpha is 3/4
    gated = ops.edge_gate_upsampled(e, m, zero, zero, bias)
    assert gated.flatten().tolist() == pytest.approx([1.75 * x for x in (4, 5, 7, 8)])
    one = torch.ones(1, 1, dtype=torch.float64)
    gated = ops.edge_gate_upsampled(e, m, one, zero, bias, activation="sigmoid").flatten()
    sums = [x + math.log(3) for x in (4, 5, 7, 8)]
    alphas = [1 / (1 + math.exp(-s)) for s in sums]
    assert gated.tolist() == pytest.approx(
        [x + x * alpha for x, alpha in zip((4, 5, 7, 8), alphas, strict=True)]
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["channel", "voxel"])
# Without ReLU for the largest, since some of so many sums round to the other side of its kink.
@pytest.mark.parametrize(
    ("activation", "shape"),
    [("relu_sigmoid", shape) for shape in SHAPES[:8]] + [("sigmoid", shape) for shape in SHAPES],
)
def test_value_and_gradients_against_float64(
    request: pytest.FixtureRequest,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    activation: str,
    kind: str,
    shape: tuple[tuple[int, int, int], ...],
) -> None:
    stand_in = request.node.callspec.params["device"] == "cuda_on_cpu"
    if stand_in and dtype not in (torch.float32, torch.bfloat16):
        pytest.skip("takes long; gradcheck and the tests of architectures take the other types")
    gates = shape[0][1] if kind == "channel" else 1
    inputs = arguments(*shape, gates, dtype, memory_format)
    grad = torch.randn(*shape[0][:2], *shape[2]).to(dtype)  # contiguous whatever the inputs are
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = reference.edge_gate_upsampled(*exact, activation)
    expected.backward(grad.double())
    inputs = [t.requires_grad_() for t in inputs]
    result = ops.edge_gate_upsampled(*inputs, activation=activation)
    result.backward(grad)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=memory_format)
    assert_near(result.detach(), expected.detach(), dtype)
    for mine in inputs:
        assert mine.grad is not None
        assert mine.grad.dtype == mine.dtype
    assert_gradients_near([t.grad for t in inputs], exact, dtype)


@pytest.mark.parametrize("shape", SHAPES[:7])
def test_the_reference_is_interpolation_and_gate(
    shape: tuple[tuple[int, int, int], ...],
) -> None:
    e, m, *weights = arguments(*shape, shape[0][1])
    up = F.interpolate(e, size=shape[2], mode="trilinear", align_corners=False)
    expected = reference.edge_gate(up, m, *weights)
    assert torch.equal(reference.edge_gate_upsampled(e, m, *weights), expected)


@pytest.mark.parametrize(
    ("activation", "gates", "coarse"),
    [("relu_sigmoid", 1, (3, 2, 5)), ("sigmoid", 3, (2, 1, 2))],
)
def test_gradcheck(activation: str, gates: int, coarse: tuple[int, int, int]) -> None:
    inputs = arguments((1, 3, 2), coarse, (3, 2, 4), gates)
    assert torch.autograd.gradcheck(
        lambda *a: ops.edge_gate_upsampled(*a, activation=activation),
        [t.requires_grad_() for t in inputs],
    )


def test_one_size_is_the_gate_itself() -> None:
    inputs = arguments((2, 3, 4), (3, 4, 5), (3, 4, 5), 3, torch.float32)
    expected = ops.edge_gate(*inputs)
    assert torch.equal(ops.edge_gate_upsampled(*inputs), expected)
    assert_near(
        torch.ops.egcnn.edge_gate_upsampled(*inputs, True), expected.double(), inputs[0].dtype
    )


def test_e_and_m_in_different_formats() -> None:
    e, m, *weights = arguments((2, 4, 3), (2, 4, 3), (3, 7, 5), 4, torch.float32)
    expected = ops.edge_gate_upsampled(e, m, *weights)
    last = torch.channels_last_3d
    mixed = ops.edge_gate_upsampled(e, m.contiguous(memory_format=last), *weights)
    assert mixed.is_contiguous(memory_format=last)
    assert torch.equal(mixed, expected)
    mixed = ops.edge_gate_upsampled(e.contiguous(memory_format=last), m, *weights)
    assert mixed.is_contiguous()
    assert torch.equal(mixed, expected)
    strided = ops.edge_gate_upsampled(e.transpose(2, 4).contiguous().transpose(2, 4), m, *weights)
    assert torch.equal(strided, expected)


def test_empty_batch_has_zero_weight_gradients() -> None:
    inputs = [t.requires_grad_() for t in arguments((0, 3, 2), (1, 2, 2), (2, 4, 4), 3)]
    ops.edge_gate_upsampled(*inputs).sum().backward()
    for t in inputs:
        assert t.grad is not None
        assert t.grad.shape == t.shape
        assert t.grad.eq(0).all()


@pytest.mark.parametrize("gates", [0, 1])
def test_gradient_of_m_is_zero_without_channels_of_e(gates: int) -> None:
    inputs = arguments((2, 0, 3), (2, 2, 2), (3, 4, 5), gates, torch.float32)
    assert ops.edge_gate_upsampled(*inputs).shape == (2, 0, 3, 4, 5)
    assert reference.edge_gate_upsampled(*inputs).shape == (2, 0, 3, 4, 5)
    torch.full_like(inputs[1], math.nan)  # what the next tensor's memory may hold
    grad = torch.zeros(2, 0, 3, 4, 5)
    gradients = torch.ops.egcnn.edge_gate_upsampled_backward(grad, *inputs, True)
    assert all(t.eq(0).all() for t in gradients)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["channel", "voxel"])
# Over 8 MB in bf16: streamed. Blocks end within rows, and planes of e are shared by chunks.
@pytest.mark.parametrize(
    "shape",
    [((1, 37, 18), (21, 27, 30), (41, 53, 61)), ((2, 32, 16), (20, 14, 32), (40, 28, 64))],
)
def test_many_blocks_past_the_caches(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    kind: str,
    shape: tuple[tuple[int, int, int], ...],
) -> None:
    gates = shape[0][1] if kind == "channel" else 1
    inputs = arguments(*shape, gates, dtype, memory_format)
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = reference.edge_gate_upsampled(*exact, "sigmoid")
    grad = torch.randn(expected.shape).to(dtype)
    expected.backward(grad.double())
    result = ops.edge_gate_upsampled(*inputs, activation="sigmoid")
    assert_near(result, expected.detach(), dtype)
    gradients = torch.ops.egcnn.edge_gate_upsampled_backward(grad, *inputs, False)
    assert_gradients_near(gradients, exact, dtype)


def test_memory_at_odd_addresses() -> None:
    inputs = arguments((1, 3, 2), (3, 3, 4), (5, 6, 7), 3, torch.float32)
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in inputs]
    assert torch.equal(ops.edge_gate_upsampled(*shifted), ops.edge_gate_upsampled(*inputs))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("gates", [1, 19])
@pytest.mark.parametrize("at", [(0, 0, 0), (1, 2, 1), (2, 2, 3)])
def test_nan_reaches_what_is_interpolated_from_it(
    memory_format: torch.memory_format, gates: int, at: tuple[int, int, int]
) -> None:
    inputs = arguments((1, 19, 2), (3, 3, 4), (6, 5, 8), gates, torch.float32, memory_format)
    without = ops.edge_gate_upsampled(*inputs)
    inputs[0][(0, 4, *at)] = math.nan
    expected = reference.edge_gate_upsampled(*inputs)
    result = ops.edge_gate_upsampled(*inputs)
    assert expected.isnan().any()
    # A neighbour of weight 0 may count or not.
    heavy = torch.zeros(inputs[0].shape)
    heavy[(0, 4, *at)] = 1
    reached = reference.upsample(heavy, inputs[1])[:, 4:5] > 0
    assert result[:, 4:5][reached].isnan().all()
    assert not result[~expected.isnan()].isnan().any()
    kept = ~result.isnan()
    assert torch.equal(result[kept], without[kept])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("gates", [1, 5])
def test_same_bits_each_time_and_with_any_number_of_threads(
    memory_format: torch.memory_format, gates: int
) -> None:
    inputs = arguments((2, 5, 3), (5, 6, 10), (9, 11, 19), gates, torch.float32, memory_format)
    grad = torch.randn(2, 5, 9, 11, 19)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 5):
            torch.set_num_threads(count)
            out = torch.ops.egcnn.edge_gate_upsampled(*inputs, True)
            gradients = torch.ops.egcnn.edge_gate_upsampled_backward(grad, *inputs, True)
            results.append((out, *gradients))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_backward_keeps_the_inputs_alone() -> None:
    inputs = [
        t.requires_grad_() for t in arguments((1, 3, 2), (2, 2, 2), (4, 4, 4), 3, torch.float32)
    ]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.edge_gate_upsampled(*inputs)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in inputs}


def test_opcheck() -> None:
    for memory_format in FORMATS:
        for gates in (1, 3):
            inputs = arguments((1, 3, 2), (2, 2, 3), (3, 4, 5), gates, torch.float32, memory_format)
            grad = torch.randn(1, 3, 3, 4, 5).contiguous(memory_format=memory_format)
            opcheck(torch.ops.egcnn.edge_gate_upsampled_backward, (grad, *inputs, True))
            opcheck(
                torch.ops.egcnn.edge_gate_upsampled, (*(t.requires_grad_() for t in inputs), True)
            )


def test_compiles_whole() -> None:
    inputs = arguments((1, 3, 2), (2, 3, 3), (3, 4, 5), 3, torch.float32)
    compiled = torch.compile(ops.edge_gate_upsampled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), ops.edge_gate_upsampled(*inputs))


def test_autocast_takes_mixed_inputs(device: str) -> None:
    e, m, *weights = arguments((1, 3, 2), (2, 3, 3), (3, 4, 5), 3, torch.float32)
    weights = [w.requires_grad_() for w in weights]
    with torch.autocast(device, dtype=torch.bfloat16):
        result = ops.edge_gate_upsampled(e, m.bfloat16(), *weights)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in weights)
    expected = ops.edge_gate_upsampled(e.bfloat16(), m.bfloat16(), *weights)
    assert torch.equal(result, expected)


def test_reference_on_demand_allows_second_derivatives() -> None:
    inputs = [t.requires_grad_() for t in arguments((1, 2, 2), (1, 2, 1), (2, 2, 3), 2)]
    out = ops.edge_gate_upsampled(*inputs)
    (grad,) = torch.autograd.grad(out.sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="edge_gate_upsampled has no second derivative"):
        grad.sum().backward()
    with ops.use_reference():
        assert torch.autograd.gradgradcheck(
            lambda *a: ops.edge_gate_upsampled(*a, activation="sigmoid"), inputs
        )


def _bad(index: int, tensor: Tensor) -> list[Tensor]:
    inputs = arguments((2, 3, 4), (1, 1, 2), (2, 2, 2), 3, torch.float32)
    inputs[index] = tensor
    return inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(0, torch.zeros(2, 3, 2, 2)), r"e has the shape \(2, 3, 2, 2\); expected five"),
        (_bad(0, torch.zeros(3, 3, 1, 1, 2)), "expected the same batch size, and voxels"),
        (_bad(0, torch.zeros(2, 3, 1, 0, 2)), "expected the same batch size, and voxels"),
        (_bad(1, torch.zeros(2, 4, 0, 2, 2)), "expected the same batch size, and voxels"),
        (_bad(1, torch.zeros(2, 4, 2, 2, 2).double()), "m is torch.float64 and e torch.float32"),
        (_bad(2, torch.zeros(3, 4)), r"weight_e has the shape \(3, 4\); expected \(3, 3\)"),
        (_bad(4, torch.zeros(2)), r"bias has the shape \(2,\); expected \(3,\)"),
    ],
)
def test_bad_input(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.edge_gate_upsampled(*inputs)
