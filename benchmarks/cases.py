"""What is measured: each operator at the sizes that training has, or tiny ones.

A case knows how to draw its inputs, the fewest bytes that it has to move, and the target set for it
on an H100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peers import mixed_voxels
from torch import Tensor

from egcnn import ops
from egcnn.regions import BRATS


@dataclass
class Inputs:
    """One set: the operator's arguments, those that get a gradient, the gradient that comes in."""

    arguments: tuple[Any, ...]
    leaves: tuple[Tensor, ...] = ()
    grad: Tensor | None = None


@dataclass
class Target:
    """A share of the copy's bandwidth to reach, or microseconds to stay under."""

    share: float = 0.0
    microseconds: float = math.inf

    def __str__(self) -> str:
        return f"{self.share:.0%} of copy" if self.share else f"{self.microseconds:.0f} µs"

    def reached(self, share: float, milliseconds: float) -> bool:
        """Whether a result meets it."""
        return share >= self.share and milliseconds * 1000 <= self.microseconds


@dataclass
class Case:
    """An operator at one size: how to draw inputs, and the fewest bytes that each part moves."""

    name: str
    operator: str
    ours: Callable[..., Tensor]
    draw: Callable[[], Inputs]
    bytes: dict[str, int]
    targets: dict[str, Target] = field(default_factory=dict)
    tf32: bool = False
    autotune: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def phantom(
    batch: int, size: Sequence[int], device: torch.device
) -> tuple[Tensor, dict[str, float]]:
    """Three nested wavy bodies a volume, labels 0 to 3, so large that 2% of voxels are edges."""
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
    band = torch.nn.functional.max_pool3d(edges.to(torch.float32), 3, 1, 1)
    shares = {"edge_share": edges.float().mean().item(), "band_share": band.mean().item()}
    return labels, shares


def brats_phantom(
    batch: int, size: Sequence[int], device: torch.device
) -> tuple[Tensor, dict[str, float]]:
    """The same with BraTS's labels: oedema around a core around enhancing tumour."""
    labels, shares = phantom(batch, size, device)
    return torch.tensor([0, 2, 1, 4], dtype=torch.uint8, device=device)[labels.long()], shares


def edge_case(device: torch.device, quick: bool, kind: str) -> Case:
    """Sobel edges of ready-made masks, of a label map, of masks in which no row is empty."""
    batch, size = (2, (12, 20, 18)) if quick else (8, (155, 240, 240))
    labels, shares = brats_phantom(batch, size, device)
    voxels = labels.numel()

    def draw() -> Inputs:
        if kind == "labels":
            return Inputs((labels.clone(), BRATS.labels))
        if kind == "random masks":
            shape = (batch, 3, *size)
            return Inputs((torch.randint(0, 2, shape, dtype=torch.uint8, device=device),))
        return Inputs((BRATS.masks(labels),))

    return Case(
        name=f"Sobel edges, {kind} {shape_name(batch, 1 if kind == 'labels' else 3, *size)}",
        operator="sobel_edges",
        ours=ops.sobel_edges,
        draw=draw,
        bytes={"forward": voxels * (4 if kind == "labels" else 6)},
        targets={"forward": Target(share=0.8)} if kind == "masks" else {},
        facts={} if kind == "random masks" else shares,
    )


def magnitude_case(device: torch.device, quick: bool) -> Case:
    """The differentiable Sobel magnitude."""
    shape = (1, 2, 9, 11, 13) if quick else (8, 4, 160, 192, 128)

    def draw() -> Inputs:
        x = torch.randn(shape, device=device).requires_grad_()
        return Inputs((x,), (x,), torch.randn(shape, device=device))

    nbytes = 4 * math.prod(shape)
    return Case(
        name=f"Sobel magnitude fp32 {shape_name(*shape)}",
        operator="sobel_magnitude",
        ours=ops.sobel_magnitude,
        draw=draw,
        bytes={"forward": 2 * nbytes, "backward": 3 * nbytes, "both": 5 * nbytes},
    )


