"""EG-CNN around an arbitrary network: taps by probing or by name, weights, state, errors."""

from __future__ import annotations

import copy
import io
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from egcnn.errors import InputError
from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN, Taps, candidates
from egcnn.regions import Regions

from ..tolerances import REORDERED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.networks import nets

# network, channels of its encoder taps fine to coarse, and of its decoder tap
MONAI: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "SegResNet": (
        lambda: nets.SegResNet(spatial_dims=3, in_channels=2, out_channels=3, init_filters=8),
        (8, 16, 32, 64),
        32,
    ),
    "SegResNetDS": (
        lambda: nets.SegResNetDS(
            spatial_dims=3, in_channels=2, out_channels=3, init_filters=8, dsdepth=3
        ),
        (8, 16, 32, 64),
        32,
    ),
    "VNet": (
        lambda: nets.VNet(spatial_dims=3, in_channels=2, out_channels=3),
        (16, 32, 64, 128, 256),
        128,
    ),
    "UNet": (
        lambda: nets.UNet(
            spatial_dims=3,
            in_channels=2,
            out_channels=3,
            channels=(8, 16, 32, 64),
            strides=(2, 2, 2),
            num_res_units=2,
        ),
        (8, 16, 96),
        16,
    ),
    "BasicUNet": (
        lambda: nets.BasicUNet(
            spatial_dims=3, in_channels=2, out_channels=3, features=(8, 8, 16, 32, 64, 8)
        ),
        (8, 8, 16, 32, 64),
        32,
    ),
    "AttentionUnet": (
        lambda: nets.AttentionUnet(
            spatial_dims=3, in_channels=2, out_channels=3, channels=(8, 16, 32), strides=(2, 2)
        ),
        (8, 16, 32),
        16,
    ),
    "DynUNet": (
        lambda: nets.DynUNet(
            spatial_dims=3,
            in_channels=2,
            out_channels=3,
            kernel_size=[3] * 4,
            strides=[1, 2, 2, 2],
            upsample_kernel_size=[2, 2, 2],
            filters=[8, 16, 32, 64],
            deep_supervision=True,
            deep_supr_num=1,
        ),
        (8, 16, 32, 64),
        32,
    ),
    "SwinUNETR": (
        lambda: nets.SwinUNETR(in_channels=2, out_channels=3, feature_size=12),
        (12, 12, 24, 48, 192),
        96,
    ),
    "UNETR": (
        lambda: nets.UNETR(
            in_channels=2,
            out_channels=3,
            img_size=(32, 32, 32),
            feature_size=8,
            hidden_size=96,
            mlp_dim=192,
            num_heads=4,
        ),
        (8, 16, 32, 64),
        64,
    ),
}
# SwinUNETR halves the size five times and normalises the remaining voxels.
SHAPE = {"SwinUNETR": (64, 32, 32)}
# Their own code breaks torch.compile(fullgraph=True), with or without the edge stream.
NOT_COMPILED = {"BasicUNet", "SwinUNETR"}
# These three take two thirds of the time of all nine.
NAMES = [
    pytest.param(name, marks=[pytest.mark.thorough] * (name in ("VNet", "SwinUNETR", "UNETR")))
    for name in MONAI
]
CLASSES = Regions(("background", "a", "b"), ((0,), (1,), (2,)), "softmax")


