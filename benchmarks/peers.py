"""Other implementations of the operators, for comparison.

Each function takes the arguments of its operator in ``egcnn.ops`` and computes the same, with the
operator's default options; functions of libraries that define an edge slightly differently are
marked inexact. ``PEERS`` lists those worth measuring, including the fastest known forms for
``torch.compile``.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from egcnn import ops
from egcnn.losses import ConsistencyLoss, DiceLoss, EdgeLoss
from egcnn.ops import reference
from egcnn.regions import BRATS

Regions = Sequence[Sequence[int]]

# --- Sobel edges and magnitude -------------------------------------------------------------------


def _inside(labels: Tensor, regions: Regions | None) -> Tensor:
    """Which voxels each region holds, ``(B, R, D, H, W)`` int8."""
    if regions is None:
        return (labels != 0).to(torch.int8)
    label = labels[:, 0]
    masks = [functools.reduce(torch.logical_or, [label == v for v in r]) for r in regions]
    return torch.stack(masks, 1).to(torch.int8)


def _padded(x: Tensor) -> Tensor:
    """Pad a volume by one replicated voxel on all sides; a separate copy when compiled."""
    for dim in (-1, -2, -3):
        size = x.shape[dim]
        x = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, size - 1, 1)], dim)
    return x


def _padded_by_index(x: Tensor) -> Tensor:
    """The same by clamped indices: no copy when compiled, but a slow gradient."""
    z, y, x_ = (
        torch.arange(-1, size + 1, device=x.device).clamp(0, size - 1) for size in x.shape[-3:]
    )
    return x[..., z[:, None, None], y[:, None], x_]


def _three(padded: Tensor, dim: int) -> list[Tensor]:
    """The values before, at and after each voxel along ``dim``."""
    size = padded.shape[dim] - 2
    return [padded.narrow(dim, start, size) for start in range(3)]


def _smooth(padded: Tensor, dim: int) -> Tensor:
    before, at, after = _three(padded, dim)
    return before + 2 * at + after


def _difference(padded: Tensor, dim: int) -> Tensor:
    before, _, after = _three(padded, dim)
    return after - before


def _gradients(padded: Tensor) -> list[Tensor]:
    """16 times the gradient along z, y and x, in the volume's own type."""
    smooth_z = _smooth(padded, -3)
    return [
        _smooth(_smooth(_difference(padded, -3), -2), -1),
        _smooth(_difference(smooth_z, -2), -1),
        _difference(_smooth(smooth_z, -2), -1),
    ]


def _any_edge(gradients: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.bitwise_or, gradients).ne(0).to(torch.uint8)


