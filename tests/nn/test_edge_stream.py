"""Edge gates by hand (Eqs. 1, 2) and the stream's structure (Figure 1)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from egcnn import ops
from egcnn.errors import InputError
from egcnn.nn import EdgeGate, EdgeStream, SobelHead

from ..tolerances import BY_HAND


def set_gate(gate: EdgeGate, weight_e: list, weight_m: list, bias: list) -> None:
    for parameter, value in (
        (gate.weight_e, weight_e),
        (gate.weight_m, weight_m),
        (gate.bias, bias),
    ):
        parameter.data.copy_(torch.tensor(value))


def voxel(*values: float) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_channel_gate_by_hand() -> None:
    gate = EdgeGate(2, 1)
    set_gate(gate, [[1.0, 0.5], [0.0, -1.0]], [[2.0], [1.0]], [0.5, 0.25])
    # e = (1, 2), m = 3: the sums are 1 + 1 + 6 + 0.5 = 8.5 and -2 + 3 + 0.25 = 1.25.
    out = gate(voxel(1.0, 2.0), voxel(3.0)).flatten().tolist()
    assert out == pytest.approx([1 + sigmoid(8.5), 2 + 2 * sigmoid(1.25)], rel=BY_HAND)


def test_relu_holds_alpha_at_one_half_and_sigmoid_does_not() -> None:
    for activation, alpha in (("relu_sigmoid", 0.5), ("sigmoid", sigmoid(-4.0))):
        gate = EdgeGate(1, 1, activation=activation)  # type: ignore[arg-type]
        set_gate(gate, [[1.0]], [[-1.0]], [0.0])
        out = gate(voxel(2.0), voxel(6.0)).item()
        assert out == pytest.approx(2 + 2 * alpha, rel=BY_HAND)


def test_voxel_gate_by_hand() -> None:
    gate = EdgeGate(2, 1, gate="voxel")
    set_gate(gate, [[1.0, -1.0]], [[1.0]], [0.5])
    # One attention value, sigmoid(1 - 2 + 3 + 0.5), for both channels.
    out = gate(voxel(1.0, 2.0), voxel(3.0)).flatten().tolist()
    alpha = sigmoid(2.5)
    assert out == pytest.approx([1 + alpha, 2 + 2 * alpha], rel=BY_HAND)


def test_gate_rejects_unknown_options() -> None:
    with pytest.raises(InputError, match="gate: 'pixel'"):
        EdgeGate(2, 1, gate="pixel")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="activation: 'tanh'"):
        EdgeGate(2, 1, activation="tanh")  # type: ignore[arg-type]


def taps(sizes: list[tuple[int, int, int]], widths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, *s, generator=generator) for s, c in zip(sizes, widths, strict=True)]


def test_as_many_gates_as_resolutions_coarse_to_fine() -> None:
    stream = EdgeStream((4, 8, 16), 8, 3)
    assert [gate.weight_m.shape for gate in stream.gates] == [(4, 16), (4, 8), (4, 4)]
    assert [block.body[1].in_channels for block in stream.blocks] == [8, 4, 4]
    wide = EdgeStream((4, 8), 4, 3, channels=6, gate="voxel")
    assert [gate.weight_e.shape for gate in wide.gates] == [(1, 6), (1, 6)]


@pytest.mark.parametrize(
    "sizes",
    [
        [(8, 12, 4), (4, 6, 2), (2, 3, 1)],
        [(7, 5, 3), (4, 3, 2), (2, 2, 1)],
        [(1, 1, 1), (1, 1, 1), (1, 1, 1)],
    ],
)
def test_edge_logits_have_the_finest_size(sizes: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(0)
    stream = EdgeStream((4, 8, 16), 8, 3)
    encoder = taps(sizes, [4, 8, 16], seed=1)
    (decoder,) = taps(sizes[1:2], [8], seed=2)
    out = stream(encoder, decoder, torch.randn(2, 3, *sizes[0]))
    assert out.shape == (2, 3, *sizes[0])
    out.square().mean().backward()
    for name, parameter in stream.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_follows_the_figure_step_by_step() -> None:
    torch.manual_seed(0)
    stream = EdgeStream((4, 8), 6, 2)
    encoder = taps([(4, 6, 2), (2, 3, 1)], [4, 8], seed=1)
    (decoder,) = taps([(4, 6, 2)], [6], seed=2)

    def up(x: Tensor, size: tuple[int, int, int]) -> Tensor:
        return nn.functional.interpolate(x, size, mode="trilinear", align_corners=False)

    e = stream.residuals[0](stream.gates[0](up(stream.blocks[0](decoder), (2, 3, 1)), encoder[1]))
    e = stream.residuals[1](stream.gates[1](up(stream.blocks[1](e), (4, 6, 2)), encoder[0]))
    logits = torch.randn(2, 2, 4, 6, 2)
    torch.testing.assert_close(stream(encoder, decoder, logits), stream.head(e, logits))


def test_trilinear_upsampling_keeps_no_upsampled_volume() -> None:
    torch.manual_seed(0)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for upsampling in ("trilinear", "nearest"):
        stream = EdgeStream((5, 6), 6, 2, upsampling=upsampling, residual="none", head="linear")
        encoder = [x.requires_grad_() for x in taps([(4, 6, 8), (2, 3, 4)], [5, 6], seed=1)]
        (decoder,) = taps([(2, 3, 4)], [6], seed=2)
        kept = shapes[upsampling] = []

        def keep(x: Tensor, kept: list[tuple[int, ...]] = kept) -> Tensor:
            kept.append(tuple(x.shape))
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            stream(encoder, decoder, torch.randn(2, 2, 4, 6, 8))
    fine = (2, 5, 4, 6, 8)
    assert shapes["nearest"].count(fine) == shapes["trilinear"].count(fine) + 1


def test_a_fresh_linear_head_predicts_few_edges() -> None:
    torch.manual_seed(0)
    stream = EdgeStream((4, 8), 6, 2, head="linear")
    nn.init.zeros_(stream.head[-1].weight)
    encoder = taps([(4, 6, 2), (2, 3, 1)], [4, 8], seed=1)
    (decoder,) = taps([(4, 6, 2)], [6], seed=2)
    probabilities = stream(encoder, decoder, torch.randn(2, 2, 4, 6, 2)).sigmoid()
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.05))


def test_sobel_head_by_hand() -> None:
    torch.manual_seed(0)
    head = SobelHead(4, 2)
    e, z = torch.randn(2, 4, 5, 6, 7), torch.randn(2, 2, 5, 6, 7)
    head.scale.data.copy_(torch.tensor([1.5, 0.5]))
    head.correction.bias.data.copy_(torch.tensor([1.0, -2.0]))
    shapes = z + head.shapes(head.norm(e))
    magnitude = ops.reference.sobel_magnitude(torch.sigmoid(4 * shapes))
    for region, (scale, bias) in enumerate(((1.5, 1.0), (0.5, -2.0))):
        expected = scale * torch.log(magnitude[:, region] + 0.01) + bias
        torch.testing.assert_close(head(e, z)[:, region], expected)


def without_features(head: SobelHead) -> SobelHead:
    nn.init.zeros_(head.shapes.weight)
    nn.init.zeros_(head.shapes.bias)  # type: ignore[arg-type]
    return head


#: Halfway between the logits of no edge, log 0.01, and of the faintest, a corner: sqrt(3) / 16.
FAINT = -3.4


def test_the_sobel_head_starts_at_the_edges_of_the_segmentation() -> None:
    mask = torch.zeros(1, 1, 9, 9, 9)
    mask[..., 2:6, 3:7, 1:8] = 1
    mask[..., 6, 7, 8] = 1  # a corner neighbour is an edge too
    head = without_features(SobelHead(1, 1))
    logits = head(torch.randn_like(mask), 10 * mask - 5)
    assert torch.equal(logits > FAINT, ops.sobel_edges(mask) == 1)


def test_exclusive_classes_meet_where_the_largest_logit_changes() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1, 1, 2, 2, 2)).repeat_interleave(3, 2)
    labels = labels.repeat_interleave(3, 3).repeat_interleave(3, 4)
    one_hot = nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    # The same everywhere for all classes: without log odds it would look like an edge.
    z = 12 * one_hot + 100 * torch.randn(1, 1, 6, 6, 6)
    logits = without_features(SobelHead(1, 3, exclusive=True))(torch.randn(1, 1, 6, 6, 6), z)
    assert torch.equal(logits > FAINT, ops.sobel_edges(labels, [[0], [1], [2]]) == 1)


def test_the_union_has_the_edges_of_all_regions() -> None:
    outer, inner = torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 9)
    outer[..., 1:8, 1:8, 1:8] = 1
    inner[..., 3:6, 3:6, 3:6] = 1
    masks = torch.cat([outer, inner], 1)
    logits = without_features(SobelHead(1, 2, union=True))(outer, 10 * masks - 5)
    assert torch.equal(logits > FAINT, ops.sobel_edges(masks).amax(1, keepdim=True) == 1)


def test_the_edge_loss_leaves_the_main_streams_logits_alone() -> None:
    z = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    SobelHead(4, 2)(torch.randn(1, 4, 4, 4, 4), z).sum().backward()
    assert z.grad is None


def test_the_sobel_head_keeps_to_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = SobelHead(4, 2).to(memory_format=torch.channels_last_3d)
    e, z = torch.randn(1, 4, 8, 8, 8), torch.randn(1, 2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(e, z)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), head(e, z), rtol=0.05, atol=0.1)


def test_every_resolution_matters() -> None:
    torch.manual_seed(0)
    stream = EdgeStream((4, 8, 16), 8, 3)
    sizes = [(8, 12, 4), (4, 6, 2), (2, 3, 1)]
    inputs = [*taps(sizes, [4, 8, 16], seed=1), *taps(sizes[1:2], [8], seed=2)]
    for tensor in inputs:
        tensor.requires_grad_()
    stream(inputs[:3], inputs[3], torch.randn(2, 3, *sizes[0])).square().mean().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in inputs)


def test_stream_rejects() -> None:
    with pytest.raises(InputError, match="main_channels is empty"):
        EdgeStream((), 4, 1)
    with pytest.raises(InputError, match=r"channels: \(0,\)"):
        EdgeStream((4, 8), 4, 1, channels=0)
