"""How the CUDA kernels of edge_gate_upsampled share a volume out: columns of 4 rows by 16 voxels,
segments of planes along z, windows that overlap, chunks of 32 channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from egcnn.ops import reference

from ..tolerances import assert_near
from .test_edge_gate_upsampled import FORMATS, arguments, assert_gradients_near

Size = tuple[int, int, int]
# (B, Ce, Cm), size of e, size of m. The kernels know the weights in x where m is twice as wide.
CASES = [
    ((1, 1, 1), (1, 1, 1), (2, 2, 2)),
    ((1, 3, 5), (1, 1, 1), (3, 20, 33)),  # one coarse voxel in every window
    ((2, 32, 32), (2, 5, 16), (4, 10, 32)),  # whole tiles and chunks
    ((1, 5, 4), (9, 6, 19), (18, 12, 38)),  # segments; a tile that is not full
    ((1, 8, 3), (9, 4, 17), (17, 7, 33)),  # odd sizes
    ((2, 4, 8), (5, 11, 7), (19, 13, 16)),  # other ratios
    ((1, 4, 4), (13, 9, 40), (4, 3, 7)),  # to a smaller volume, which skips coarse voxels
    ((1, 4, 4), (2, 30, 5), (9, 7, 20)),  # smaller along one axis, larger along others
    ((1, 33, 5), (2, 3, 4), (4, 6, 8)),  # two chunks of e
    ((1, 40, 70), (5, 2, 5), (17, 5, 10)),  # two and three, in segments
]


@pytest.fixture(autouse=True)
def cuda_kernels(request: pytest.FixtureRequest, device: str) -> None:
    if request.node.callspec.params["device"] == "cpu":
        pytest.skip("a test of the CUDA kernels")


def gradients(grad: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = torch.ops.egcnn.edge_gate_upsampled_backward(grad, *inputs, False)
    return result


# The sums are in float32 for all but float64, which gradcheck takes.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("memory_format", "kind"),
    [(FORMATS[0], "channel"), (FORMATS[1], "channel"), (FORMATS[1], "voxel")],
)
@pytest.mark.parametrize(("channels", "coarse", "fine"), CASES)
def test_value_and_gradients_against_float64(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    kind: str,
    channels: Size,
    coarse: Size,
    fine: Size,
) -> None:
    gates = channels[1] if kind == "channel" else 1
    inputs = arguments(channels, coarse, fine, gates, dtype, memory_format)
    exact = [t.double().clone().requires_grad_() for t in inputs]
    expected = reference.edge_gate_upsampled(*exact, "sigmoid")
    grad = torch.randn(expected.shape).to(dtype)  # contiguous whatever the inputs are
    expected.backward(grad.double())
    result = torch.ops.egcnn.edge_gate_upsampled(*inputs, False)
    assert_near(result, expected.detach(), dtype)
    assert_gradients_near(gradients(grad, inputs), exact, dtype)


# Segments, a volume that shrinks, and chunks of both streams.
@pytest.mark.parametrize(("channels", "coarse", "fine"), [CASES[3], CASES[6], *CASES[8:]])
@pytest.mark.parametrize("kind", ["channel", "voxel"])
def test_same_bits_each_time(channels: Size, coarse: Size, fine: Size, kind: str) -> None:
    gates = channels[1] if kind == "channel" else 1
    inputs = arguments(channels, coarse, fine, gates, torch.float32)
    grad = torch.randn(*channels[:2], *fine)
    first, again = gradients(grad, inputs), gradients(grad, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory_at_odd_addresses() -> None:
    e, *others = arguments((1, 8, 8), (3, 4, 8), (6, 8, 16), 8, torch.float32, FORMATS[1])
    elements = e.permute(0, 2, 3, 4, 1)
    memory = torch.cat([e.new_zeros(1), elements.flatten()])
    shifted = memory[1:].view(elements.shape).permute(0, 4, 1, 2, 3)
    assert shifted.data_ptr() % 16 == 4
    expected = torch.ops.egcnn.edge_gate_upsampled(e, *others, True)
    assert torch.equal(torch.ops.egcnn.edge_gate_upsampled(shifted, *others, True), expected)


@pytest.mark.parametrize("fine", [(6, 8, 16), (5, 9, 17)])
def test_nan_stays_in_the_voxels_that_depend_on_it(fine: Size) -> None:
    inputs = arguments((1, 3, 2), (3, 4, 8), fine, 3, torch.float32)
    inputs[0][0, 1, 1, 2, 5] = math.nan
    expected = reference.edge_gate_upsampled(*inputs, "sigmoid")
    result = torch.ops.egcnn.edge_gate_upsampled(*inputs, False)
    assert torch.equal(result.isnan(), expected.isnan())
    grad = torch.zeros_like(result)
    grad[0, 1, 3, 4, 10] = math.nan
    inputs[0].nan_to_num_()
    exact = [t.clone().requires_grad_() for t in inputs]
    reference.edge_gate_upsampled(*exact, "sigmoid").backward(grad)
    assert exact[0].grad is not None
    assert torch.equal(gradients(grad, inputs)[0].isnan(), exact[0].grad.isnan())


@pytest.mark.parametrize(
    ("batch", "coarse", "fine", "message"),
    [
        (1, (1, 2**15, 2**14), (1, 1, 1), "e is too large"),
        (2**20, (1, 1, 1), (2**11, 1, 1), "m is too large"),
    ],
)
def test_more_than_32_bits_count_is_refused(
    device: str, batch: int, coarse: Size, fine: Size, message: str
) -> None:
    if device == "cuda":
        pytest.skip("takes gigabytes, which other devices do not touch")
    e, m = (torch.empty(batch, 1, *size, dtype=torch.float16) for size in (coarse, fine))
    one = torch.ones(1, 1)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.egcnn.edge_gate_upsampled(e, m, one, one, one[0], True)