def edges_slices(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """Shifted slices in bytes, exact since no gradient of a binary region exceeds 16."""
    return _any_edge(_gradients(_padded(_inside(labels, regions))))


def edges_gather(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """The same with clamped indices: one kernel when compiled, with 27 reads per voxel."""
    return _any_edge(_gradients(_padded_by_index(_inside(labels, regions))))


def _stencils(like: Tensor) -> Tensor:
    """The three Sobel stencils, ``(3, 1, 3, 3, 3)``."""
    smooth, difference = like.new_tensor([1, 2, 1]), like.new_tensor([-1, 0, 1])
    axes = [[difference if a == axis else smooth for a in range(3)] for axis in range(3)]
    return torch.stack([torch.einsum("i,j,k->ijk", *axis) for axis in axes])[:, None]


def _convolved(x: Tensor) -> Tensor:
    """16 times the gradients of ``(B, C, D, H, W)`` along a new dimension 1 of three."""
    volumes = F.pad(x.flatten(0, 1)[:, None], (1,) * 6, mode="replicate")
    return F.conv3d(volumes, _stencils(x))


def edges_conv3d(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """One convolution with three output channels, in 16 bits if the GPU is fast at it."""
    inside = _inside(labels, regions)
    gradients = _convolved(inside.to(torch.float16 if inside.is_cuda else torch.float32))
    return gradients.ne(0).any(1).view(inside.shape).to(torch.uint8)


def _root(squares: Tensor) -> Tensor:
    """Square root with slope 0 at 0."""
    slanted = squares > 0
    return torch.where(slanted, torch.where(slanted, squares, 1).sqrt(), 0)


def magnitude_slices(x: Tensor) -> Tensor:
    """Shifted slices."""
    gz, gy, gx = _gradients(_padded(x))
    return _root((gz * gz + gy * gy + gx * gx) / 256)


def magnitude_conv3d(x: Tensor) -> Tensor:
    """One convolution with three output channels."""
    return _root(_convolved(x).square().sum(1) / 256).view(x.shape)


def _ndimage(x: Tensor, array_library: Any, ndimage: Any, combine: Callable[..., Any]) -> Any:
    """``combine(gz, gy, gx)`` of each volume of ``x``, by scipy's or CuPy's ndimage."""
    shape = x.shape
    volumes = array_library.from_dlpack(x.detach().flatten(0, 1).contiguous())
    results = []
    for volume in volumes:
        values = volume.astype("float32")
        results.append(combine(*(ndimage.sobel(values, a, mode="nearest") for a in range(3))))
    return array_library.stack(results).reshape(shape)


def _nonzero(gz: Any, gy: Any, gx: Any) -> Any:
    return ((gz != 0) | (gy != 0) | (gx != 0)).astype("uint8")


def _norm(gz: Any, gy: Any, gx: Any) -> Any:
    return (gz * gz + gy * gy + gx * gx) ** 0.5 / 16


def edges_scipy(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``scipy.ndimage.sobel`` along each axis, one region after the other."""
    return torch.from_dlpack(_ndimage(_inside(labels, regions), np, scipy.ndimage, _nonzero))


def magnitude_scipy(x: Tensor) -> Tensor:
    """``scipy.ndimage.sobel`` along each axis, one channel after the other."""
    return torch.from_dlpack(_ndimage(x, np, scipy.ndimage, _norm))


def _on_cupy(x: Tensor, combine: Callable[..., Any]) -> Tensor:
    import cupy
    import cupyx.scipy.ndimage

    with cupy.cuda.ExternalStream(torch.cuda.current_stream(x.device).cuda_stream):
        return torch.from_dlpack(_ndimage(x, cupy, cupyx.scipy.ndimage, combine))


def edges_cupy(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``cupyx.scipy.ndimage.sobel`` along each axis, one region after the other."""
    return _on_cupy(_inside(labels, regions), _nonzero)


def magnitude_cupy(x: Tensor) -> Tensor:
    """``cupyx.scipy.ndimage.sobel`` along each axis, one channel after the other."""
    return _on_cupy(x, _norm)


def _monai_gradients(x: Tensor) -> Tensor:
    """16 times the gradients of ``(B, C, D, H, W)``, ``(3, B, C, D, H, W)``."""
    from monai.transforms import SobelGradients

    sobel = SobelGradients(normalize_kernels=False, padding_mode="replicate")
    gradients = sobel(x.flatten(0, 1))  # type: ignore[no-untyped-call]
    return gradients.as_subclass(Tensor).view(3, *x.shape)


def edges_monai(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``monai.transforms.SobelGradients`` with replicated borders instead of reflected ones."""
    return _monai_gradients(_inside(labels, regions).float()).ne(0).any(0).to(torch.uint8)


def magnitude_monai(x: Tensor) -> Tensor:
    """The same, and the root of the squares."""
    return _root(_monai_gradients(x).square().sum(0) / 256)


def _each_volume(x: Tensor, function: Callable[[Any], Any]) -> Tensor:
    """``function`` of each volume of ``(B, C, D, H, W)``, as NumPy arrays."""
    results = [function(volume) for volume in x.detach().flatten(0, 1).contiguous().numpy()]
    return torch.from_numpy(np.stack(results)).view(x.shape)


def edges_skimage(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``skimage.filters.sobel``, one region after the other."""
    from skimage.filters import sobel

    inside = _inside(labels, regions).float()
    return _each_volume(inside, lambda v: (sobel(v) != 0).astype(np.uint8))


def magnitude_skimage(x: Tensor) -> Tensor:
    """The same, whose squares are averaged over the axes."""
    from skimage.filters import sobel

    return _each_volume(x, lambda v: sobel(v) * np.float32(3**0.5))


def edges_boundaries(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``skimage.segmentation.find_boundaries``: any voxel whose 3x3x3 neighbourhood is not
    constant.

    The Sobel gradient cancels out at a few of these.
    """
    from skimage.segmentation import find_boundaries

    inside = _inside(labels, regions)
    return _each_volume(inside, lambda v: find_boundaries(v, connectivity=3).astype(np.uint8))


def _edges_itk(filter_name: str, labels: Tensor, regions: Regions | None) -> Tensor:
    """Where a SimpleITK filter of the masks is above 0."""
    import SimpleITK

    def edges(volume: Any) -> Any:
        image = getattr(SimpleITK, filter_name)(SimpleITK.GetImageFromArray(volume))
        return SimpleITK.GetArrayViewFromImage(image) > 0

    inside = _inside(labels, regions).float()
    return _each_volume(inside, edges).to(torch.uint8)


def edges_itk_sobel(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``SimpleITK.SobelEdgeDetection``, whose 3D kernel has weights of its own."""
    return _edges_itk("SobelEdgeDetection", labels, regions)


def edges_itk_gradient(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``SimpleITK.GradientMagnitude``: central differences, without smoothing across."""
    return _edges_itk("GradientMagnitude", labels, regions)


def edges_itk_contour(labels: Tensor, regions: Regions | None = None) -> Tensor:
    """``SimpleITK.BinaryContour``: the inner of the two layers of voxels that Sobel marks."""
    import SimpleITK

    def edges(volume: Any) -> Any:
        image = SimpleITK.BinaryContour(
            SimpleITK.GetImageFromArray(volume), fullyConnected=True, foregroundValue=1
        )
        return SimpleITK.GetArrayFromImage(image)

    return _each_volume(_inside(labels, regions).to(torch.uint8), edges)


# --- Edge gate -----------------------------------------------------------------------------------


def _gated(e: Tensor, gate: Tensor) -> Tensor:
    dtype = reference.accumulate_dtype(e.dtype)
    e_ = e.to(dtype)
    return (e_ * gate.to(dtype).relu().sigmoid() + e_).to(e.dtype)


def gate_sum(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor) -> Tensor:
    """One attention value as sums of products over the channels, which Inductor fuses."""

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return (x.to(weight.dtype) * weight.view(1, -1, 1, 1, 1)).sum(1, keepdim=True)

    return _gated(e, product(e, weight_e) + product(m, weight_m) + bias)


def gate_matmul(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor) -> Tensor:
    """Two matrix products in the dtype of ``e``, in the tensors' layout."""

    def product(x: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        if x.is_contiguous():
            return (weight @ x.flatten(2)).unflatten(2, x.shape[2:])
        rows = x.movedim(1, -1)
        return (rows.reshape(-1, x.shape[1]) @ weight.T).view(*rows.shape[:-1], -1).movedim(-1, 1)

    return _gated(e, product(e, weight_e) + product(m, weight_m) + bias.view(1, -1, 1, 1, 1))


def gate_conv3d(e: Tensor, m: Tensor, weight_e: Tensor, weight_m: Tensor, bias: Tensor) -> Tensor:
    """Two 1x1x1 convolutions in the dtype of ``e``, the common form."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv3d(x, weight.to(x.dtype)[:, :, None, None, None], bias)

    return _gated(e, product(e, weight_e, bias.to(e.dtype)) + product(m, weight_m))


# --- Edge gate of a coarser edge stream ----------------------------------------------------------


def _upsampled(gate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A gate after trilinear interpolation, an operator of its own."""

    def function(e: Tensor, m: Tensor, *weights: Tensor) -> Tensor:
        return gate(call_interpolate(e, m), m, *weights)

    return function


# --- Gumbel-softmax consistency ------------------------------------------------------------------


def _uniforms(seed: Tensor, voxel: Tensor, channels: int) -> Tensor:
    """Rows ``voxel`` (flat indices) of :func:`egcnn.ops.reference.philox_uniforms`."""
    mask = 0xFFFFFFFF
    block = torch.arange((channels + 3) // 4, device=voxel.device)
    counter = (voxel[:, None] & mask, voxel[:, None] >> 32, block, torch.zeros_like(block))
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = ((product1 >> 32) & mask) ^ c1 ^ k0, product1 & mask
        c2, c3 = ((product0 >> 32) & mask) ^ c3 ^ k1, product0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    words = torch.stack([c0, c1, c2, c3], -1).flatten(1)[:, :channels]
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def mixed_voxels(labels: Tensor) -> Tensor:
    """Whether the 3x3x3 neighbourhood of a voxel holds more than one label: the edge voxels."""
    low = high = _padded(labels)
    for dim in (-1, -2, -3):
        low = functools.reduce(torch.minimum, _three(low, dim))
        high = functools.reduce(torch.maximum, _three(high, dim))
    return low != high


def _neighbourhood(voxel: Tensor, size: Sequence[int]) -> Tensor:
    """Flat indices of the 27 voxels around each of ``voxel``, clamped at borders, ``(N, 27)``."""
    depth, height, width = size
    shift = torch.arange(-1, 2, device=voxel.device)
    x = (voxel[:, None] % width + shift).clamp(0, width - 1)
    y = (voxel[:, None] // width % height + shift).clamp(0, height - 1)
    z = (voxel[:, None] // (width * height) % depth + shift).clamp(0, depth - 1)
    start = voxel[:, None, None, None] // (depth * height * width) * depth
    plane = start + z[:, :, None, None]
    return ((plane * height + y[:, None, :, None]) * width + x[:, None, None, :]).flatten(1)


def consistency_sparse(logits: Tensor, target: Tensor, seed: Tensor, tau: float = 0.5) -> Tensor:
    """Softmax, straight-through, over true edges: noise and sample only in the band around them."""
    batch, channels, *size = logits.shape
    voxels = math.prod(size)
    edge = mixed_voxels(target).flatten().nonzero()[:, 0]
    around = _neighbourhood(edge, size)
    # Marking and counting is faster than sorting in torch.unique.
    mark = torch.zeros(batch * voxels, dtype=torch.bool, device=target.device)
    mark[around.flatten()] = True
    band = mark.nonzero()[:, 0]
    slot = torch.empty(batch * voxels, dtype=torch.int32, device=target.device)
    slot[band] = torch.arange(len(band), dtype=torch.int32, device=target.device)

    classes = torch.arange(channels, device=target.device)
    first = band // voxels * (channels * voxels) + band % voxels
    index = first[:, None] + voxels * classes
    # index_select has a cheaper backward than indexing.
    z = logits.reshape(-1).index_select(0, index.flatten()).view(-1, channels)
    z = z.to(reference.accumulate_dtype(logits.dtype))
    uniforms = _uniforms(seed, band, channels).to(z.dtype)
    noisy = z - (-uniforms.log()).log()
    soft = (noisy / tau).softmax(1)
    one_hot = (noisy.argmax(1, keepdim=True) == classes).to(z.dtype)
    sample = (soft - soft.detach()) + one_hot

    stencils = _stencils(z).view(3, 27)
    around_sample = sample.index_select(0, slot[around.flatten()]).view(-1, 27, channels)
    around_truth = (target.flatten()[around][:, :, None] == classes).to(z.dtype)
    magnitude, truth = (
        _root((stencils @ values).square().sum(1) / 256) for values in (around_sample, around_truth)
    )
    edges = truth > 0
    mismatch = torch.where(edges, (magnitude - truth).abs(), 0)
    sample_of_batch = edge // voxels
    total = z.new_zeros(batch, channels).index_add(0, sample_of_batch, mismatch)
    count = z.new_zeros(batch, channels).index_add(0, sample_of_batch, edges.to(z.dtype))
    return (total / count.clamp(min=1)).mean()


# --- Sums of the Dice and edge losses ------------------------------------------------------------


def sums_reference(logits: Tensor, target: Tensor) -> Tensor:
    """The reference with its cross entropies, as the edge loss takes them."""
    return reference.region_sums(logits, target, "sigmoid", True)


def sums_monai(logits: Tensor, target: Tensor) -> Tensor:
    """MONAI's Dice loss with squared denominator, and the cross entropy of a softmax."""
    from monai.losses import DiceCELoss

    loss = DiceCELoss(sigmoid=True, squared_pred=True)(logits, target.to(logits.dtype))
    return loss.expand(*logits.shape[:2], 5)


# --- The total loss ------------------------------------------------------------------------------


def loss_separate(logits: Tensor, edge_logits: Tensor, labels: Tensor, seed: Tensor) -> Tensor:
    """The total loss of BraTS's regions by one loss after the other, each with its operator."""
    masks = BRATS.masks(labels).view(torch.bool)
    edges = ops.sobel_edges(masks).view(torch.bool)
    return (
        DiceLoss(activation="sigmoid")(logits, masks)
        + ConsistencyLoss(activation="sigmoid")(logits, masks, seed)
        + EdgeLoss()(edge_logits, edges)
    )


def loss_reference(logits: Tensor, edge_logits: Tensor, labels: Tensor, seed: Tensor) -> Tensor:
    """The same by the operators' references."""
    masks = BRATS.masks(labels)
    sums = reference.region_sums(logits, masks, "sigmoid")
    edges = reference.region_sums(edge_logits, reference.sobel_edges(masks), "sigmoid", True)
    return (
        DiceLoss(activation="sigmoid").of_sums(sums)
        + reference.gumbel_consistency(logits, masks, seed, activation="sigmoid")
        + EdgeLoss().of_sums(edges, masks[0, 0].numel())
    )


def loss_monai(logits: Tensor, edge_logits: Tensor, labels: Tensor, seed: Tensor) -> Tensor:
    """MONAI's Dice loss with cross entropy of the logits alone; no edges, no consistency."""
    from monai.losses import DiceCELoss

    masks = BRATS.masks(labels).to(logits.dtype)
    return DiceCELoss(sigmoid=True, squared_pred=True)(logits, masks)


# --- GroupNorm with ReLU -------------------------------------------------------------------------


def norm_torch(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Torch's own two operators, as networks have them."""
    return F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype)).relu_()


def norm_channels(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """By definition, with the channels last where they are in memory; when compiled, two passes."""
    last = not x.is_contiguous()
    dims = (1, 2, 3, 5) if last else (2, 3, 4, 5)
    y = x.to(weight.dtype)
    if last:
        y = y.movedim(1, -1).unflatten(-1, (groups, -1))
        shape = (1, 1, 1, 1, groups, -1)
    else:
        y = y.unflatten(1, (groups, -1))
        shape = (1, groups, -1, 1, 1, 1)
    variance, mean = torch.var_mean(y, dims, correction=0, keepdim=True)
    y = (y - mean) * (variance + 1e-5).rsqrt() * weight.view(shape) + bias.view(shape)
    y = y.relu().to(x.dtype)
    return y.flatten(-2).movedim(-1, 1) if last else y.flatten(1, 2)


# --- Calls ---------------------------------------------------------------------------------------


def call_pool(x: Tensor, *_: object) -> Tensor:
    """A native operator of torch that reads the same neighbourhood."""
    return F.avg_pool3d(x, 3, 1, 1)


def call_conv3d(e: Tensor, m: Tensor, weight_e: Tensor, *_: object) -> Tensor:
    """A native operator of torch with the same input: one of the gate's two products."""
    return F.conv3d(e, weight_e[:, :, None, None, None])


def call_interpolate(e: Tensor, m: Tensor, *_: object) -> Tensor:
    """A native operator of torch with the same input: half of what ours does."""
    return F.interpolate(e, size=m.shape[2:], mode="trilinear", align_corners=False)


def call_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """GroupNorm without ReLU, a native operator of torch."""
    return F.group_norm(x, groups, weight, bias)


def call_binary_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The cross entropy alone, as one sum."""
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="sum")
    return loss.expand(*logits.shape[:2], 5)


def call_cross_entropy(logits: Tensor, target: Tensor, *_: object) -> Tensor:
    """A native loss of torch over the same logits and labels."""
    return F.cross_entropy(logits, target[:, 0])


# --- Which forms to measure ----------------------------------------------------------------------

OURS = "egcnn"

# Of those much alike, all but one are measured in the main cases only, and so are slow ones. The
# eager reference and whoever comes nearest to us at most sizes stand in the sweeps. Beside a call
# stands a native operator of torch, which computes something else.
MAIN, SIZES, SWEPT, CALL = (
    ("main",),
    ("main", "size", "real"),
    ("main", "size", "real", "sweep"),
    ("call",),
)


@dataclass(frozen=True)
class Peer:
    """An implementation of an operator.

    Attributes:
        name: display name in tables.
        function: takes the operator's arguments.
        compiled: whether to run it under ``torch.compile``.
        autotuned: with ``mode="max-autotune-no-cudagraphs"``, which takes long to compile.
        differentiable: whether autograd goes through it.
        exact: whether it computes exactly the same, not an approximation.
        groups: of cases that it is measured in (see :class:`benchmarks.cases.Case`).
        devices: supported devices.
        package: package that it needs besides torch and SciPy.
    """

    name: str
    function: Callable[..., Tensor]
    compiled: bool = False
    autotuned: bool = False
    differentiable: bool = True
    exact: bool = True
    groups: tuple[str, ...] = SIZES
    devices: tuple[str, ...] = ("cpu", "cuda")
    package: str = "torch"

    def build(self, backend: str = "inductor") -> Callable[..., Tensor]:
        """The function to call, compiled by ``backend`` if requested."""
        if not self.compiled:
            return self.function
        mode = "max-autotune-no-cudagraphs" if self.autotuned and backend == "inductor" else None
        return torch.compile(self.function, backend=backend, mode=mode, dynamic=False)


def _array_peer(name: str, package: str, function: Callable[..., Tensor], **options: Any) -> Peer:
    """A peer that works on NumPy or CuPy arrays."""
    device = "cuda" if package == "cupy" else "cpu"
    options = {"differentiable": False, "groups": MAIN, "devices": (device,), **options}
    return Peer(name, function, package=package, **options)


PEERS = {
    operator: [peer for peer in peers if importlib.util.find_spec(peer.package)]
    for operator, peers in {
        "sobel_edges": [
            Peer("eager reference", reference.sobel_edges, groups=SWEPT),
            Peer("eager conv3d", edges_conv3d, groups=MAIN),
            Peer("MONAI SobelGradients", edges_monai, groups=MAIN, package="monai"),
            _array_peer("scipy sobel", "scipy", edges_scipy, groups=("main", "sweep")),
            _array_peer("cupy sobel", "cupy", edges_cupy, groups=SIZES),
            _array_peer("skimage sobel", "skimage", edges_skimage),
            _array_peer("skimage boundaries", "skimage", edges_boundaries, exact=False),
            _array_peer("SimpleITK Sobel", "SimpleITK", edges_itk_sobel, exact=False),
            _array_peer("SimpleITK gradient", "SimpleITK", edges_itk_gradient, exact=False),
            _array_peer("SimpleITK contour", "SimpleITK", edges_itk_contour, exact=False),
            Peer("compiled slices", edges_slices, compiled=True, groups=SWEPT),
            Peer("compiled gather", edges_gather, compiled=True, groups=MAIN),
            Peer("torch avg_pool3d", call_pool, differentiable=False, exact=False, groups=CALL),
        ],
        "sobel_magnitude": [
            Peer("eager reference", reference.sobel_magnitude, groups=SWEPT),
            Peer("eager conv3d", magnitude_conv3d, groups=MAIN),
            Peer("MONAI SobelGradients", magnitude_monai, groups=MAIN, package="monai"),
            _array_peer("scipy sobel", "scipy", magnitude_scipy, groups=("main", "sweep")),
            _array_peer("cupy sobel", "cupy", magnitude_cupy, groups=SIZES),
            _array_peer("skimage sobel", "skimage", magnitude_skimage),
            Peer("compiled slices", magnitude_slices, compiled=True, groups=SWEPT),
            Peer("compiled reference", reference.sobel_magnitude, compiled=True, groups=MAIN),
            Peer("torch avg_pool3d", call_pool, exact=False, groups=CALL),
        ],
        "voxel_gate": [
            Peer("eager reference", reference.edge_gate, groups=SWEPT),
            Peer("eager conv3d", gate_conv3d, groups=MAIN),
            Peer("compiled sum", gate_sum, compiled=True, groups=SWEPT),
            Peer("torch conv3d", call_conv3d, exact=False, groups=CALL),
        ],
        "channel_gate": [
            Peer("eager reference", reference.edge_gate, groups=SWEPT),
            Peer("eager conv3d", gate_conv3d, groups=MAIN),
            Peer("compiled matmul", gate_matmul, compiled=True, groups=SWEPT),
            Peer("compiled conv3d", gate_conv3d, compiled=True),
            Peer("autotuned matmul", gate_matmul, compiled=True, autotuned=True),
            Peer("torch conv3d", call_conv3d, exact=False, groups=CALL),
        ],
        "upsampled_voxel_gate": [
            Peer("eager reference", reference.edge_gate_upsampled, groups=MAIN),
            Peer("interpolate, edge_gate", _upsampled(ops.edge_gate)),
            Peer("compiled sum", _upsampled(gate_sum), compiled=True),
            Peer("compiled, edge_gate", _upsampled(ops.edge_gate), compiled=True, groups=MAIN),
            Peer("torch interpolate", call_interpolate, exact=False, groups=CALL),
        ],
        "upsampled_channel_gate": [
            Peer("eager reference", reference.edge_gate_upsampled, groups=MAIN),
            Peer("interpolate, edge_gate", _upsampled(ops.edge_gate)),
            Peer("compiled matmul", _upsampled(gate_matmul), compiled=True),
            Peer("compiled conv3d", _upsampled(gate_conv3d), compiled=True, groups=MAIN),
            Peer("compiled, edge_gate", _upsampled(ops.edge_gate), compiled=True, groups=MAIN),
        ],
        "gumbel_consistency": [
            Peer("eager reference", reference.gumbel_consistency, groups=("main", "sweep")),
            Peer("eager sparse", consistency_sparse),
            Peer("compiled reference", reference.gumbel_consistency, compiled=True, groups=MAIN),
            Peer("compiled sparse", consistency_sparse, compiled=True, groups=SWEPT),
            Peer("torch cross_entropy", call_cross_entropy, exact=False, groups=CALL),
        ],
        "region_sums": [
            Peer("eager reference", sums_reference, groups=SWEPT),
            Peer("compiled reference", sums_reference, compiled=True, groups=SWEPT),
            Peer("MONAI DiceCELoss", sums_monai, exact=False, groups=MAIN, package="monai"),
            Peer("torch BCE with logits", call_binary_entropy, exact=False, groups=CALL),
        ],
        "total_loss": [
            Peer("eager separate", loss_separate, groups=SIZES),
            Peer("eager reference", loss_reference, groups=MAIN),
            Peer("compiled reference", loss_reference, compiled=True, groups=MAIN),
            Peer("MONAI DiceCELoss", loss_monai, exact=False, groups=MAIN, package="monai"),
        ],
        "group_norm_relu": [
            Peer("eager torch", norm_torch),
            Peer("eager reference", reference.group_norm_relu, groups=MAIN),
            Peer("compiled torch", norm_torch, compiled=True),
            Peer("compiled channels", norm_channels, compiled=True),
            Peer("torch group_norm", call_norm, exact=False, groups=CALL),
        ],
    }.items()
}