def gate_case(
    device: torch.device,
    quick: bool,
    gate: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
    tf32: bool = False,
) -> Case:
    """The edge gate with 32 channels in both streams."""
    batch, channels, *size = (2, 8, 5, 6, 7) if quick else (8, 32, 160, 192, 128)
    if device.type == "cuda":
        # Six tensors of this size are ours; eager peers hold as many again.
        memory = torch.cuda.get_device_properties(0).total_memory
        while batch > 1 and 16 * batch * channels * math.prod(size) * dtype.itemsize > memory:
            batch //= 2
    shape = (batch, channels, *size)
    gates = 1 if gate == "voxel" else channels

    def draw() -> Inputs:
        e, m, grad = (
            torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format).normal_()
            for _ in range(3)
        )
        weights = [torch.randn(gates, channels, device=device) * 0.1 for _ in range(2)]
        weights.append(torch.randn(gates, device=device) * 0.1)
        leaves = tuple(tensor.requires_grad_() for tensor in (e, m, *weights))
        return Inputs(leaves, leaves, grad)

    nbytes = math.prod(shape) * dtype.itemsize
    half = dtype == torch.bfloat16
    target = Target(share=0.8 if gate == "voxel" else 0.7)
    type_name = "bf16" if half else "tf32" if tf32 else "fp32"
    layout = "" if memory_format == torch.contiguous_format else " channels_last_3d"
    return Case(
        name=f"{gate} gate {type_name}{layout} {shape_name(*shape)}",
        operator=f"{gate}_gate",
        ours=ops.edge_gate,
        draw=draw,
        bytes={"forward": 3 * nbytes, "backward": 5 * nbytes, "both": 8 * nbytes},
        targets={"forward": target, "backward": target} if half else {},
        tf32=tf32,
        autotune=gate == "channel" and half and not layout,
    )


def consistency_case(device: torch.device, quick: bool) -> Case:
    """The consistency loss of four classes, 2% of the voxels on edges."""
    batch, channels, *size = (2, 4, 16, 16, 16) if quick else (8, 4, 160, 192, 128)
    labels, shares = phantom(batch, size, device)

    def draw() -> Inputs:
        logits = torch.randn(batch, channels, *size, device=device).requires_grad_()
        seed = torch.randint(0, 2**62, (), device=device)
        grad = torch.ones((), device=device)
        return Inputs((logits, labels.clone(), seed), (logits,), grad)

    # The labels are read, of the logits only the band around edges; the gradient is dense.
    read = labels.numel() + int(shares["band_share"] * labels.numel()) * channels * 4
    written = labels.numel() * channels * 4
    return Case(
        name=f"consistency fp32 {shape_name(batch, channels, *size)}",
        operator="gumbel_consistency",
        ours=lambda logits, target, seed: ops.gumbel_consistency(logits, target, seed=seed),
        draw=draw,
        bytes={"forward": read, "backward": read + written, "both": 2 * read + written},
        targets={"forward": Target(microseconds=45), "both": Target(microseconds=230)},
        facts=shares,
    )


def shape_name(*shape: int) -> str:
    """Such as 8x3x155x240x240."""
    return "x".join(map(str, shape))


def all_cases(device: torch.device, quick: bool) -> list[Callable[[], Case]]:
    """Every case, the most telling ones first, each made when its turn comes."""
    last = torch.channels_last_3d
    edges, gate = partial(edge_case, device, quick), partial(gate_case, device, quick)
    return [
        partial(edges, "masks"),
        partial(gate, "voxel", torch.bfloat16),
        partial(gate, "channel", torch.bfloat16),
        partial(consistency_case, device, quick),
        partial(edges, "labels"),
        partial(edges, "random masks"),
        partial(magnitude_case, device, quick),
        partial(gate, "voxel", torch.float32),
        partial(gate, "channel", torch.float32),
        partial(gate, "channel", torch.float32, tf32=True),
        partial(gate, "voxel", torch.bfloat16, last),
        partial(gate, "channel", torch.bfloat16, last),
        partial(gate, "voxel", torch.float32, last),
        partial(gate, "channel", torch.float32, last),
    ]
