from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from egcnn.nn import BACKBONES
from egcnn.nn.backbone import BackboneSettings
from egcnn.nn.blocks import ChannelDropout, dropout_seeds
from egcnn.nn.network import NetworkSettings, build_network
from egcnn.nn.recomputation import recompute_stages


def trained(network: torch.nn.Module, x: Tensor) -> tuple[list[Tensor], int]:
    """Gradients, and the bytes that backward keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, edges = network(x)
        size = sum(kept.values())
        (logits.square().mean() + edges.square().mean()).backward()
    return [weight.grad for weight in network.parameters() if weight.grad is not None], size


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recomputed_stages_have_the_same_gradients_in_less_memory(backbone: str) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkSettings(BackboneSettings(name=backbone, filters=4)), 2, 3)
    other = copy.deepcopy(network)
    recompute_stages(other)
    assert list(other.state_dict()) == list(network.state_dict())
    x = torch.randn(2, 2, 16, 17, 16)
    (expected, all_), (found, kept) = trained(network, x), trained(other, x)
    assert kept < 0.7 * all_
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_dropout_follows_the_sample() -> None:
    torch.manual_seed(0)
    dropout = ChannelDropout(0.3)
    x, seeds = torch.rand(5, 64, 2, 3, 2) + 1, torch.tensor([3, 7, 2**62 + 5, 7, 0])
    with dropout_seeds(seeds):
        y = dropout(x)
    with dropout_seeds(seeds[1:2]):
        torch.testing.assert_close(dropout(x[1:2]), y[1:2], rtol=0, atol=0)
    dropped = (y == 0).all((2, 3, 4))
    assert torch.equal(dropped[1], dropped[3])
    assert not torch.equal(dropped[0], dropped[1])
    assert 0.15 < dropped.float().mean() < 0.45
    kept = ~dropped[..., None, None, None].expand_as(x)
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    assert not torch.equal(dropout(x), dropout(x))  # torch's generator
    assert dropout.eval()(x) is x
