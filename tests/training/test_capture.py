"""A training step can be captured in a CUDA graph: nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN, SegNet
from egcnn.ops import _backend
from egcnn.regions import BRATS


def make_step(device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A step of a small EG-CNN in bf16, which returns the loss, and the parameters."""
    with torch.device(device):
        network = EGCNN(SegNet(4, 3, filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1)))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, capturable=device == "cuda")
    loss = EGCNNLoss(BRATS)
    image = torch.randn(1, 4, 16, 16, 16, device=device)
    labels = torch.randint(0, 3, (1, 1, 16, 16, 16), device=device)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            total = loss(network(image), labels, 1)["loss"]
        total.backward()
        optimizer.step()
        return total.detach()

    return step, list(network.parameters())


class NoCopies(TorchDispatchMode):
    """Fails where a tensor travels between the host and the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        before = {a.device.type for a in args if isinstance(a, Tensor) and a.dim() > 0}
        after = {result.device.type} if isinstance(result, Tensor) else set()
        assert len(before | after) < 2, f"{function} copies between {before | after}"
        return result


def test_nothing_in_a_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of a made-up GPU, which have no values that the host could ask for."""
    monkeypatch.setattr(_backend, "_why_not_native", lambda *device: "")
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, _ = make_step("cuda")
        with NoCopies():
            step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_whole_step_is_captured_and_replayed() -> None:
    step, parameters = make_step("cuda")
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
    assert len(set(losses)) == len(losses)  # each replay draws its own noise
