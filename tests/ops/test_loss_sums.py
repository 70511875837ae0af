"""loss_sums against the operators that it joins, its gradients, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import LossSums, reference
from egcnn.ops._tensors import FLOATS, region_masks

pytestmark = pytest.mark.usefixtures("device")

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
# One voxel, odd and prime sizes, rows of more than a word, and rows of more than a run.
SIZES = [(1, 1, 1), (3, 5, 7), (5, 18, 67), (2, 3, 1500)]
NESTED, CLASSES = [(1, 2, 4), (1, 4), (4,)], [(0,), (1,), (7,)]
OPTIONS = list(itertools.product((True, False), (0.0, 0.6), (3, 1)))


def drawn(
    size: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    edge_channels: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, edge logits and a label map of blocks, with values of no region."""
    logits, edge_logits = (
        (3 * torch.randn(2, channels, *size))
        .to(dtype)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
        for channels in (3, edge_channels)
    )
    coarse = torch.tensor([0, 0, 1, 2, 4, 7, 300])[
        torch.randint(0, 7, (2, 1, *((n + 2) // 3 for n in size)))
    ]
    for dim in (2, 3, 4):
        coarse = coarse.repeat_interleave(3, dim)
    return logits, edge_logits, coarse[..., : size[0], : size[1], : size[2]].to(torch.int16)


def compare(
    logits: Tensor, edge_logits: Tensor, labels: Tensor, *arguments: Any, **options: Any
) -> None:
    """The sums and the gradients against the reference in float64."""
    sums = ops.loss_sums(logits, edge_logits, labels, *arguments, **options)
    grads = [torch.randn_like(each) for each in sums]
    inputs = [logits.detach().double(), edge_logits.detach().double()]
    with ops.use_reference():
        exact = [tensor.requires_grad_() for tensor in inputs]
        expected = ops.loss_sums(*exact, labels, *arguments, **options)
        exact_gradients = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
    for found, other in zip(sums, expected, strict=True):
        assert found.dtype == reference.accumulate_dtype(logits.dtype)
        tolerance = 1e-12 if logits.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found.double(), other, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(sums, (logits, edge_logits), grads)
    # Where a magnitude is near 0, its slope changes with the last bit of the sample.
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 1.5e-3}.get(
        logits.dtype, 1.2e-2
    )
    for gradient, other, of in zip(gradients, exact_gradients, (logits, edge_logits), strict=True):
        assert gradient.stride() == of.stride()
        largest = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(
            gradient.double(), other, rtol=tolerance, atol=tolerance * largest
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("activation", "regions"), [("sigmoid", NESTED), ("softmax", CLASSES)])
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_operators_that_it_joins(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    activation: str,
    regions: list[tuple[int, ...]],
    size: tuple[int, int, int],
) -> None:
    number = SIZES.index(size) + FLOATS.index(dtype) + FORMATS.index(memory_format)
    for hard, threshold, edge_channels in (OPTIONS[number % 8], OPTIONS[(number + 3) % 8]):
        volumes = drawn(size, dtype, memory_format, edge_channels)
        options = {"threshold": threshold, "hard": hard, "tau": 0.7, "activation": activation}
        compare(*volumes, regions, seed=5, **options)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64])
