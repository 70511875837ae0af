"""The benchmark cases: each operator at training sizes, or at tiny ones.

A case defines its inputs, the minimum number of bytes it must move, its peers, and its target on an
H100. ``bench_*.py`` and ``gpu.py`` measure these.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import PEERS, Peer, mixed_voxels
from egcnn import ops
from egcnn.losses import EGCNNLoss
from egcnn.regions import BRATS

#: Real label maps, which are not part of the project.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last_3d
TYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.uint8: "uint8"}


@dataclass
class Inputs:
    """Inputs: the operator's arguments, those that need a gradient, the incoming gradient."""

    arguments: tuple[Any, ...]
    leaves: tuple[Tensor, ...] = ()
    grad: Tensor | None = None


@dataclass
class Plan:
    """How to draw a set of inputs, and the minimum number of bytes of each part.

    ``facts`` are stored with the results, such as the fraction of edge voxels.
    """

    draw: Callable[[], Inputs]
    bytes: dict[str, int]
    facts: dict[str, float] = field(default_factory=dict)


@dataclass
class Target:
    """A fraction of the copy's bandwidth to reach, or an upper limit in microseconds."""

    share: float = 0.0
    microseconds: float = math.inf

    def __str__(self) -> str:
        return f"{self.share:.0%} of copy" if self.share else f"{self.microseconds:.0f} µs"

    def reached(self, share: float, milliseconds: float) -> bool:
        """Whether a result meets the target."""
        return share >= self.share and milliseconds * 1000 <= self.microseconds


@dataclass(eq=False)
class Case:
    """An operator at one size.

    Attributes:
        name: display name in tables.
        operator: a key of :data:`benchmarks.peers.PEERS`.
        ours: takes the operator's arguments.
        voxels: voxels per channel, over the batch.
        parts: some of forward, backward and both.
        plan: creates the plan when the case is run.
        group: purpose of the case: ``"main"`` (training sizes, also measured without memory reuse),
            ``"size"``, ``"real"`` (masks), ``"cliff"`` (only ours, at shapes and types where others
            slow down), ``"sweep"`` (from small to large), ``"call"`` (call overhead).
        peers: other implementations.
        bound: bandwidth that sets the floor, ``"copy"`` or ``"triad"``.
        targets: targets by part.
        beside: case whose time per byte this one's is compared with; both are measured alternately.
        tf32: float32 products may be rounded.
        autotune: whether to include autotuned peers, which take long to compile.
    """

    name: str
    operator: str
    ours: Callable[..., Tensor]
    voxels: int
    parts: tuple[str, ...]
    plan: Callable[[], Plan]
    group: str = "main"
    peers: Sequence[Peer] = ()
    bound: str = "copy"
    targets: dict[str, Target] = field(default_factory=dict)
    beside: Case | None = None
    tf32: bool = False
    autotune: bool = False


def peers_of(operator: str, group: str) -> list[Peer]:
    """The peers that are measured in a group of cases."""
    return [peer for peer in PEERS[operator] if group in peer.groups]


def parts_of(group: str) -> tuple[str, ...]:
    """The parts measured of a differentiable operator."""
    return ("both",) if group == "sweep" else ("forward", "backward", "both")


@functools.lru_cache(maxsize=4)
def phantom(batch: int, size: Sequence[int], device: torch.device) -> Tensor:
    """Three nested wavy bodies per volume, labels 0 to 3, so large that 2% of voxels are edges."""
    generator = torch.Generator().manual_seed(0)
    axes = [(torch.arange(n, device=device) - n / 2) / min(size) * 2 for n in size]
    distances = []
    for _ in range(batch):
        draw = torch.rand(3, 3, generator=generator).tolist()
        distance: Tensor | float = 0.0
        waves: Tensor | float = 0.0
        for dim, (axis, (centre, stretch, phase)) in enumerate(zip(axes, draw, strict=True)):
            coordinate = axis.view([-1 if d == dim else 1 for d in range(3)])
            distance = distance + ((coordinate - 0.3 * (centre - 0.5)) / (0.8 + 0.4 * stretch)) ** 2
            waves = waves + (9 * coordinate + 6 * phase).sin()
        distances.append(torch.as_tensor(distance).sqrt() + 0.02 * waves)
    distance = torch.stack(distances)[:, None]

    shells = torch.tensor([1.0, 0.7, 0.4], device=device).view(-1, 1, 1, 1)
    low, high = 0.0, 1.0
    for _ in range(12):
        radius = (low + high) / 2
        labels = (distance < radius * shells).sum(1, keepdim=True).to(torch.uint8)
        edges = mixed_voxels(labels)
        low, high = (radius, high) if edges.float().mean() < 0.02 else (low, radius)
    return labels


