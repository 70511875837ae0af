"""sobel_edges and sobel_magnitude against hand-computed values, scipy and the reference."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.library import opcheck

from egcnn import ops
from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.ops._tensors import FLOATS

from ..tolerances import assert_near

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(1, 1, 1), (1, 1, 7), (1, 5, 1), (3, 1, 1), (2, 2, 2), (5, 7, 11), (4, 3, 67)]
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def test_flat_face_has_magnitude_one_on_both_sides() -> None:
    x = torch.zeros(1, 1, 4, 4, 6)
    x[..., 3:] = 1
    magnitude = ops.sobel_magnitude(x)
    assert magnitude[0, 0, 2, 2].tolist() == [0, 0, 1, 1, 0, 0]
    assert ops.sobel_edges(x.bool())[0, 0, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]


def test_one_voxel_by_hand() -> None:
    x = torch.zeros(1, 1, 3, 3, 3, dtype=torch.float64)
    x[0, 0, 1, 1, 1] = 1
    magnitude = ops.sobel_magnitude(x)[0, 0]
    # The gradient is 2·2/16 at a face neighbour, twice 2·1/16 at an edge neighbour, three times
    # 1·1/16 at a corner neighbour, and 0 at the voxel itself.
    assert magnitude[1, 1, 1] == 0
    assert magnitude[1, 1, 0] == pytest.approx(4 / 16)
    assert magnitude[1, 0, 0] == pytest.approx(np.sqrt(2 * 2**2) / 16)
    assert magnitude[0, 0, 0] == pytest.approx(np.sqrt(3) / 16)


@pytest.mark.parametrize("size", SIZES)
def test_magnitude_agrees_with_scipy(size: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = np.zeros(x.shape)
    for index in np.ndindex(2, 3):
        volume = x[index].cpu().numpy()
        gradients = [scipy.ndimage.sobel(volume, a, mode="nearest") for a in range(3)]
        expected[index] = np.sqrt(sum(g**2 for g in gradients)) / 16
    for result in (ops.sobel_magnitude(x), reference.sobel_magnitude(x)):
        np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-6, atol=1e-12)
    single = ops.sobel_magnitude(x.float()).cpu().numpy()
    np.testing.assert_allclose(single, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_magnitude_and_gradient_against_float64(
    dtype: torch.dtype, memory_format: torch.memory_format, size: tuple[int, int, int]
) -> None:
    x = torch.randn(2, 3, *size).to(dtype).contiguous(memory_format=memory_format)
    grad = torch.randn(2, 3, *size).to(dtype).contiguous(memory_format=memory_format)
    x64 = x.double().requires_grad_()
    expected = reference.sobel_magnitude(x64)
    expected.backward(grad.double())
    x.requires_grad_()
    result = ops.sobel_magnitude(x)
    result.backward(grad)
    assert result.dtype == dtype
    assert result.stride() == torch.empty_like(x).stride()
    assert_near(result.detach(), expected.detach(), dtype)
    assert_near(x.grad, x64.grad, dtype)


@pytest.mark.parametrize("width", [2, 15, 16, 17, 31, 32, 33, 47, 64, 65, 97, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_magnitude_and_gradient_of_rows_of_any_width(dtype: torch.dtype, width: int) -> None:
    x, grad = (torch.randn(2, 2, 5, 35, width).to(dtype) for _ in range(2))
    x64 = x.double().requires_grad_()
    expected = reference.sobel_magnitude(x64)
    expected.backward(grad.double())
    assert_near(ops.sobel_magnitude(x), expected.detach(), dtype)
    assert_near(torch.ops.egcnn.sobel_magnitude_backward(grad, x), x64.grad, dtype)


@pytest.mark.parametrize("scale", [1e-16, 1e-9, 1e9, 1e16])
def test_gradient_of_tiny_and_huge_values(scale: float) -> None:
    x, grad = torch.randn(1, 2, 6, 9, 40), torch.randn(1, 2, 6, 9, 40)
    x64 = x.double().requires_grad_()
    reference.sobel_magnitude(x64).backward(grad.double())
    result = torch.ops.egcnn.sobel_magnitude_backward(grad, x * scale)
    # The result does not depend on the scale, up to rounding.
    torch.testing.assert_close(result.double(), x64.grad, rtol=1e-5, atol=1e-4)


def test_gradient_beyond_the_range_of_its_square_is_zero() -> None:
    for scale in (1e-30, 1e30):
        x = torch.randn(1, 1, 4, 5, 40) * scale
        assert torch.ops.egcnn.sobel_magnitude_backward(torch.ones_like(x), x).eq(0).all()


@pytest.mark.parametrize("size", SIZES)
def test_magnitude_gradcheck(size: tuple[int, int, int]) -> None:
    x = torch.rand(1, 2, *size[:2], min(size[2], 7), dtype=torch.float64, requires_grad=True)
    if x.numel() == 2:
        assert torch.autograd.grad(ops.sobel_magnitude(x).sum(), x)[0].eq(0).all()
    else:
        assert torch.autograd.gradcheck(ops.sobel_magnitude, (x,))


def test_slope_where_the_magnitude_is_zero_is_zero() -> None:
    x = torch.ones(1, 1, 5, 5, 5, requires_grad=True)
    ops.sobel_magnitude(x).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_edges_of_binary_regions(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    size: tuple[int, int, int],
    threshold: float,
) -> None:
    masks = (torch.rand(2, 3, *size) > 0.7).to(dtype).contiguous(memory_format=memory_format)
    edges = ops.sobel_edges(masks, threshold=threshold)
    assert edges.dtype == torch.uint8
    assert edges.stride() == torch.empty_like(masks).stride()
    torch.testing.assert_close(
        edges, reference.sobel_edges(masks.contiguous(), threshold=threshold), check_stride=False
    )


@pytest.mark.parametrize("dtype", INTEGERS[1:])
@pytest.mark.parametrize("size", SIZES)
def test_edges_of_label_maps(dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    regions = [(1, 2, 4), (1, 4), (4,), (99,)]
    labels = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (2, 1, *size))].to(dtype)
    edges = ops.sobel_edges(labels, regions)
    masks = torch.cat([torch.isin(labels, torch.tensor(r)) for r in regions], 1)
    assert torch.equal(edges, reference.sobel_edges(masks))
    assert torch.equal(edges, reference.sobel_edges(labels, regions))


# A word holds the bits of 62 voxels.
@pytest.mark.parametrize(
    "width", [1, 2, 3, 4, 5, 8, 35, 61, 62, 63, 64, 65, 123, 124, 125, 126, 128, 187, 250]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bfloat16, torch.float64])
def test_edges_wherever_rows_begin(dtype: torch.dtype, width: int) -> None:
    for shift in range(4):
        masks = (torch.rand(shift + 2 * 9 * 18 * width) > 0.7).to(dtype)[shift:]
        masks = masks.view(1, 2, 9, 18, width)
        assert torch.equal(ops.sobel_edges(masks), reference.sobel_edges(masks))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, -0.0, float("inf"), float("nan")])
def test_edges_of_floats_that_are_masks_but_for_one_voxel(dtype: torch.dtype, value: float) -> None:
    masks = (torch.rand(2, 2, 37, 21, 33) > 0.7).to(dtype)
    for place in ((0, 0, 0, 0, 0), (0, 1, 18, 20, 32), (1, 0, 30, 3, 16), (1, 1, 36, 20, 32)):
        inputs = masks.clone()
        inputs[place] = value
        assert torch.equal(ops.sobel_edges(inputs), reference.sobel_edges(inputs))


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("size", [(37, 5, 9), (3, 41, 130), (9, 33, 64), (1, 300, 2), (20, 1, 500)])
def test_edges_of_sparse_regions_wherever_they_begin_and_end(
    size: tuple[int, int, int], threshold: float
) -> None:
    labels = torch.zeros(2, 1, *size, dtype=torch.uint8)
    for value in (1, 2, 3):
        for _ in range(3):
            box = [sorted(torch.randint(0, n + 1, (2,)).tolist()) for n in size]
            labels[(slice(None), 0, *(slice(*ends) for ends in box))] = value
    labels[1, 0, size[0] // 2] = 1  # rows of one value that is not 0
    regions = [(0,), (1,), (2, 3), (0, 1, 2, 3)]
    expected = reference.sobel_edges(labels, regions, threshold)
    assert torch.equal(ops.sobel_edges(labels, regions, threshold=threshold), expected)
    masks = torch.cat([torch.isin(labels, torch.tensor(r).byte()) for r in regions], 1)
    for memory_format in FORMATS:
        for dtype in (torch.bool, torch.int16, torch.float32):
            inputs = masks.to(dtype).contiguous(memory_format=memory_format)
            assert torch.equal(ops.sobel_edges(inputs, threshold=threshold), expected)


def test_a_thin_plate_is_no_edge_in_its_middle() -> None:
    for dim in (2, 3, 4):
        masks = torch.zeros(1, 1, 40, 40, 80, dtype=torch.uint8)
        masks.select(dim, 20).fill_(1)
        edges = ops.sobel_edges(masks).movedim(dim, 0)
        assert edges[[19, 21]].eq(1).all()
        assert edges.sum() == edges[[19, 21]].sum()


@pytest.mark.parametrize("threshold", [1 / 16, 0.25, 3**0.5 / 16, 0.75, 1.0, 1.5, 2.0])
def test_edges_above_a_threshold_that_some_magnitudes_equal(threshold: float) -> None:
    masks = torch.rand(1, 2, 10, 19, 12) > 0.5
    edges = ops.sobel_edges(masks, threshold=threshold)
    assert torch.equal(edges, reference.sobel_edges(masks, threshold=threshold))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("threshold", [0.0, 1 / 16, 0.25, 3**0.5 / 16, 0.75, 1.0, 2.0])
def test_edges_of_floats_above_a_threshold_that_some_magnitudes_equal(
    threshold: float, dtype: torch.dtype
) -> None:
    for width in (11, 12):
        masks = (torch.rand(1, 2, 10, 9, width) > 0.5).to(dtype)
        edges = ops.sobel_edges(masks, threshold=threshold)
        assert torch.equal(edges, reference.sobel_edges(masks, threshold=threshold))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64])
def test_edges_of_many_regions_of_a_few_large_objects(dtype: torch.dtype) -> None:
    labels = torch.zeros(1, 1, 19, 41, 12, dtype=dtype)
    labels[..., 2:11, 11:30, 1:9] = 1
    labels[..., 7:16, 13:22, 4:] = 100
    labels[..., 18, 40, 0] = -7 if dtype.is_signed else 200
    regions = [(1,), (100,), (1, 100), (0,), (-7,), (200,), (300,), (0, 1, 100), (-7, 1)] * 2
    edges = ops.sobel_edges(labels, regions)
    assert torch.equal(edges, reference.sobel_edges(labels, regions))


def test_more_labels_in_a_region_than_a_byte_has_values(request: pytest.FixtureRequest) -> None:
    labels = torch.randint(0, 5_000, (1, 1, 3, 4, 5))
    regions = [tuple(range(255)), tuple(range(100, 300))]
    expected = reference.sobel_edges(labels, regions)
    assert torch.equal(ops.sobel_edges(labels, regions), expected)
    if "cuda" in request.node.callspec.id:
        with pytest.raises(RuntimeError, match="region 1 has more than 256 labels"):
            ops.sobel_edges(labels, [(1,), tuple(range(257))])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [2, 17])
def test_magnitude_and_gradient_of_deep_volumes(
    memory_format: torch.memory_format, channels: int
) -> None:
    x = torch.randn(1, channels, 37, 9, 6, dtype=torch.float64)
    grad = torch.randn_like(x)
    expected = x.clone().requires_grad_()
    reference.sobel_magnitude(expected).backward(grad)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    ops.sobel_magnitude(x).backward(grad)
    assert_near(x.grad, expected.grad, torch.float64)


def test_gradient_in_another_format_than_its_input() -> None:
    x = torch.randn(2, 3, 5, 6, 7)
    grad = torch.randn_like(x)
    expected = torch.ops.egcnn.sobel_magnitude_backward(grad, x)
    for formats in (FORMATS, FORMATS[::-1]):
        g, y = (t.contiguous(memory_format=f) for t, f in zip((grad, x), formats, strict=True))
        result = torch.ops.egcnn.sobel_magnitude_backward(g, y)
        assert result.stride() == y.stride()
        assert_near(result, expected.double(), torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_nan_in_nan_out(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.rand(1, 2, 6, 7, 20).to(dtype)
    x[0, 1, 3, 3, 4] = torch.nan
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    magnitude = ops.sobel_magnitude(x)
    magnitude.sum().backward()
    expected = reference.sobel_magnitude(x.detach())
    # The middle voxel has no weight in its own gradient.
    assert expected.isnan().sum() == 26
    assert torch.equal(magnitude.isnan(), expected.isnan())
    assert x.grad is not None
    assert x.grad[0, 1, 3, 3, 4].isnan()
    assert x.grad[:, 0].isfinite().all()
    edges = ops.sobel_edges(x)
    assert torch.equal(edges, reference.sobel_edges(x))
    assert edges[expected.isnan()].eq(0).all()


def test_a_mask_of_255_is_a_mask() -> None:
    mask = torch.rand(1, 1, 4, 5, 6) > 0.5
    assert torch.equal(ops.sobel_edges(mask.byte() * 255), ops.sobel_edges(mask))


def test_label_values_beyond_a_byte_and_negative_ones() -> None:
    labels = torch.randint(0, 2, (1, 1, 4, 4, 5)) * 70_000 - 5
    expected = ops.sobel_edges(labels > 0)
    assert torch.equal(ops.sobel_edges(labels, [(69_995,)]), expected)
    assert torch.equal(ops.sobel_edges(labels, [(-5,)]), expected)
    # A value that the labels' dtype cannot hold never occurs.
    assert ops.sobel_edges(labels.to(torch.uint8), [(1_000,)]).sum() == 0


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 3, 3), (2, 0, 3, 3, 3), (1, 1, 0, 3, 3), (1, 1, 3, 3, 0)]
)
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    magnitude = ops.sobel_magnitude(x)
    magnitude.sum().backward()
    assert magnitude.shape == shape
    assert x.grad is not None
    assert x.grad.shape == shape
    assert ops.sobel_edges(torch.zeros(shape)).shape == shape


def test_views_that_are_not_contiguous() -> None:
    x = torch.randn(2, 6, 8, 9, 10)[:, ::2, 1:, ::3, 2:].requires_grad_()
    dense = x.detach().contiguous().requires_grad_()
    for t in (x, dense):
        ops.sobel_magnitude(t).sum().backward()
    assert torch.equal(x.detach(), dense.detach())
    assert x.grad is not None
    assert torch.equal(x.grad, dense.grad)


def test_same_bits_with_any_number_of_threads() -> None:
    x = torch.randn(1, 2, 13, 37, 19)
    grad = torch.randn_like(x)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(
                (
                    torch.ops.egcnn.sobel_magnitude_backward(grad, x),
                    ops.sobel_magnitude(x),
                    ops.sobel_edges(x, threshold=0.5),
                    ops.sobel_edges(x > 1),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    for memory_format in FORMATS:
        x = torch.randn(1, 2, 3, 4, 5).contiguous(memory_format=memory_format)
        opcheck(torch.ops.egcnn.sobel_magnitude, (x.clone().requires_grad_(),))
        opcheck(torch.ops.egcnn.sobel_magnitude_backward, (x, x))
        opcheck(torch.ops.egcnn.sobel_edges, (x, [], [], 0.0))
    labels = torch.randint(0, 3, (1, 1, 3, 4, 5), dtype=torch.uint8)
    opcheck(torch.ops.egcnn.sobel_edges, (labels, [1, 2, 2], [2, 1], 0.0))


def test_compiles_whole() -> None:
    def both(labels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ops.sobel_magnitude(x) * ops.sobel_edges(labels, [(1,), (1, 2)])

    labels, x = torch.randint(0, 3, (1, 1, 3, 4, 5)), torch.randn(1, 2, 3, 4, 5)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(labels, x), both(labels, x))


def test_second_derivative_says_that_there_is_none() -> None:
    x = torch.rand(1, 1, 3, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.sobel_magnitude(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("labels", "regions", "message"),
    [
        (torch.zeros(3, 4, 5), None, r"labels has the shape \(3, 4, 5\); expected five dimensions"),
        (torch.zeros(1, 1, 3, 4, 5), [(1,)], "labels is float32; expected one of bool, uint8"),
        (torch.zeros(1, 2, 3, 4, 5).byte(), [(1,)], "labels has 2 channels; expected 1"),
        (torch.zeros(1, 1, 3, 4, 5).byte(), [], "expected at least one region"),
        (torch.zeros(1, 1, 3, 4, 5).byte(), [(1,), ()], "each with a label value"),
        (torch.zeros(1, 1, 3, 4, 5, dtype=torch.complex64), None, "labels is complex64"),
        (np.zeros((1, 1, 3, 4, 5)), None, "labels is a ndarray; expected a tensor"),
    ],
)
def test_bad_input(labels: torch.Tensor, regions: list | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.sobel_edges(labels, regions)


def test_bad_threshold() -> None:
    with pytest.raises(InputError, match="threshold is nan"):
        ops.sobel_edges(torch.zeros(1, 1, 2, 2, 2), threshold=float("nan"))


def test_magnitude_of_integers_is_refused() -> None:
    with pytest.raises(InputError, match="x is uint8; expected one of float64"):
        ops.sobel_magnitude(torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8))


def test_real_masks(shared_data) -> None:
    import nibabel as nib

    path = sorted((shared_data / "kits19_masks").rglob("*.nii.gz"))[0]
    labels = torch.tensor(np.asarray(nib.load(path).dataobj).astype(np.uint8))[None, None]
    low, high = labels[0, 0].nonzero().aminmax(dim=0)
    box = tuple(slice(a, b + 2) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    labels = labels[(..., *box)]
    assert labels.max() == 2
    edges = ops.sobel_edges(labels, [(1, 2), (2,)])
    assert torch.equal(edges, reference.sobel_edges(labels, [(1, 2), (2,)]))
