"""A training step can be captured in a CUDA graph: nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN, SegNet
from egcnn.ops import _backend
from egcnn.regions import BRATS

from ..cuda_on_cpu.build import ARCHITECTURE
from ..ops.conftest import load_cuda_on_cpu

#: What asks the device for a value, and what copies numbers that the host holds.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")


def make_pass(device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Forward and backward of a small EG-CNN in bf16, which gives the loss; and the parameters."""
    network = EGCNN(SegNet(4, 3, filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1))).to(device)
    loss = EGCNNLoss(BRATS)
    image = torch.randn(1, 4, 16, 16, 16, device=device)
    labels = torch.randint(0, 3, (1, 1, 16, 16, 16), device=device)

    def forward_and_backward() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            total = loss(network(image), labels)["loss"]
        total.backward()
        return total.detach()

    return forward_and_backward, list(network.parameters())


class Recorder(TorchDispatchMode):
    """Notes the operators that would wait for a GPU, or break a capture."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(function)
        by_mask = "index" in name and any(
            getattr(index, "dtype", None) == torch.bool
            for argument in args
            if isinstance(argument, list)
            for index in argument
        )
        if by_mask or any(waiting in name for waiting in WAITING):
            self.found.add(name)
        return function(*args, **(kwargs or {}))


# On CUDA the total loss is made of other kernels than on the CPU.
@pytest.mark.parametrize("kernels", ["cpu", "cuda"])
def test_nothing_waits_for_the_device(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "cuda":
        monkeypatch.setattr(_backend, "_C", load_cuda_on_cpu(ARCHITECTURE))
    assert (_backend.kernels_name("cpu") == "cuda") == (kernels == "cuda")
    forward_and_backward, _ = make_pass("cpu")
    with Recorder() as recorder:
        loss = forward_and_backward()
    assert recorder.found == set()
    with Recorder() as recorder:
        loss.item()
    assert recorder.found == {"aten._local_scalar_dense.default"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_whole_step_is_captured_and_replayed() -> None:
    forward_and_backward, parameters = make_pass("cuda")
    optimizer = torch.optim.Adam(parameters, lr=1e-3, capturable=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = forward_and_backward()
        optimizer.step()
        return loss

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = step()
    losses = []
    for _ in range(20):
        before = parameters[0].detach().clone()
        graph.replay()
        losses.append(loss.item())
        assert not torch.equal(before, parameters[0])
    assert losses[-1] < losses[0]  # it learns


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_each_replay_draws_its_own_noise() -> None:
    forward_and_backward, _ = make_pass("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_and_backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = forward_and_backward()
    losses = set()
    for _ in range(5):
        graph.replay()
        losses.add(loss.item())
    assert len(losses) == 5