class Plain(nn.Module):
    """A custom network: functional upsampling, a convolution used twice, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.down = nn.Conv3d(4, 8, 3, stride=2, padding=1)
        self.bottom = nn.Conv3d(8, 8, 1)
        self.twice = nn.Conv3d(8, 8, 1)
        self.merge = nn.Conv3d(12, 4, 1)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.norm(self.first(x))
        coarse = self.twice(self.twice(self.bottom(self.down(fine))))
        up = nn.functional.interpolate(coarse, size=fine.shape[2:])
        return self.head(self.merge(torch.cat([fine, up], 1)).relu())


@pytest.mark.parametrize("name", MONAI)
def test_monai_networks(name: str) -> None:
    make, encoder, decoder = MONAI[name]
    torch.manual_seed(0)
    plain = make()
    shape = SHAPE.get(name, (32, 32, 32))
    wrapped = EGCNN(copy.deepcopy(plain), channels=4, example=(1, 2, *shape))
    assert wrapped.tapped is not None
    assert wrapped.tapped.encoder_channels == encoder
    assert wrapped.tapped.decoder_channels == decoder

    # Weights load in both directions, and initially the logits are the backbone's own.
    wrapped.backbone.load_state_dict(plain.state_dict())
    x = torch.randn(1, 2, *shape)
    plain.eval(), wrapped.eval()
    with torch.no_grad():
        expected = plain(x)
        assert torch.equal(wrapped(x).logits, expected)
        assert torch.equal(copy.deepcopy(wrapped)(x).logits, expected)

    wrapped.train()
    segmentation = wrapped(x)
    labels = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    labels[..., 10:20, 10:20, 10:20] = 1
    EGCNNLoss(CLASSES)(segmentation, labels, seed=1)["loss"].backward()
    for parameter_name, parameter in wrapped.named_parameters():
        # Parameters of UNETR that its forward does not use.
        if "norm_cross_attn" not in parameter_name and "cross_attn" not in parameter_name:
            unused = name in ("SegResNetDS", "DynUNet")  # heads of deep supervision
            assert parameter.grad is not None or unused, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_compiles_where_the_network_alone_does(name: str) -> None:
    torch._dynamo.reset()
    make, shape = MONAI[name][0], SHAPE.get(name, (32, 32, 32))
    wrapped = EGCNN(make(), channels=4, example=(1, 2, *shape)).eval()
    x = torch.randn(1, 2, *shape)
    compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        if name in NOT_COMPILED:
            with pytest.raises(torch._dynamo.exc.Unsupported):
                torch.compile(make().eval(), fullgraph=True, backend="aot_eager")(x)
            with pytest.raises(torch._dynamo.exc.Unsupported):
                compiled(x)
        else:
            torch.testing.assert_close(compiled(x), wrapped(x), atol=REORDERED, rtol=REORDERED)


def test_networks_of_nnunet() -> None:
    """With deep supervision, whose coarser logits are handed on."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    sizes: dict[str, Any] = {
        **{"n_stages": 3, "features_per_stage": (4, 8, 16), "strides": (1, (1, 2, 2), 2)},
        **{"kernel_sizes": 3, "conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d},
        **{"nonlin": nn.LeakyReLU, "n_conv_per_stage_decoder": 1, "deep_supervision": True},
    }
    plain = unet.PlainConvUNet(2, num_classes=3, n_conv_per_stage=2, **sizes)
    residual = unet.ResidualEncoderUNet(2, num_classes=3, n_blocks_per_stage=2, **sizes)
    for network in (plain, residual):
        wrapped = EGCNN(network, example=(1, 2, 4, 8, 8))
        assert wrapped.tapped is not None
        assert wrapped.tapped.encoder_channels == (4, 8, 16)
        assert wrapped.tapped.taps == Taps(
            tuple(f"encoder.stages.{stage}" for stage in range(3)), "decoder.transpconvs.0"
        )
        x = torch.randn(2, 2, 6, 8, 12)
        features = wrapped.features(x)
        for output, expected in zip((features.logits, *features.others), network(x), strict=True):
            assert torch.equal(output, expected)
        assert wrapped(x).logits.shape == (2, 3, 6, 8, 12)


def test_a_users_own_network() -> None:
    torch.manual_seed(0)
    wrapped = EGCNN(Plain())
    assert wrapped.tapped is not None
    # "twice" is called twice, so its output is not a tap; "merge" is the first module after the
    # upsampling.
    assert wrapped.tapped.taps == Taps(("norm", "bottom"), "merge")
    out = wrapped(torch.randn(2, 1, 7, 9, 5))
    assert out.logits.shape == out.edge_logits.shape == (2, 2, 7, 9, 5)


# The smallest volumes that the networks take; others take 16 voxels along each axis.
SMALL = {"UNETR": (32, 32, 32), "VNet": (32, 32, 32), "BasicUNet": (32, 32, 32)} | SHAPE