def edge_shares(labels: Tensor) -> dict[str, float]:
    """The fractions of voxels that are edges and that are in the band around them."""
    edges = mixed_voxels(labels).to(torch.float32)
    band = F.max_pool3d(edges, 3, 1, 1)
    return {"edge_share": edges.mean().item(), "band_share": band.mean().item()}


def brats_phantom(batch: int, size: Sequence[int], device: torch.device) -> Tensor:
    """The same with BraTS's labels: oedema around a core around enhancing tumour."""
    labels = phantom(batch, tuple(size), device)
    return torch.tensor([0, 2, 1, 4], dtype=torch.uint8, device=device)[labels.long()]


@functools.lru_cache(maxsize=1)
def cube(edge: int, device: torch.device) -> Tensor:
    """A phantom of any size, quickly: one of 64 voxels per axis, stretched or cropped."""
    labels = phantom(1, (64, 64, 64), device)
    if edge > 64:
        labels = F.interpolate(labels, size=(edge,) * 3)
    middle = (slice((labels.shape[2] - edge) // 2, (labels.shape[2] + edge) // 2),) * 3
    return labels[(..., *middle)].contiguous()


# --- Sobel edges and magnitude -------------------------------------------------------------------


def edge_case(
    device: torch.device,
    shape: Sequence[int],
    kind: str,
    *,
    group: str = "main",
    labels: Callable[[], Tensor] | None = None,
    regions: Sequence[Sequence[int]] = BRATS.labels,
    dtype: torch.dtype = torch.uint8,
    memory_format: torch.memory_format = CONTIGUOUS,
) -> Case:
    """Sobel edges of masks, of a label map, or of masks in which no row is empty.

    ``shape`` is that of the edges, ``labels`` gives the label map, BraTS's phantom by default.
    """
    batch, channels, *size = shape
    voxels = batch * math.prod(size)

    def plan() -> Plan:
        if kind == "random masks":
            drawn = torch.randint(0, 2, tuple(shape), device=device).to(dtype)
        else:
            drawn = (labels or partial(brats_phantom, batch, size, device))()
        facts = edge_shares(drawn) if group in ("main", "real") else {}
        if kind == "masks":
            drawn = torch.cat([torch.isin(drawn, drawn.new_tensor(r)) for r in regions], 1)
            drawn = drawn.to(dtype, memory_format=memory_format)
        extra = (regions,) if "labels" in kind else ()
        moved = voxels * (channels + drawn.shape[1] * drawn.dtype.itemsize)
        return Plan(lambda: Inputs((drawn.clone(), *extra)), {"forward": moved}, facts)

    shown = shape_name(batch, 1, *size) if "labels" in kind else shape_name(*shape)
    return Case(
        name=f"Sobel edges, {kind}{describe_type(dtype, memory_format)} {shown}",
        operator="sobel_edges",
        ours=ops.sobel_edges,
        voxels=voxels,
        parts=("forward",),
        plan=plan,
        group=group,
        peers=peers_of("sobel_edges", group if kind == "masks" else "size"),
        targets={"forward": Target(share=0.8)} if kind == "masks" and group == "main" else {},
    )


def magnitude_case(
    device: torch.device,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CONTIGUOUS,
    group: str = "main",
) -> Case:
    """The differentiable Sobel magnitude."""

    def plan() -> Plan:
        def draw() -> Inputs:
            x, grad = (normal(shape, device, dtype, memory_format) for _ in range(2))
            return Inputs((x.requires_grad_(),), (x,), grad)

        nbytes = math.prod(shape) * dtype.itemsize
        return Plan(draw, {"forward": 2 * nbytes, "backward": 3 * nbytes, "both": 5 * nbytes})

    return Case(
        name=f"Sobel magnitude{describe_type(dtype, memory_format)} {shape_name(*shape)}",
        operator="sobel_magnitude",
        ours=ops.sobel_magnitude,
        voxels=shape[0] * math.prod(shape[2:]),
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of("sobel_magnitude", group),
    )


# --- Edge gate -----------------------------------------------------------------------------------


def gate_case(
    device: torch.device,
    shape: Sequence[int],
    gate: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format = CONTIGUOUS,
    *,
    tf32: bool = False,
    group: str = "main",
) -> Case:
    """The edge gate, with as many channels in the main stream as in the edge stream."""
    batch, channels, *size = shape
    if device.type == "cuda":
        # Ours holds six tensors of this size; eager peers hold six more.
        memory = torch.cuda.get_device_properties(0).total_memory
        while batch > 1 and 16 * batch * channels * math.prod(size) * dtype.itemsize > memory:
            batch //= 2
    shape = (batch, channels, *size)
    gates = 1 if gate == "voxel" else channels

    def plan() -> Plan:
        def draw() -> Inputs:
            e, m, grad = (normal(shape, device, dtype, memory_format) for _ in range(3))
            weights = [torch.randn(gates, channels, device=device) * 0.1 for _ in range(2)]
            weights.append(torch.randn(gates, device=device) * 0.1)
            leaves = tuple(tensor.requires_grad_() for tensor in (e, m, *weights))
            return Inputs(leaves, leaves, grad)

        nbytes = math.prod(shape) * dtype.itemsize
        return Plan(draw, {"forward": 3 * nbytes, "backward": 5 * nbytes, "both": 8 * nbytes})

    half = dtype == torch.bfloat16
    target = Target(share=0.8 if gate == "voxel" else 0.7)
    type_name = " tf32" if tf32 else describe_type(dtype, memory_format)
    return Case(
        name=f"{gate} gate{type_name} {shape_name(*shape)}",
        operator=f"{gate}_gate",
        ours=ops.edge_gate,
        voxels=batch * math.prod(size),
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of(f"{gate}_gate", group),
        bound="triad" if device.type == "cpu" else "copy",  # the CUDA targets were set for this
        targets={"forward": target, "backward": target} if half else {},
        tf32=tf32,
        autotune=device.type == "cuda" and gate == "channel" and half and memory_format != LAST,
    )


def upsampled_case(
    device: torch.device,
    shape: Sequence[int],
    gate: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format = CONTIGUOUS,
    *,
    group: str = "main",
) -> Case:
    """The edge gate of an edge stream at half the resolution; ``shape`` is that of the output."""
    batch, channels, *size = shape
    coarse = [(n + 1) // 2 for n in size]
    gates = 1 if gate == "voxel" else channels

    def plan() -> Plan:
        def draw() -> Inputs:
            e = normal((batch, channels, *coarse), device, dtype, memory_format)
            m, grad = (normal(shape, device, dtype, memory_format) for _ in range(2))
            weights = [torch.randn(gates, channels, device=device) * 0.1 for _ in range(2)]
            weights.append(torch.randn(gates, device=device) * 0.1)
            leaves = tuple(tensor.requires_grad_() for tensor in (e, m, *weights))
            return Inputs(leaves, leaves, grad)

        fine = math.prod(shape) * dtype.itemsize
        small = batch * channels * math.prod(coarse) * dtype.itemsize
        forward, backward = 2 * fine + small, 3 * fine + 2 * small
        moved = {"forward": forward, "backward": backward, "both": forward + backward}
        return Plan(draw, moved)

    return Case(
        name=f"upsampled {gate} gate{describe_type(dtype, memory_format)} {shape_name(*shape)}",
        operator=f"upsampled_{gate}_gate",
        ours=ops.edge_gate_upsampled,
        voxels=batch * math.prod(size),
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of(f"upsampled_{gate}_gate", group),
        bound="triad" if device.type == "cpu" else "copy",
    )


# --- Gumbel-softmax consistency ------------------------------------------------------------------


def consistency_case(
    device: torch.device,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CONTIGUOUS,
    *,
    group: str = "main",
    labels: Callable[[], Tensor] | None = None,
    label: str = "",
) -> Case:
    """The consistency loss of so many classes, by default with 2% of the voxels on edges."""
    batch, channels, *size = shape
    voxels = batch * math.prod(size)

    def plan() -> Plan:
        target = (labels or partial(phantom, batch, tuple(size), device))()
        shares = edge_shares(target)

        def draw() -> Inputs:
            logits = normal(shape, device, dtype, memory_format).requires_grad_()
            seed = torch.randint(0, 2**62, (), device=device)
            grad = torch.ones((), device=device)
            return Inputs((logits, target.clone(), seed), (logits,), grad)

        # The labels are read completely, the logits only in the band around edges; the gradient is
        # dense.
        written = voxels * channels * dtype.itemsize
        read = target.nbytes + int(shares["band_share"] * written)
        moved = {"forward": read, "backward": read + written, "both": 2 * read + written}
        return Plan(draw, moved, shares)

    return Case(
        name=f"consistency{label}{describe_type(dtype, memory_format)} {shape_name(*shape)}",
        operator="gumbel_consistency",
        ours=lambda logits, target, seed: ops.gumbel_consistency(logits, target, seed=seed),
        voxels=voxels,
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of("gumbel_consistency", group),
        targets={"forward": Target(microseconds=45), "both": Target(microseconds=230)}
        if group == "main"
        else {},
    )


# --- Sums of the Dice and edge losses ------------------------------------------------------------


def sums_case(
    device: torch.device,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CONTIGUOUS,
    *,
    group: str = "main",
) -> Case:
    """The sums of the edge loss, cross entropies included, of edges that are 2% of the voxels."""
    batch, channels, *size = shape

    def plan() -> Plan:
        edges = ops.sobel_edges(phantom(batch, tuple(size), device), [(1, 2, 3)] * channels)
        edges = edges.contiguous(memory_format=memory_format)

        def draw() -> Inputs:
            logits = normal(shape, device, dtype, memory_format).requires_grad_()
            grad = torch.randn(batch, channels, 5, device=device)
            return Inputs((logits, edges.clone()), (logits,), grad)

        read = edges.nbytes * (1 + dtype.itemsize)
        written = edges.nbytes * dtype.itemsize
        moved = {"forward": read, "backward": read + written, "both": 2 * read + written}
        return Plan(draw, moved)

    return Case(
        name=f"sums of the losses{describe_type(dtype, memory_format)} {shape_name(*shape)}",
        operator="region_sums",
        ours=partial(ops.region_sums, activation="sigmoid", entropy=True),
        voxels=batch * math.prod(size),
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of("region_sums", group),
    )


# --- The total loss ------------------------------------------------------------------------------


def loss_case(
    device: torch.device,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CONTIGUOUS,
    *,
    group: str = "main",
) -> Case:
    """The total loss of BraTS's three nested regions, of which 2% of the voxels are edges."""
    batch, _, *size = shape
    loss = EGCNNLoss(BRATS)

    def plan() -> Plan:
        labels = brats_phantom(batch, tuple(size), device)

        def draw() -> Inputs:
            logits, edge_logits = (
                normal(shape, device, dtype, memory_format).requires_grad_() for _ in range(2)
            )
            seed = torch.randint(0, 2**62, (), device=device)
            grad = torch.ones((), device=device)
            return Inputs((logits, edge_logits, labels, seed), (logits, edge_logits), grad)

        nbytes = 2 * math.prod(shape) * dtype.itemsize
        read = nbytes + labels.nbytes
        moved = {"forward": read, "backward": read + nbytes, "both": 2 * read + nbytes}
        return Plan(draw, moved)

    return Case(
        name=f"total loss{describe_type(dtype, memory_format)} {shape_name(*shape)}",
        operator="total_loss",
        ours=lambda logits, edges, labels, seed: loss((logits, edges), labels, seed)["loss"],
        voxels=batch * math.prod(size),
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of("total_loss", group),
    )


# --- GroupNorm with ReLU -------------------------------------------------------------------------


def norm_case(
    device: torch.device,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CONTIGUOUS,
    group: str = "main",
) -> Case:
    """GroupNorm with ReLU in eight groups."""

    def plan() -> Plan:
        def draw() -> Inputs:
            x, grad = (normal(shape, device, dtype, memory_format) for _ in range(2))
            weight, bias = (torch.randn(shape[1], device=device) for _ in range(2))
            leaves = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
            return Inputs((x, 8, weight, bias), leaves, grad)

        # The moments, and the sums of the gradient, need a read of their own.
        nbytes = math.prod(shape) * dtype.itemsize
        return Plan(draw, {"forward": 3 * nbytes, "backward": 5 * nbytes, "both": 8 * nbytes})

    return Case(
        name=f"norm{describe_type(dtype, memory_format)} {shape_name(*shape)}",
        operator="group_norm_relu",
        ours=ops.group_norm_relu,
        voxels=shape[0] * math.prod(shape[2:]),
        parts=parts_of(group),
        plan=plan,
        group=group,
        peers=peers_of("group_norm_relu", group),
    )


# --- What they share -----------------------------------------------------------------------------


def normal(
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    """Normally distributed numbers in any type and layout."""
    return torch.empty(
        tuple(shape), dtype=dtype, device=device, memory_format=memory_format
    ).normal_()


def describe_type(dtype: torch.dtype, memory_format: torch.memory_format) -> str:
    """For example `` bf16 channels_last_3d``; empty for contiguous bytes."""
    name = "" if dtype == torch.uint8 else f" {TYPE_NAMES[dtype]}"
    return name if memory_format == CONTIGUOUS else f"{name} channels_last_3d"


def shape_name(*shape: int) -> str:
    """For example 8x3x155x240x240."""
    return "x".join(map(str, shape))


# --- Which are measured --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The shapes of the main cases, those of a small patch, and the edges of the swept cubes."""

    edges: tuple[int, ...]
    magnitude: tuple[int, ...]
    gate: tuple[int, ...]
    consistency: tuple[int, ...]
    norm: tuple[int, ...]
    sums: tuple[int, ...]
    patch: tuple[int, ...]
    batch: tuple[int, ...]
    sweep: tuple[int, ...]

    def cubes(self, largest: int) -> list[int]:
        return [edge for edge in self.sweep if edge <= largest]


QUICK = Sizes(
    edges=(2, 3, 12, 20, 18),
    magnitude=(1, 2, 9, 11, 13),
    gate=(2, 8, 5, 6, 7),
    norm=(2, 8, 5, 6, 7),
    consistency=(2, 4, 16, 16, 16),
    sums=(2, 3, 16, 16, 16),
    patch=(8, 8, 8),
    batch=(2, 9, 8, 7),
    sweep=(1, 8),
)
CPU = Sizes(
    edges=(1, 3, 155, 240, 240),
    magnitude=(1, 4, 160, 192, 128),
    norm=(1, 32, 80, 96, 64),
    gate=(1, 32, 80, 96, 64),
    consistency=(1, 4, 160, 192, 128),
    sums=(1, 3, 160, 192, 128),
    patch=(32, 32, 32),
    batch=(4, 96, 96, 96),
    sweep=(1, 8, 16, 32, 64, 128, 160, 256, 384, 512),
)
CUDA = Sizes(
    edges=(8, 3, 155, 240, 240),
    norm=(8, 32, 160, 192, 128),
    magnitude=(8, 4, 160, 192, 128),
    gate=(8, 32, 160, 192, 128),
    consistency=(8, 4, 160, 192, 128),
    sums=(8, 3, 160, 192, 128),
    patch=(64, 64, 64),
    batch=(16, 128, 128, 128),
    sweep=(1, 8, 16, 32, 64, 128, 160, 256, 384, 512),
)


def sizes(device: torch.device, quick: bool) -> Sizes:
    """The sizes for a device."""
    return QUICK if quick else CUDA if device.type == "cuda" else CPU


def odd(shape: Sequence[int]) -> tuple[int, ...]:
    """About the same size, with odd extents."""
    return (*shape[:2], *(n - 1 + n % 2 for n in shape[2:-1]), shape[-1] + 1 - shape[-1] % 2)


def eightfold(shape: Sequence[int]) -> tuple[int, ...]:
    """A batch of eight with about as many voxels in total."""
    return (8 * shape[0], shape[1], *((n + 1) // 2 for n in shape[2:]))


def cliff_cases(
    make: Callable[..., Case], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[Case]:
    """Ours in bf16, in ``channels_last_3d``, at odd sizes, as a batch of eight, each compared with
    contiguous ``dtype`` at ``shape``: the time per byte must not jump."""
    make = partial(make, group="cliff")
    nice = make(shape, dtype=dtype)
    cases = [
        make(shape, dtype=torch.bfloat16),
        make(shape, dtype=dtype, memory_format=LAST),
        *(make(change(shape), dtype=dtype) for change in (odd, eightfold)),
    ]
    return [replace(case, beside=nice) for case in cases]


def real_labels(path: Path, device: torch.device) -> Tensor:
    """A label map ``(1, 1, D, H, W)`` from a NIfTI file."""
    import nibabel

    array = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)[None, None]


def real_files() -> dict[str, tuple[Path, tuple[int, ...]]]:
    """A file of each kind of real masks and its size, if they are on this machine."""
    import nibabel

    names = {
        "KiTS19": "kits19_masks/data/case_00108/segmentation.nii.gz",
        "hippocampus": "hippocampus/labelsTr/hippocampus_001.nii.gz",
    }
    paths = {name: DATA / file for name, file in names.items() if (DATA / file).is_file()}
    return {name: (path, nibabel.load(path).shape) for name, path in paths.items()}
