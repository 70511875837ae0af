"""Forward-mode differentiation and torch.func: as documented in egcnn.ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from egcnn import ops

SIZE = (1, 2, 2, 3, 4)
TARGET = torch.tensor([0, 1, 1, 0]).expand(1, 1, 2, 3, 4).contiguous()
M = torch.linspace(-2, 2, 2 * 3 * 5 * 7, dtype=torch.float64).view(1, 2, 3, 5, 7)
WEIGHTS = (
    torch.linspace(-1, 1, 4).view(2, 2).double(),
    torch.eye(2).double(),
    torch.ones(2).double(),
)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sobel_magnitude": ops.sobel_magnitude,
    "edge_gate": lambda x: ops.edge_gate(x, x.sin(), *WEIGHTS),
    "edge_gate_upsampled": lambda x: ops.edge_gate_upsampled(x, M, *WEIGHTS),
    "group_norm_relu": lambda x: ops.group_norm_relu(x, 1, WEIGHTS[2], WEIGHTS[2]),
    "region_sums": lambda x: ops.region_sums(x, TARGET.expand(SIZE), activation="softmax"),
    "loss_sums": lambda x: torch.cat(
        [
            each.flatten()
            for each in ops.loss_sums(
                x, x.cos(), TARGET, [(0,), (1,)], activation="softmax", hard=False, seed=1
            )
        ]
    ),
    "gumbel_consistency": lambda x: ops.gumbel_consistency(x, TARGET, hard=False, seed=1),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SIZE, dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_agree_with_the_kernels_gradient(name: str, x: Tensor) -> None:
    function = FUNCTIONS[name]
    direction = torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf).sum(), leaf)

    value, tangent = jvp(function, (x,), (direction,))
    torch.testing.assert_close(value, function(x))
    torch.testing.assert_close(tangent.sum(), (expected * direction).sum())
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)

    torch.testing.assert_close(grad(lambda z: function(z).sum())(x), expected)
    assert torch.allclose(jacfwd(function)(x), jacrev(function)(x))
    two = torch.stack([x, direction])
    torch.testing.assert_close(vmap(function)(two), torch.stack([function(x), function(direction)]))


def test_second_derivatives_by_transforms(x: Tensor) -> None:
    def loss(z: Tensor) -> Tensor:
        return ops.edge_gate(z, z.sin(), *WEIGHTS, activation="sigmoid").square().sum()

    expected = torch.autograd.functional.jacobian(grad(loss), x)
    torch.testing.assert_close(hessian(loss)(x), expected)


def test_functional_call_keeps_the_kernels(x: Tensor) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert ops.backend(x) == "native"
            return ops.sobel_magnitude(x)

    assert torch.equal(functional_call(Layer(), {}, (x,)), ops.sobel_magnitude(x))


def test_the_operators_themselves_refuse_forward_mode(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="the operator sobel_magnitude has no forward mode"):
        jvp(torch.ops.egcnn.sobel_magnitude, (x,), (x,))