def _wrapped(name: str) -> tuple[EGCNN, Tensor]:
    make, shape = MONAI[name][0], SMALL.get(name, (16, 16, 16))
    wrapped = EGCNN(make(), channels=4, example=(1, 2, *shape)).eval()
    return wrapped, torch.randn(2, 2, *shape)


def _replica(module: nn.Module) -> nn.Module:
    """A replica as nn.DataParallel makes them, whose hooks are the original's."""
    copies = {m: m._replicate_for_data_parallel() for m in module.modules()}
    for original, replica in copies.items():
        for name, child in original._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in original._parameters.items():
            setattr(replica, name, parameter)
            replica._parameters[name] = parameter
        for name, buffer in original._buffers.items():
            replica._buffers[name] = buffer
    return copies[module]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_state_of_a_call_belongs_to_the_call(name: str) -> None:
    """A bare, a failed and an interleaved pass leave nothing; copies and threads have their own."""
    wrapped, x = _wrapped(name)
    with torch.no_grad():
        expected = [wrapped(volume[None]) for volume in x]
        wrapped.backbone(x[:1])
        with pytest.raises(RuntimeError):
            wrapped(torch.zeros(1, 1, *x.shape[2:]))
        file = io.BytesIO()
        torch.save(wrapped, file)
        loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        averaged = AveragedModel(wrapped)
        averaged.update_parameters(wrapped)
        others = {
            "copy": copy.deepcopy(wrapped),
            "pickle": loaded,
            "average": averaged.eval(),
            "DataParallel": nn.DataParallel(wrapped),
            "replica": _replica(wrapped),
        }
        for what, other in others.items():
            assert torch.equal(other(x[:1]).edge_logits, expected[0].edge_logits), what
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda volume: wrapped(volume[None]).edge_logits.detach(), x))
    assert all(torch.equal(a, b.edge_logits) for a, b in zip(found, expected, strict=True))


def test_threads_that_meet_within_the_network() -> None:
    """Each thread's pass halts after the taps until both have come so far."""
    wrapped = EGCNN(Plain()).eval()
    x = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        expected = [wrapped(volume[None]).edge_logits for volume in x]
        barrier = threading.Barrier(2)
        handle = wrapped.backbone.head.register_forward_hook(lambda *_: (barrier.wait(60), None)[1])
        with ThreadPoolExecutor(2) as pool, torch.no_grad():
            found = list(pool.map(lambda volume: wrapped(volume[None]).edge_logits.detach(), x))
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _gradients(wrapped: EGCNN, run: Callable[[], Any]) -> list[Tensor | None]:
    wrapped.zero_grad()
    logits, edge_logits = run()
    (logits.square().mean() + edge_logits.square().mean()).backward()
    return [parameter.grad for parameter in wrapped.parameters()]


def _assert_same_gradients(wrapped: EGCNN, run: Callable[[], Any], expected: list[Any]) -> None:
    for found, want in zip(_gradients(wrapped, run), expected, strict=True):
        assert (found is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(found, want, atol=REORDERED, rtol=REORDERED)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing(name: str) -> None:
    """The same gradients with a checkpoint around all, in both forms, and around a tapped part."""
    wrapped, x = _wrapped(name)
    x = x[:1].requires_grad_()
    expected = _gradients(wrapped, lambda: wrapped(x))
    for reentrant in (True, False):
        run = partial(checkpoint, wrapped, x, use_reentrant=reentrant)
        _assert_same_gradients(wrapped, run, expected)
    assert wrapped.tapped is not None
    tapped = wrapped.backbone.get_submodule(wrapped.tapped.taps.encoder[-1])
    tapped.forward = partial(checkpoint, tapped.forward, use_reentrant=True)
    _assert_same_gradients(wrapped, lambda: wrapped(x), expected)


class Checkpointed(Plain):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        def encode(x: Tensor) -> Tensor:
            return self.norm(self.first(x))

        fine = checkpoint(encode, x, use_reentrant=self.reentrant)
        coarse = self.twice(self.twice(self.bottom(self.down(fine))))
        up = nn.functional.interpolate(coarse, size=fine.shape[2:])
        return self.head(self.merge(torch.cat([fine, up], 1)).relu())


def test_a_tap_within_a_checkpoint_gets_its_gradient_or_a_sentence() -> None:
    wrapped = EGCNN(Checkpointed()).eval()
    plain = EGCNN(Plain()).eval()
    plain.load_state_dict(wrapped.state_dict())
    x = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    expected = _gradients(plain, lambda: plain(x))
    _assert_same_gradients(wrapped, lambda: wrapped(x), expected)
    # The whole in either form, whatever lies within.
    for reentrant in (True, False):
        run = partial(checkpoint, wrapped, x, use_reentrant=reentrant)
        _assert_same_gradients(wrapped, run, expected)
    # The tap is what the checkpoint returns, and part of the graph.
    wrapped.backbone.reentrant = True
    _assert_same_gradients(wrapped, lambda: wrapped(x), expected)
    # Within a reentrant checkpoint it is not.
    inner = EGCNN(Checkpointed(), taps={"encoder": ["first", "bottom"], "decoder": "merge"}).eval()
    inner(x).logits.sum().backward()
    inner.backbone.reentrant = True
    with pytest.raises(InputError, match=r"tap 'first' is without gradient.*use_reentrant=False"):
        inner(x)
    with torch.no_grad():
        inner(x)


def test_a_tap_that_is_not_computed_is_named() -> None:
    class Lazy(Plain):
        lazy = False

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x)) if self.lazy else super().forward(x)

    wrapped = EGCNN(Lazy())
    wrapped.backbone.lazy = True
    with pytest.raises(InputError, match="tap 'norm' was not computed in this thread"):
        wrapped(torch.randn(1, 1, 8, 8, 8))


