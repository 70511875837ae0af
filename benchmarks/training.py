"""A training step of EG-CNN around Seg-Net: with the fused operators, with the reference, and
without the edge stream; eager and compiled; with a profile. Beside them the edge stream's own
convolutions, which no fusion removes."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import brats_phantom, shape_name
from benchmarks.clocks import Clock
from benchmarks.measuring import Row
from egcnn import ops
from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN, SegNet
from egcnn.nn.blocks import Conv3x3x3
from egcnn.regions import BRATS


@dataclass(frozen=True)
class Training:
    """Which network is trained, and with which implementation."""

    name: str
    edge: bool = True
    fused: bool = True
    compiled: bool = False
    convolutions: bool = False  # only those of the edge stream, 3x3x3, forward and backward


TRAININGS = (
    Training("egcnn"),
    Training("reference", fused=False),
    Training("backbone alone", edge=False),
    Training("edge stream's convolutions", convolutions=True),
    Training("egcnn, compiled", compiled=True),
    Training("reference, compiled", fused=False, compiled=True),
    Training("backbone alone, compiled", edge=False, compiled=True),
)


class TrainingRun:
    """A training step that all trainings share.

    Args:
        clock: the clock of the device.
        shape: batch, and voxels along each axis.
        filters: filters of Seg-Net.
        dtype: float32, or autocast to bfloat16.
        backend: backend of torch.compile.
        shallow: three resolutions of one block each instead of the paper's ten blocks on four,
            which take minutes to compile on two cores.
    """

    def __init__(
        self,
        clock: Clock,
        shape: Sequence[int],
        filters: int,
        dtype: torch.dtype = torch.bfloat16,
        backend: str = "inductor",
        shallow: bool = False,
    ) -> None:
        self.clock, self.dtype, self.backend, self.shallow = clock, dtype, backend, shallow
        self.options: dict[str, Any] = {"filters": filters}
        if shallow:
            self.options |= {"blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
        batch, *patch = shape
        self.labels = brats_phantom(batch, patch, clock.device)
        torch.manual_seed(0)
        image = torch.randn(batch, 4, *patch, device=clock.device)
        self.image = image.contiguous(memory_format=torch.channels_last_3d)
        type_name = "bf16" if dtype == torch.bfloat16 else "fp32"
        depth = ", shallow" if shallow else ""
        self.name = f"training step {type_name} {shape_name(*shape)}, {filters} filters{depth}"

    @contextlib.contextmanager
    def step(self, training: Training) -> Iterator[Callable[[], Tensor]]:
        """Yields a function that takes one step and returns its loss without synchronizing."""
        torch.manual_seed(0)
        device = self.clock.device
        backbone = SegNet(4, 3, **self.options)
        network = (EGCNN(backbone) if training.edge else backbone).to(device)
        network = network.to(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)  # as egcnn.training
        loss = EGCNNLoss(BRATS)

        def forward(image: Tensor, labels: Tensor) -> Tensor:
            segmentation = network(image) if training.edge else (network(image), None)
            return loss(segmentation, labels, 1)["loss"]

        if training.compiled:
            forward = torch.compile(forward, backend=self.backend, dynamic=False)

        def step() -> Tensor:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, self.dtype == torch.bfloat16):
                total = forward(self.image, self.labels)
            total.backward()
            optimizer.step()
            return total.detach()

        with contextlib.nullcontext() if training.fused else ops.use_reference():
            yield self._convolutions(network, step) if training.convolutions else step
        torch._dynamo.reset()
        self.clock.clear()

    def _convolutions(self, network: Any, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that runs the edge stream's 3x3x3 convolutions, forward and backward, on a
        step's inputs."""
        found: list[tuple[nn.Module, Tensor, Tensor]] = []

        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            image = inputs[0].detach().clone().requires_grad_()  # a ReLU's gradient reuses memory
            found.append((module, image, torch.randn_like(output)))

        modules = [m for m in network.edge_stream.modules() if isinstance(m, Conv3x3x3)]
        hooks = [module.register_forward_hook(keep) for module in modules]
        step()
        for hook in hooks:
            hook.remove()
        precision = (self.clock.device.type, torch.bfloat16, self.dtype == torch.bfloat16)

        def convolutions() -> Tensor:
            for module, image, gradient in found:
                with torch.autocast(*precision):
                    output = module(image)
                torch.autograd.grad(output, (image, module.weight), gradient)
            return output.detach()

        return convolutions

    def measure(self, training: Training) -> tuple[Row, list[Row], list[float]]:
        """A row of time and memory, a profile, and the seconds of each step."""
        with self.step(training) as step:
            first = step()
            times = self.clock.times(lambda turn: step)
            low, median, high = statistics.quantiles(times, n=4)
            row: Row = {
                "group": "training",
                "operator": "training_step",
                "case": self.name,
                "provider": training.name,
                "what": "step",
                "voxels": self.labels.numel(),
                **({} if training.convolutions else {"first_loss": first.item()}),
                "ms": median * 1e3,
                "low_ms": low * 1e3,
                "high_ms": high * 1e3,
                "runs": len(times),
                "peak_mb": self.clock.peak_bytes(step) / 1e6,
            }
            return row, profiled(step, self.clock.device), times


def profiled(step: Callable[[], Any], device: torch.device, count: int = 12) -> list[Row]:
    """The operators with the largest self time in a step."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        step()
    times = [
        (e.self_device_time_total if cuda else e.self_cpu_time_total, e.key, e.count)
        for e in profiler.key_averages()
    ]
    total = sum(time for time, *_ in times)
    return [
        {"operator": key, "ms": time / 1e3, "share": time / total, "calls": calls}
        for time, key, calls in sorted(times, reverse=True)[:count]
    ]
