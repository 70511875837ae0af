"""gumbel_consistency against hand-computed values and the reference (Eqs. 7 and 8)."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import assert_near

pytestmark = pytest.mark.usefixtures("device")

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
OPTIONS = list(itertools.product(("softmax", "sigmoid"), ("gt", "both"), (True, False)))
SIZES = [(1, 1, 1), (1, 1, 9), (3, 5, 7), (6, 2, 67)]


def blobs(activation: str, batch: int, channels: int, size: tuple[int, ...]) -> Tensor:
    """A target with regions larger than a voxel, so that most voxels are no edge."""
    if activation == "softmax":
        coarse = torch.randint(0, channels, (batch, 1, *((n + 2) // 3 for n in size)))
    else:
        coarse = torch.randint(0, 2, (batch, channels, *((n + 2) // 3 for n in size)))
    for dim in (2, 3, 4):
        coarse = coarse.repeat_interleave(3, dim)
    return coarse[..., : size[0], : size[1], : size[2]].contiguous()


def both(logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Run operator and float64 reference with gradients; returns losses and reference logits."""
    exact = logits.double().clone().requires_grad_()
    expected = reference.gumbel_consistency(exact, target, torch.tensor(11), **options)
    expected.backward()
    logits.requires_grad_()
    loss = ops.gumbel_consistency(logits, target, seed=11, **options)
    loss.backward()
    return loss, expected, exact