@pytest.mark.parametrize("training", [True, False])
def test_probing_leaves_no_trace(training: bool) -> None:
    network = Plain().train(training)
    network.down.eval()
    state = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    candidates(network)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert network.training is training
    assert network.norm.training is training
    assert network.down.training is False
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_named_taps_and_seeds_for_the_probing_pass() -> None:
    taps = {"encoder": ["first", "bottom"], "decoder": "merge"}
    wrapped = EGCNN(Plain(), taps=taps, example=(1, 1, 6, 4, 8))
    assert wrapped.tapped is not None
    assert wrapped.tapped.taps == Taps(("first", "bottom"), "merge")
    assert wrapped.edge_stream.gates[0].weight_m.shape == (4, 8)
    logits, _ = wrapped(torch.randn(1, 1, 6, 5, 7))
    assert logits.shape == (1, 2, 6, 5, 7)


def test_state_dict_has_the_backbones_own_names() -> None:
    plain, wrapped = Plain(), EGCNN(Plain())
    own = {k.removeprefix("backbone.") for k in wrapped.state_dict() if k.startswith("backbone.")}
    assert own == set(plain.state_dict())


def test_an_encoder_that_starts_with_a_stride() -> None:
    class Strided(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(super().forward(x[..., ::2, ::2, ::2]), x.shape[2:])

    logits, edge_logits = EGCNN(Strided())(torch.randn(1, 1, 8, 12, 16))
    assert logits.shape == edge_logits.shape == (1, 2, 8, 12, 16)


class Wrong(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.conv(x))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Plain(), {"taps": Taps(("norm", "nowhere"), "merge")}, "no module 'nowhere' that is"),
        (Plain(), {"taps": Taps(("norm", "twice"), "merge")}, r"(?s)'twice'.* bottom \(8, 32"),
        (Plain(), {"taps": Taps(("bottom", "norm"), "merge")}, "fine to coarse, of first"),
        (Plain(), {"taps": Taps((), "merge")}, "encoder taps are none"),
        (Plain(), {"example": (1, 3, 4, 4, 4)}, r"failed on the probing input of shape \(1, 3,"),
        (Plain(), {"example": (4, 4, 4)}, r"example is \(4, 4, 4\); expected \(B, C, D, H, W\)"),
        (Wrong(lambda y: y), {}, "do not become coarser and then finer; expected taps="),
        (Wrong(lambda y: y[:, 0, 0]), {}, "returned .*; expected logits"),
        (Wrong(lambda y: {"out": y}), {}, "returned dict; expected logits"),
        (nn.Identity(), {}, "Identity has no Conv3d"),
    ],
)
def test_rejections(network: nn.Module, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EGCNN(network, **options)
