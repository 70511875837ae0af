"""Properties of the operators on generated volumes: the kernels give what the reference gives.

100 examples an operator; ``EGCNN_EXAMPLES=10`` for the long run of 1,000.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from egcnn import ops
from egcnn.ops import reference
from egcnn.ops._tensors import FLOATS

from ..mutate import EXAMPLES
from ..tolerances import assert_near

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FORMATS = (torch.contiguous_format, torch.channels_last_3d)

#: The same examples each time, and no limit of time, since other work may run beside.
many = settings(
    max_examples=100 * EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
seeds = st.integers(0, 2**32 - 1)
formats = st.sampled_from(FORMATS)
# Empty, one voxel, and rows longer than a vector and than a word of 64 bits.
sizes = st.tuples(st.integers(0, 5), st.integers(0, 5), st.one_of(st.integers(0, 9), st.just(67)))
batches = st.integers(0, 2)
channels = st.integers(1, 6)


def volume(shape: tuple[int, ...], seed: int, levels: int) -> Tensor:
    """Float64 values of few levels, so that magnitudes of 0 occur, in objects of some voxels."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, shape, generator=generator).double() / 4 - 1
    keep = torch.rand(shape, generator=generator) > 0.7
    return torch.where(keep, values, 0)


@many
@given(
    sizes,
    batches,
    channels,
    seeds,
    formats,
    st.sampled_from([*FLOATS, *INTEGERS]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.none()
    | st.lists(st.lists(st.integers(-300, 300), min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_sobel_edges(size, batch, channels, seed, format, dtype, threshold, regions) -> None:
    if regions is not None:
        channels = 1
        dtype = torch.int64 if dtype in FLOATS else dtype
    labels = (volume((batch, channels, *size), seed, 9) * 4).to(dtype)
    labels = labels.contiguous(memory_format=format)
    edges = ops.sobel_edges(labels, regions, threshold=threshold)
    assert torch.equal(edges, reference.sobel_edges(labels, regions, threshold))


@many
@given(sizes, batches, channels, seeds, formats, st.sampled_from(FLOATS))
def test_sobel_magnitude(size, batch, channels, seed, format, dtype) -> None:
    x = volume((batch, channels, *size), seed, 9).to(dtype).contiguous(memory_format=format)
    exact = x.double().clone().requires_grad_()
    expected = reference.sobel_magnitude(exact)
    expected.sum().backward()
    magnitude = ops.sobel_magnitude(x.requires_grad_())
    magnitude.sum().backward()
    assert_near(magnitude, expected, dtype)
    assert_near(x.grad, exact.grad, dtype)


def check_gate(name, e_shape, m_shape, seed, format, dtype, per_voxel, activation) -> None:
    """A gate of :mod:`egcnn.ops`, forward and backward, against its reference in float64."""
    gates, of_e, of_m = 1 if per_voxel else e_shape[1], e_shape[1], m_shape[1]
    generator = torch.Generator().manual_seed(seed)
    shapes = [e_shape, m_shape, (gates, of_e), (gates, of_m), (gates,)]
    exact = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    inputs = [
        t.to(dtype).contiguous(memory_format=format) if t.ndim == 5 else t.to(dtype) for t in exact
    ]
    exact = [t.detach().double().clone().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    expected = getattr(reference, name)(*exact, activation)
    expected.sum().backward()
    out = getattr(ops, name)(*inputs, activation=activation)
    out.sum().backward()
    assert_near(out, expected, dtype)
    for found, want in zip(inputs, exact, strict=True):
        # Sums over all voxels may cancel.
        largest = max(1.0, float(want.grad.abs().max()) if want.numel() else 0.0)
        tolerance = (1e-12 if dtype == torch.float64 else 1e-5) * largest * 10
        torch.testing.assert_close(found.grad.double(), want.grad, rtol=0, atol=tolerance)


@many
@given(
    sizes,
    batches,
    channels,
    channels,
    seeds,
    formats,
    st.sampled_from(FLOATS[:2]),
    st.booleans(),
    st.sampled_from(["relu_sigmoid", "sigmoid"]),
)
def test_edge_gate(size, batch, of_e, of_m, seed, format, dtype, per_voxel, activation) -> None:
    e_shape, m_shape = (batch, of_e, *size), (batch, of_m, *size)
    check_gate("edge_gate", e_shape, m_shape, seed, format, dtype, per_voxel, activation)


@many
@given(
    st.tuples(*[st.integers(1, 5)] * 2, st.one_of(st.integers(1, 9), st.just(67))),
    st.tuples(*[st.integers(1, 5)] * 2, st.one_of(st.integers(1, 9), st.just(67))),
    batches,
    channels,
    channels,
    seeds,
    formats,
    st.sampled_from(FLOATS[:2]),
    st.booleans(),
)
def test_edge_gate_upsampled(
    coarse, fine, batch, of_e, of_m, seed, format, dtype, per_voxel
) -> None:
    e_shape, m_shape = (batch, of_e, *coarse), (batch, of_m, *fine)
    check_gate("edge_gate_upsampled", e_shape, m_shape, seed, format, dtype, per_voxel, "sigmoid")


@many
@given(sizes, batches, st.integers(1, 20), st.integers(1, 4), seeds, formats, st.booleans())
def test_group_norm_relu(size, batch, groups, of_group, seed, format, double) -> None:
    dtype = torch.float64 if double else torch.float32
    channels = groups * of_group
    # Of few levels, so that groups may be constant. Gradients would differ where a value is 0 but
    # for rounding: the ReLU's kink.
    x = volume((batch, channels, *size), seed, 5).to(dtype).contiguous(memory_format=format)
    weight, bias = (volume((channels,), seed + i, 9).to(dtype) for i in (1, 2))
    exact = [t.double() for t in (x, weight, bias)]
    expected = reference.group_norm_relu(exact[0], groups, *exact[1:], 1e-2)
    y = ops.group_norm_relu(x, groups, weight, bias, 1e-2)
    tolerance = 1e-11 if double else 1e-4
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)


@many
@given(
    sizes,
    batches,
    st.integers(1, 6),
    seeds,
    st.integers(-(2**63), 2**63 - 1),
    formats,
    st.sampled_from(INTEGERS),
    st.sampled_from(["softmax", "sigmoid"]),
    st.sampled_from(["gt", "both"]),
    st.booleans(),
    st.floats(0.3, 2.0),
)
def test_gumbel_consistency(
    size, batch, channels, seed, noise, format, dtype, activation, support, hard, tau
) -> None:
    logits = volume((batch, channels, *size), seed, 33).contiguous(memory_format=format)
    of_target = 1 if activation == "softmax" else channels
    # Among them values below 0 and above the classes.
    target = (volume((batch, of_target, *size), seed + 1, 12) * 4 + 1).to(dtype)
    target = target.contiguous(memory_format=format)
    options = {"activation": activation, "support": support, "hard": hard, "tau": tau}
    exact = logits.clone().requires_grad_()
    expected = reference.gumbel_consistency(exact, target, torch.tensor(noise), **options)
    expected.backward()
    logits = logits.requires_grad_()
    loss = ops.gumbel_consistency(logits, target, seed=noise, **options)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits.grad, exact.grad, rtol=1e-6, atol=1e-9)


@many
@given(
    sizes,
    batches,
    channels,
    seeds,
    formats,
    st.sampled_from(FLOATS),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.booleans(),
)
def test_region_sums(size, batch, channels, seed, format, dtype, activation, entropy, ignore):
    entropy = entropy and activation == "sigmoid"
    logits = (volume((batch, channels, *size), seed, 33) * 3).to(dtype)
    logits = logits.contiguous(memory_format=format)
    target = volume((batch, channels, *size), seed + 1, 9) > 0
    ignored = volume((batch, 1, *size), seed + 2, 9) > 0.5 if ignore else None
    exact = logits.double().clone().requires_grad_()
    expected = reference.region_sums(exact, target, activation, entropy, ignored)
    expected.cos().sum().backward()
    logits = logits.requires_grad_()
    sums = ops.region_sums(logits, target, activation=activation, entropy=entropy, ignored=ignored)
    sums.double().cos().sum().backward()
    assert_near(sums, expected, sums.dtype)
    # The cosine's slope depends on the sums' roundings.
    tolerance = 1e-10 if dtype == torch.float64 else 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