def kernels(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Call forward and backward directly, and check that they do not modify their arguments."""
    loss, *found = torch.ops.egcnn.gumbel_consistency(logits, *arguments)
    target, seed, *options = arguments
    grad = torch.ops.egcnn.gumbel_consistency_backward(
        torch.ones_like(loss), logits, target, seed, *found, *options
    )
    return loss, grad


def test_philox_known_answers() -> None:
    # Random123's kat_vectors: philox4x32, 10 rounds, counter and key 0.
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    uniforms = reference.philox_uniforms(torch.tensor(0), 1, 4)[0]
    assert torch.equal(uniforms, ((words >> 9).float() + 0.5) * 2.0**-23)
    # Counters (243f6a88 85a308d3 13198a2e 03707344) need a fourth word that no voxel has, so the
    # key's path is checked by a seed whose halves differ: results differ from those of each half.
    seeds = [0x0000000100000002, 0x0000000200000001, -1]
    drawn = [reference.philox_uniforms(torch.tensor(s), 5, 9) for s in seeds]
    assert not torch.equal(drawn[0], drawn[1])
    assert all((u > 0).all() and (u < 1).all() for u in drawn)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, -(2**63), -1, 2**40 + 3])
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_kernel_and_reference_draw_the_same_numbers(seed: int, channels: int) -> None:
    # Sigmoid regions of one-voxel checkerboards: where logit = -logit(u) the sample turns, so the
    # hard sample tells on which side of u each logit lies. Logits just above and below the
    # threshold must decide every voxel, which checks the kernel's u to a bit or two; the soft loss
    # below compares the values themselves.
    size = (2, 3, 5)
    uniforms = reference.philox_uniforms(torch.tensor(seed), 30, channels).double()
    noise = (uniforms.log() - torch.log1p(-uniforms)).T.reshape(1, channels, *size)
    target = torch.ones(1, channels, *size, dtype=torch.uint8)
    target[..., ::2] = 0
    for sign in (1, -1):
        # All hard samples 1 (or 0): the sample has no edge, so the mismatch is the truth's.
        logits = -noise + sign * 1e-9
        loss = ops.gumbel_consistency(logits, target, activation="sigmoid", seed=seed)
        magnitude = reference.sobel_magnitude(target.double())
        edges = magnitude > 0
        per_region = magnitude.sum((2, 3, 4)) / edges.sum((2, 3, 4))
        assert loss.item() == pytest.approx(per_region.mean().item(), abs=1e-12)


def test_by_hand() -> None:
    # Two voxels in a row, the truth is a face between them: magnitude 1 at both. Logits so large
    # that no noise matters: a sample equal to the truth costs 0, a flat one costs 1.
    target = torch.tensor([0, 1]).view(1, 1, 1, 1, 2)
    right = torch.tensor([[100.0, -100.0], [-100.0, 100.0]]).view(1, 2, 1, 1, 2)
    flat = torch.tensor([[100.0, 100.0], [-100.0, -100.0]]).view(1, 2, 1, 1, 2)
    for hard in (True, False):
        assert ops.gumbel_consistency(right, target, hard=hard, seed=1).item() == 0
        assert ops.gumbel_consistency(flat, target, hard=hard, seed=1).item() == 1
    # A third class that does not occur has no edge and contributes 0.
    three = torch.cat([flat, torch.full((1, 1, 1, 1, 2), -100.0)], 1)
    assert ops.gumbel_consistency(three, target, seed=1).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("activation", "support", "hard"), OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_against_float64(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    activation: str,
    support: str,
    hard: bool,
    size: tuple[int, int, int],
) -> None:
    channels = 5
    logits = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=memory_format)
    target = blobs(activation, 2, channels, size).contiguous(memory_format=memory_format)
    options = {"tau": 0.7, "hard": hard, "activation": activation, "support": support}
    loss, expected, exact = both(logits, target, **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.grad is not None
    assert logits.grad.stride() == torch.empty_like(logits).stride()
    # Sums are in float32 for any type of logits; only the gradient is rounded to that type.
    assert_near(loss.detach(), expected.detach(), min(dtype, torch.float32, key=_precision))
    if dtype == torch.float32:
        # Where a magnitude is near 0, its slope changes with the last bit of the sample.
        torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2e-4, atol=2e-6)
    else:
        assert_near(logits.grad, exact.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("activation", "support", "hard"), OPTIONS)
@pytest.mark.parametrize("size", [(12, 20, 36), (9, 17, 66)])
def test_sizes_beyond_a_tile_of_the_gpu(
    dtype: torch.dtype, activation: str, support: str, hard: bool, size: tuple[int, int, int]
) -> None:
    logits = torch.randn(1, 5, *size).to(dtype)
    target = blobs(activation, 1, 5, size)
    options = {"tau": 0.7, "hard": hard, "activation": activation, "support": support}
    loss, expected, exact = both(logits, target, **options)
    assert_near(loss.detach(), expected.detach(), dtype)
    assert exact.grad is not None
    largest = exact.grad.abs().max().item()
    rtol = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=rtol * largest)


def _precision(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("support", ["gt", "both"])
def test_gradcheck_of_the_soft_sample(activation: str, support: str) -> None:
    logits = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = blobs(activation, 2, 3, (3, 4, 5))

    def loss(z: Tensor) -> Tensor:
        return ops.gumbel_consistency(
            z, target, hard=False, activation=activation, support=support, seed=5
        )

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_target_types(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 2, 4, 5, 6)
    for activation in ("softmax", "sigmoid"):
        target = blobs(activation, 1, 2, (4, 5, 6))
        expected = ops.gumbel_consistency(logits, target, activation=activation, seed=3)
        result = ops.gumbel_consistency(logits, target.to(dtype), activation=activation, seed=3)
        assert torch.equal(result, expected)
    halves = ops.gumbel_consistency(logits, target * 0.9, activation="sigmoid", seed=3)
    assert torch.equal(halves, expected)


def test_no_edges_at_all() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    loss = ops.gumbel_consistency(logits, torch.zeros(1, 1, 4, 4, 4).long())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (1, 3, 0, 2, 2), (1, 3, 2, 2, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    loss = ops.gumbel_consistency(logits, torch.zeros(shape[0], 1, *shape[2:]).long())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.shape == shape


def test_extreme_logits_stay_finite() -> None:
    logits = (torch.randn(1, 3, 5, 5, 5) * 1e4).requires_grad_()
    target = blobs("softmax", 1, 3, (5, 5, 5))
    for activation, hard in itertools.product(("softmax", "sigmoid"), (True, False)):
        truth = target if activation == "softmax" else blobs("sigmoid", 1, 3, (5, 5, 5))
        loss = ops.gumbel_consistency(logits, truth, hard=hard, activation=activation, seed=1)
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_seeds() -> None:
    logits, target = torch.randn(1, 3, 5, 6, 7), blobs("softmax", 1, 3, (5, 6, 7))
    one = ops.gumbel_consistency(logits, target, seed=1)
    assert torch.equal(one, ops.gumbel_consistency(logits, target, seed=torch.tensor([1])))
    assert not torch.equal(one, ops.gumbel_consistency(logits, target, seed=2))
    torch.manual_seed(4)
    drawn = ops.gumbel_consistency(logits, target)
    assert not torch.equal(drawn, ops.gumbel_consistency(logits, target))
    torch.manual_seed(4)
    assert torch.equal(drawn, ops.gumbel_consistency(logits, target))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_seed_of_each_sample_gives_its_noise_anywhere(activation: str) -> None:
    size = (5, 6, 7)
    logits, target = torch.randn(3, 2, *size), blobs(activation, 3, 2, size)
    seeds = torch.tensor([5, 2**40 + 3, 5])
    logits.requires_grad_()
    ignored = torch.zeros(3, 1, *size, dtype=torch.bool)
    ignored[1, :, :2] = True

    def loss(samples: list[int], ignored: Tensor | None) -> Tensor:
        return ops.gumbel_consistency(
            logits[samples],
            target[samples],
            activation=activation,
            seed=seeds[samples],
            ignored=None if ignored is None else ignored[samples],
        )

    for mask in (None, ignored):
        one, turned, alone = (
            loss([0, 1, 2], mask),
            loss([2, 1, 0], mask),
            torch.stack([loss([i], mask) for i in range(3)]).mean(),
        )
        gradients = [torch.autograd.grad(value, logits)[0] for value in (one, turned, alone)]
        for value, gradient in zip((turned, alone), gradients[1:], strict=True):
            assert_near(value, one.double(), torch.float32)
            assert_near(gradient, gradients[0].double(), torch.float32)
    with pytest.raises(InputError, match=r"shape \(2,\) on .*; expected one int64 element, or 3,"):
        ops.gumbel_consistency(logits, target, activation=activation, seed=seeds[:2])


def test_same_bits_with_any_number_of_threads() -> None:
    logits = torch.randn(2, 3, 11, 12, 13)
    target = blobs("softmax", 2, 3, (11, 12, 13))
    arguments = (logits, target, torch.tensor(1), 0.5, True, "softmax", "both")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(kernels(*arguments))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize(("activation", "support", "hard"), OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_forward_counts_the_edges_for_backward(
    size: tuple[int, ...], activation: str, support: str, hard: bool
) -> None:
    logits, seed = torch.randn(2, 3, *size), torch.tensor(5)
    target = blobs(activation, 2, 3, size)
    options = (target, seed, 0.5, hard, activation, support)
    loss, edges, candidates = torch.ops.egcnn.gumbel_consistency(logits.requires_grad_(), *options)
    assert loss.requires_grad
    assert not edges.requires_grad
    assert not candidates.requires_grad
    truth = target == torch.arange(3).view(1, 3, 1, 1, 1) if activation == "softmax" else target
    expected = reference.sobel_magnitude(truth.float()) > 0
    if support == "both":
        _, sample = reference.gumbel_sample(logits.detach(), seed, 0.5, activation)
        expected |= reference.sobel_magnitude(sample) > 0
    assert torch.equal(edges, expected.sum((2, 3, 4)))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("hard", [True, False])
def test_more_volumes_than_blocks_of_the_gpu(activation: str, hard: bool) -> None:
    # For soft samples a block takes one volume after another, and what lies in between is empty.
    logits = torch.randn(40, 2, 2, 4, 9)
    target = blobs(activation, 40, 2, (2, 4, 9))
    target[1::3] = 0
    loss, expected, exact = both(logits, target, tau=0.7, hard=hard, activation=activation)
    assert_near(loss.detach(), expected.detach(), torch.float32)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("size", [*SIZES, (9, 17, 66), (4, 9, 80)])
def test_candidates_are_where_the_neighbourhood_varies(
    size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    target = blobs("softmax", 2, 3, size).to(dtype)
    target[1] = 1
    options = (torch.tensor(5), 0.5, True, "softmax", "gt")
    *_, candidates = torch.ops.egcnn.gumbel_consistency(torch.randn(2, 3, *size), target, *options)
    if candidates.numel() == 0:
        pytest.skip("only CUDA's kernels keep candidates")
    bits = (candidates[..., None] >> torch.arange(32)) & 1
    padded = torch.nn.functional.pad(target[:, 0].double(), (1,) * 6, mode="replicate")
    highest, lowest = (torch.nn.functional.max_pool3d(x, 3, 1) for x in (padded, -padded))
    assert torch.equal(bits.flatten(-2)[..., : size[2]] == 1, highest != -lowest)
    assert bits.flatten(-2)[..., size[2] :].eq(0).all()


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("hard", [True, False])
def test_threads_take_over_planes_of_strips(hard: bool) -> None:
    # Wide enough for several strips, deep enough for work stealing; all edges lie at one end, next
    # to the borders between strips and words.
    logits = torch.randn(1, 3, 24, 40, 2600)
    target = torch.zeros(1, 1, 24, 40, 2600, dtype=torch.uint8)
    target[..., :5, :, :70] = 1
    target[..., 1:3, 9:33, 60:130] = 2
    arguments = (target, torch.tensor(1), 0.5, hard, "softmax", "gt")
    exact = logits.double().clone().requires_grad_()
    expected = reference.gumbel_consistency(exact, *arguments)
    expected.backward()
    assert exact.grad is not None
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(kernels(logits, *arguments))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])
    assert_near(results[0][0], expected.detach(), torch.float32)
    largest = exact.grad.abs().max().item()
    torch.testing.assert_close(results[0][1].double(), exact.grad, rtol=2e-4, atol=2e-4 * largest)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_larger_than_the_caches(
    memory_format: torch.memory_format, activation: str
) -> None:
    # Zeros are streamed by cache lines, while rows and channels start within lines. Previous
    # contents must be overwritten.
    size = (31, 101, 151)
    logits = torch.randn(1, 5, *size).contiguous(memory_format=memory_format)
    target = torch.zeros(1, 1 if activation == "softmax" else 5, *size, dtype=torch.uint8)
    target[..., 3:9, 90:, 5:140] = 1
    target[:, -1:, 12:15, 20:30, :] = 1
    arguments = (target, torch.tensor(2), 0.7, True, activation, "gt")
    exact = logits.double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.gumbel_consistency(exact, *arguments), exact)
    del exact
    torch.full_like(logits, torch.nan)
    _, grad = kernels(logits, *arguments)
    assert grad[:, :, 20:].eq(0).all()
    atol = 2e-4 * expected.abs().max().item()
    torch.testing.assert_close(grad.double(), expected, rtol=2e-4, atol=atol)


@pytest.mark.parametrize("support", ["gt", "both"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_one_voxel_edges_and_unaligned_rows(dtype: torch.dtype, support: str) -> None:
    # A target of bytes in which every voxel is an edge, at any alignment, read in place.
    target = torch.randint(0, 5, (2 * 7 * 9 * 131 + 3,), dtype=dtype)[3:].view(2, 1, 7, 9, 131)
    logits = torch.randn(2, 5, 7, 9, 131)
    arguments = (target, torch.tensor(3), 0.7, True, "softmax", support)
    exact = logits.double().clone().requires_grad_()
    expected = reference.gumbel_consistency(exact, *arguments)
    expected.backward()
    assert exact.grad is not None
    loss, grad = kernels(logits, *arguments)
    assert_near(loss, expected.detach(), torch.float32)
    largest = exact.grad.abs().max().item()
    torch.testing.assert_close(grad.double(), exact.grad, rtol=2e-4, atol=2e-4 * largest)


@pytest.mark.usefixtures("cpu_kernels")
def test_as_many_classes_as_a_byte_holds() -> None:
    logits = torch.randn(1, 255, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 255, (1, 1, 3, 4, 5))
    for support in ("gt", "both"):
        options = (target, torch.tensor(3), 0.7, True, "softmax", support)
        (expected,) = torch.autograd.grad(reference.gumbel_consistency(logits, *options), logits)
        loss, *_ = torch.ops.egcnn.gumbel_consistency(logits, *options)
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(grad, expected)
    for context in (contextlib.nullcontext(), ops.use_reference()):
        with context, pytest.raises(InputError, match="logits has 256 channels; expected at most"):
            ops.gumbel_consistency(torch.randn(1, 256, 3, 4, 5), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("activation", "support", "hard"), OPTIONS)
def test_nan_in_nan_out(dtype: torch.dtype, activation: str, support: str, hard: bool) -> None:
    size = (6, 7, 20)
    target = torch.zeros(1, 1 if activation == "softmax" else 3, *size).long()
    target[..., 2] = 1  # edges in columns 1 and 3, so that columns 0 to 4 are read
    options = {"activation": activation, "support": support, "hard": hard}
    for voxel, read in ((torch.nan, True), (1.0, False)):
        every = torch.full((1, 3, *size), voxel, dtype=dtype)
        loss, expected, _ = both(every, target, **options)
        assert loss.isnan().item() is expected.isnan().item() is read
    for column in (0, 2, 4, 12):
        for channel in range(3):
            logits = torch.randn(1, 3, *size, dtype=dtype)
            logits[0, channel, 3, 3, column] = torch.nan
            near = column < 5 or support == "both"
            loss, expected, exact = both(logits, target, **options)
            assert loss.isnan().item() is expected.isnan().item() is near, (column, channel)
            assert logits.grad is not None
            here = (0, channel, 3, 3, column)
            if near:
                assert logits.grad[here].isnan()
                assert exact.grad is not None
                assert exact.grad[here].isnan()
            else:  # of which the kernels read nothing
                assert logits.grad[here] == 0


def test_targets_outside_the_classes_are_no_class() -> None:
    logits = torch.randn(1, 3, 5, 6, 7)
    target = blobs("softmax", 1, 4, (5, 6, 7))  # of which 3 is no class
    expected = ops.gumbel_consistency(logits, target, seed=1)
    for dtype, none in ((torch.uint8, 255), (torch.int8, -1), (torch.int64, -100)):
        outside = target.masked_fill(target == 3, none).to(dtype)
        assert torch.equal(ops.gumbel_consistency(logits, outside, seed=1), expected)
        with ops.use_reference():
            result = ops.gumbel_consistency(logits, outside, seed=1)
        assert_near(result, expected.double(), torch.float32)


def test_opcheck() -> None:
    for activation, support, hard in OPTIONS:
        logits = torch.randn(1, 3, 3, 4, 5)
        target = blobs(activation, 1, 3, (3, 4, 5))
        inputs, options = (target, torch.tensor(1)), (0.5, hard, activation, support)
        forward = torch.ops.egcnn.gumbel_consistency
        opcheck(forward, (logits.clone().requires_grad_(), *inputs, *options))
        loss, *found = forward(logits, *inputs, *options)
        arguments = (torch.ones_like(loss), logits, *inputs, *found, *options)
        opcheck(torch.ops.egcnn.gumbel_consistency_backward, arguments)


def test_compiles_whole() -> None:
    logits, target = torch.randn(1, 3, 3, 4, 5), blobs("softmax", 1, 3, (3, 4, 5))

    def loss(z: Tensor) -> Tensor:
        return ops.gumbel_consistency(z, target, seed=1)

    assert torch.equal(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(logits), loss(logits)
    )


def test_second_derivative_says_that_there_is_none() -> None:
    logits = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    loss = ops.gumbel_consistency(logits, blobs("softmax", 1, 2, (3, 3, 3)), hard=False, seed=1)
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="gumbel_consistency has no second derivative"):
        grad.sum().backward()


LOGITS = torch.zeros(1, 3, 2, 2, 2)
CLASSES = torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (LOGITS[0], CLASSES, {}, "logits has the shape"),
        (LOGITS.long(), CLASSES, {}, "logits is int64; expected one of float64"),
        (LOGITS, CLASSES.float(), {}, "target is float32; expected one of bool"),
        (LOGITS, LOGITS.byte(), {}, "target has 3 channels; expected 1"),
        (LOGITS, CLASSES, {"activation": "sigmoid"}, "target has 1 channels; expected 3"),
        (LOGITS, CLASSES[..., :1], {}, "expected the same batch and volume size"),
        (LOGITS, CLASSES.to("meta"), {}, "target is on meta and logits on cpu"),
        (LOGITS, CLASSES, {"tau": 0}, "tau is 0; expected a temperature above 0"),
        (LOGITS, CLASSES, {"activation": "relu"}, "activation is 'relu'"),
        (LOGITS, CLASSES, {"support": "all"}, "support is 'all'; expected one of 'gt', 'both'"),
        (LOGITS, CLASSES, {"seed": torch.zeros(2)}, r"seed is torch.float32 of shape \(2,\)"),
    ],
)
def test_bad_input(logits: Tensor, target: Tensor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.gumbel_consistency(logits, target, **options)


def test_real_masks(shared_data) -> None:
    import nibabel as nib

    path = sorted((shared_data / "hippocampus" / "labelsTr").glob("hippocampus_*.nii.gz"))[0]
    labels = torch.tensor(np.asarray(nib.load(path).dataobj).astype(np.uint8))[None, None]
    logits = torch.randn(1, 3, *labels.shape[2:], dtype=torch.float64)
    for hard in (True, False):
        mine = logits.clone().requires_grad_()
        loss = ops.gumbel_consistency(mine, labels, hard=hard, seed=2)
        loss.backward()
        theirs = logits.clone().requires_grad_()
        with ops.use_reference():
            expected = ops.gumbel_consistency(theirs, labels, hard=hard, seed=2)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(mine.grad, theirs.grad)