def test_ready_made_regions_of_any_type(dtype: torch.dtype) -> None:
    logits, edge_logits, labels = drawn((6, 7, 5))
    masks = region_masks(labels, NESTED).to(dtype)
    expected = ops.loss_sums(logits, edge_logits, labels, NESTED, activation="sigmoid", seed=3)
    for regions in (masks, masks.contiguous(memory_format=FORMATS[1]), masks * 2):
        found = ops.loss_sums(logits, edge_logits, regions, activation="sigmoid", seed=3)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_types_of_the_label_map(dtype: torch.dtype) -> None:
    logits, edge_logits, labels = drawn((6, 7, 30))
    labels = labels.masked_fill(labels == 300, 100)
    for activation, regions in (("sigmoid", NESTED), ("softmax", CLASSES)):
        # A value that the type does not have is nowhere.
        regions = [*regions[:2], (*regions[2], 356)] if activation == "sigmoid" else regions
        volumes = (logits, edge_logits, labels)
        expected = ops.loss_sums(*volumes, regions, activation=activation, seed=3)
        volumes = (logits, edge_logits, labels.to(dtype))
        found = ops.loss_sums(*volumes, regions, activation=activation, seed=3)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_each_sample_draws_its_own_noise(activation: str) -> None:
    volumes, seeds = drawn((6, 7, 5)), torch.tensor([2**40 + 3, 5])
    regions = NESTED if activation == "sigmoid" else CLASSES
    compare(*volumes, regions, activation=activation, seed=seeds)
    both = ops.loss_sums(*volumes, regions, activation=activation, seed=seeds)
    alone = [
        ops.loss_sums(*(v[i : i + 1] for v in volumes), regions, activation=activation, seed=seed)
        for i, seed in enumerate(seeds.tolist())
    ]
    torch.testing.assert_close(
        both.consistency, torch.stack([each.consistency for each in alone]).mean()
    )
    torch.testing.assert_close(both.regions, torch.cat([each.regions for each in alone]))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_gradcheck(activation: str) -> None:
    logits, edge_logits, labels = drawn((2, 3, 4), torch.float64)
    regions = NESTED if activation == "sigmoid" else CLASSES

    def sums(z: Tensor, e: Tensor) -> LossSums:
        return ops.loss_sums(z, e, labels, regions, activation=activation, hard=False, seed=5)

    assert torch.autograd.gradcheck(sums, (logits, edge_logits))


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("edge_channels", [3, 1])
def test_opcheck(edge_channels: int) -> None:
    logits, edge_logits, labels = drawn((3, 4, 5), edge_channels=edge_channels)
    values, counts = [1, 2, 4, 1, 4, 4], [3, 2, 1]
    options = (False, values, counts, 0.5, True, 0.0)
    arguments = (logits, edge_logits, labels, torch.tensor(3), *options)
    opcheck(torch.ops.egcnn.loss_sums.default, arguments)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("size", [(20, 11, 13), (9, 40, 2600)])
def test_the_same_bits_with_any_number_of_threads(size: tuple[int, int, int]) -> None:
    # The second is so wide that planes are cut into strips.
    logits, edge_logits, labels = drawn(size)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            sums = ops.loss_sums(logits, edge_logits, labels, NESTED, activation="sigmoid", seed=3)
            total = sum(each.sum() for each in sums)
            found.append([*sums, *torch.autograd.grad(total, (logits, edge_logits))])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("memory_format", FORMATS)
def test_strips_of_wide_planes_and_gradients_larger_than_the_caches(
    memory_format: torch.memory_format,
) -> None:
    compare(
        *drawn((5, 40, 2600), memory_format=memory_format), NESTED, activation="sigmoid", seed=3
    )


@pytest.mark.usefixtures("cpu_kernels")
def test_backward_keeps_what_forward_got() -> None:
    logits, edge_logits, labels = drawn((6, 7, 5))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ops.loss_sums(logits, edge_logits, labels, NESTED, activation="sigmoid", seed=3)
    given = {tensor.data_ptr() for tensor in (logits, edge_logits, labels)}
    assert all(t.data_ptr() in given or t.numel() <= 6 for t in kept)
    assert given <= {tensor.data_ptr() for tensor in kept}


@pytest.mark.parametrize("channels", [1, 2, 40])
def test_any_number_of_regions(channels: int) -> None:
    logits, edge_logits = (
        torch.randn(1, channels, 4, 5, 6, dtype=torch.float64, requires_grad=True) for _ in "ze"
    )
    regions = torch.rand(logits.shape) < 0.5
    compare(logits, edge_logits, regions, activation="sigmoid", seed=3)
    if channels > 1:
        labels = torch.randint(0, channels, (1, 1, 4, 5, 6))
        classes = [(c,) for c in range(channels)]
        compare(logits, edge_logits, labels, classes, activation="softmax", seed=3)


def test_nan_comes_out_of_what_has_it() -> None:
    logits, edge_logits, labels = drawn((6, 7, 5))
    with torch.no_grad():
        logits[0, 1] = torch.nan
        edge_logits[1, 2, 0, 0, 0] = torch.nan
    sums = ops.loss_sums(logits, edge_logits, labels, NESTED, activation="sigmoid", seed=3)
    assert sums.consistency.isnan()
    assert sums.regions[0, 1, 1].isnan()
    assert sums.edges[1, 2, 1].isnan()
    assert not sums.regions[[0, 0, 1, 1, 1], [0, 2, 0, 1, 2]].isnan().any()
    assert not sums.edges[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]].isnan().any()


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (1, 3, 0, 2, 2), (1, 3, 2, 2, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    logits, edge_logits = (torch.zeros(shape, requires_grad=True) for _ in "ze")
    labels = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.uint8)
    sums = ops.loss_sums(logits, edge_logits, labels, NESTED, activation="sigmoid", seed=3)
    assert [tuple(each.shape) for each in sums] == [(*shape[:2], 3), (*shape[:2], 5), ()]
    sum(each.sum() for each in sums).backward()
    assert logits.grad is not None
    assert edge_logits.grad is not None


def test_memory_without_an_order_is_taken() -> None:
    logits, edge_logits, labels = drawn((6, 6, 6))
    options = {"activation": "sigmoid", "seed": 3}
    strided = [volume.transpose(2, 4) for volume in (logits, edge_logits, labels)]
    expected = ops.loss_sums(*(volume.contiguous() for volume in strided), NESTED, **options)
    torch.testing.assert_close(ops.loss_sums(*strided, NESTED, **options), expected)
    mixed = edge_logits.contiguous(memory_format=torch.channels_last_3d)
    compare(logits, mixed.detach().requires_grad_(), labels, NESTED, **options)


X, LABELS = torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 1, 3, 4, 5, dtype=torch.uint8)
PAIR = [(1,), (2,)]


@pytest.mark.parametrize(
    ("volumes", "regions", "options", "message"),
    [
        ((X[0], X, LABELS), PAIR, {}, "logits has the shape"),
        ((X.long(), X, LABELS), PAIR, {}, "logits is int64"),
        ((X, X.double(), LABELS), PAIR, {}, "edge_logits is float64; expected one of float32"),
        ((X, torch.cat([X, X], 1), LABELS), PAIR, {}, "edge_logits has 4 channels; expected 2, or"),
        ((X, X[..., :2], LABELS), PAIR, {}, "edge_logits has the shape"),
        ((X, X, LABELS.float()), PAIR, {}, "labels is float32"),
        ((X, X, LABELS), None, {}, "labels has 1 channels; expected 2"),
        ((X, X, LABELS[:, :, 1:]), PAIR, {}, "labels has the shape"),
        ((X, X, LABELS), PAIR[:1], {}, r"regions is \[\(1,\)\]; expected label values for each"),
        ((X, X, LABELS), [(1,), ()], {}, "regions is .*expected label values for each of the 2"),
        ((X, X, LABELS), None, {"activation": "softmax"}, "regions is None"),
        ((X, X, LABELS), PAIR, {"activation": "tanh"}, "activation is 'tanh'"),
        ((X, X, LABELS), PAIR, {"threshold": -1.0}, "threshold is -1.0"),
        ((X, X, LABELS), PAIR, {"tau": 0.0}, "tau is 0.0; expected a temperature above 0"),
        ((X, X, LABELS), PAIR, {"seed": torch.zeros(3)}, "seed is torch.float32"),
    ],
)
def test_rejections(
    volumes: tuple[Tensor, ...], regions: Any, options: dict[str, Any], message: str
) -> None:
    moved = [volume.to(torch.get_default_device()) for volume in volumes]
    with pytest.raises(InputError, match=message):
        ops.loss_sums(*moved, regions, **{"activation": "sigmoid", **options})
