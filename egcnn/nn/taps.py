"""Tap points of an arbitrary encoder-decoder: found by a probing pass, or named."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from egcnn.errors import InputError
from egcnn.nn.backbone import Features


class Taps(NamedTuple):
    """Names (of ``named_modules()``) of the modules whose outputs the edge stream takes.

    Attributes:
        encoder: the last feature at each encoder resolution, fine to coarse.
        decoder: the first upsampled decoder feature.
    """

    encoder: tuple[str, ...]
    decoder: str


#: Taps of MONAI networks that do not compute the encoder's features from fine to coarse.
KNOWN_TAPS = {
    "SwinUNETR": Taps(
        ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10"), "decoder5.transp_conv"
    ),
    "UNETR": Taps(("encoder1", "encoder2", "encoder3", "encoder4"), "decoder5.transp_conv"),
}


class Tapped:
    """Captures a network's taps by forward hooks, without changing the network.

    What is captured belongs to the one call of :meth:`features` that runs in the thread: the
    network may be run by several threads, called on its own, copied, pickled and checkpointed.

    Args:
        network: any module that maps ``(B, C, D, H, W)`` to logits ``(B, R, D, H, W)``; of a list
            of outputs (deep supervision) the first is used.
        taps: tap points; None takes :data:`KNOWN_TAPS` or finds them by one probing pass.
        example: the input of the probing pass, or its shape ``(B, C, D, H, W)``. By default 64
            voxels along each axis, with the channels of the first convolution.

    Attributes:
        taps: the tap points in use.
        encoder_channels: channels of each encoder tap, fine to coarse.
        decoder_channels: channels of the decoder tap.
        out_channels: channels of the logits.

    Raises:
        InputError: the probing pass fails, no taps can be found, or given taps do not fit; the
            message lists the candidates.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Taps | dict[str, Any] | None = None,
        example: Tensor | Sequence[int] | None = None,
    ) -> None:
        calls, logits = _probe(network, _example(network, example))
        if taps is None:
            known = type(network).__module__.startswith("monai.")
            taps = KNOWN_TAPS.get(type(network).__name__) if known else None
        elif isinstance(taps, dict):
            taps = Taps(tuple(taps["encoder"]), taps["decoder"])
        self.taps = taps or _find(calls)
        shapes = _check(self.taps, calls)
        self.encoder_channels = tuple(shapes[name][0] for name in self.taps.encoder)
        self.decoder_channels = shapes[self.taps.decoder][0]
        self.out_channels = logits.shape[1]
        for name in (*self.taps.encoder, self.taps.decoder):
            network.get_submodule(name).register_forward_hook(_Hook(name, self))

    def features(self, network: nn.Module, x: Tensor) -> Features:
        """Run ``network`` on ``x`` and return its taps, logits and further outputs.

        Raises:
            InputError: a tap was not computed in this thread, or would get no gradient because it
                lies within a reentrant activation checkpoint.
        """
        seen: dict[str, Tensor] = {}
        around = _running.calls
        _running.calls = (*around, (self, seen))
        try:
            output = network(x)
        finally:
            _running.calls = around
        logits = _logits(output)
        others = tuple(output[1:]) if isinstance(output, (list, tuple)) else ()
        for name in (*self.taps.encoder, self.taps.decoder):
            if name not in seen:
                raise InputError(
                    f"EGCNN: the tap {name!r} was not computed in this thread; expected every "
                    "forward pass to call it (wrap EGCNN in DataParallel, not its backbone)"
                )
            if logits.requires_grad and not seen[name].requires_grad and _reentrant(logits):
                raise InputError(
                    f"EGCNN: the tap {name!r} is without gradient, as within "
                    "torch.utils.checkpoint.checkpoint(use_reentrant=True); expected "
                    "use_reentrant=False, or the checkpoint around the whole EGCNN"
                )
        encoder = tuple(seen[name] for name in self.taps.encoder)
        return Features(encoder, seen[self.taps.decoder], logits, others)


def candidates(
    network: nn.Module, example: Tensor | Sequence[int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Every module that can be tapped, in the order of the forward pass.

    Args:
        network: see :class:`Tapped`.
        example: see :class:`Tapped`.

    Returns:
        Module name to the shape ``(C, D, H, W)`` of its output.
    """
    calls, _ = _probe(network, _example(network, example))
    return {call.name: call.shape for call in calls}


@dataclass(frozen=True)
class _Call:
    """A volume returned by a module that the probing pass called exactly once."""

    name: str
    shape: tuple[int, ...]
    output: int  # identifies modules that return the same tensor
    up_samples: bool

    @property
    def voxels(self) -> int:
        return self.shape[1] * self.shape[2] * self.shape[3]


class _Running(threading.local):
    """The calls of ``features`` that run in this thread, the innermost last, and their taps."""

    calls: tuple[tuple[Tapped, dict[str, Tensor]], ...] = ()


_running = _Running()


# An object and not a closure, so that it is pickled, and that the hooks of a deep copy of the
# network belong to the copy of ``tapped``.
@dataclass
class _Hook:
    name: str
    tapped: Tapped

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        for tapped, seen in _running.calls:
            if tapped is self.tapped:
                seen[self.name] = output


def _reentrant(logits: Tensor) -> bool:
    """Whether a reentrant activation checkpoint is part of the graph of ``logits``."""
    nodes, known = [logits.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in known:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        known.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return False


def _example(network: nn.Module, example: Tensor | Sequence[int] | None) -> Tensor:
    if isinstance(example, Tensor):
        return example
    if example is None:
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
        if not convolutions:
            raise InputError(
                f"EGCNN: {type(network).__name__} has no Conv3d to infer the channels of its "
                "images have; expected example=(B, C, D, H, W)"
            )
        example = (1, convolutions[0].in_channels, 64, 64, 64)
    if len(example) != 5:
        raise InputError(f"EGCNN: example is {tuple(example)}; expected (B, C, D, H, W)")
    like = next(network.parameters(), torch.empty(0))
    # Do not draw from torch's generator: probing must not change the caller's random state.
    values = torch.linspace(-1, 1, torch.Size(example).numel(), device=like.device)
    return values.reshape(tuple(example)).to(like.dtype)


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode and random state are restored on exit."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _probe(network: nn.Module, example: Tensor) -> tuple[list[_Call], Tensor]:
    calls: list[_Call] = []
    repeated: set[str] = set()
    kept: list[Tensor] = []  # so that no two live tensors share an id

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 5:
                return
            if any(call.name == name for call in calls):
                repeated.add(name)
            kept.append(output)
            size = output.shape[2:].numel()
            volumes = [i for i in inputs if isinstance(i, Tensor) and i.ndim == 5]
            grows = bool(volumes) and all(v.shape[2:].numel() < size for v in volumes)
            calls.append(_Call(name, tuple(output.shape[1:]), id(output), grows))

        return record

    handles = [m.register_forward_hook(hook(n)) for n, m in network.named_modules() if n]
    try:
        with _evaluation_mode(network):
            logits = _logits(network(example))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"EGCNN: {type(network).__name__} failed on the probing input of shape "
            f"{tuple(example.shape)} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "expected example=(B, C, D, H, W), a shape that it accepts"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [call for call in calls if call.name not in repeated], logits


def _logits(output: Any) -> Tensor:
    while isinstance(output, (list, tuple)) and output:
        output = output[0]
    if isinstance(output, Tensor) and output.ndim == 6:
        output = output[:, 0]  # deep supervision, stacked
    if not isinstance(output, Tensor) or output.ndim != 5:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"EGCNN: the backbone returned {what}; expected logits (B, R, D, H, W)")
    return output


def _find(calls: list[_Call]) -> Taps:
    """The last feature at each resolution down to the coarsest, then the first upsampled one."""
    # Pooling to one voxel, as in squeeze-and-excitation, is not a resolution of the encoder.
    volumes = [call for call in calls if call.voxels > 1]
    if not volumes:
        raise InputError("EGCNN: no module of the backbone returns a volume; expected taps={...}")
    coarsest = min(call.voxels for call in volumes)
    bottom = next(i for i, call in enumerate(volumes) if call.voxels == coarsest)
    encoder: list[_Call] = []
    for call in volumes[:bottom]:
        while encoder and encoder[-1].voxels <= call.voxels:
            encoder.pop()
        encoder.append(call)
    rest = volumes[bottom:]
    after = next((i for i, call in enumerate(rest) if call.voxels > coarsest), len(rest))
    # What an upsampling module computes before it upsamples belongs to the decoder.
    ups = [f"{call.name}." for call in rest if call.up_samples]
    encoder.append([c for c in rest[:after] if not any(c.name.startswith(u) for u in ups)][-1])
    growing = [call for call in rest[after:] if call.voxels > coarsest]
    decoder = next((call for call in growing if call.up_samples), None)
    # Upsampled by a function between modules: take the output of the first module after it.
    decoder = decoder or next(iter(growing), None)
    if decoder is None or len(encoder) < 2:
        raise InputError(
            "EGCNN: the backbone's features do not become coarser and then finer; expected "
            f"taps={{'encoder': [fine, ..., coarse], 'decoder': name}} of {_listing(volumes)}"
        )
    return Taps(tuple(_outermost(call, calls) for call in encoder), _outermost(decoder, calls))


def _outermost(call: _Call, calls: list[_Call]) -> str:
    """The shortest name among the modules that return the same tensor."""
    return min((c.name for c in calls if c.output == call.output), key=len)


def _check(taps: Taps, calls: list[_Call]) -> dict[str, tuple[int, ...]]:
    shapes = {call.name: call.shape for call in calls}
    for name in (*taps.encoder, taps.decoder):
        if name not in shapes:
            raise InputError(
                f"EGCNN: the backbone has no module {name!r} that is called once and returns a "
                f"volume; expected one of {_listing(calls)}"
            )
    voxels = [torch.Size(shapes[name][1:]).numel() for name in taps.encoder]
    if not voxels or any(a <= b for a, b in pairwise(voxels)):
        found = ", ".join(f"{name} {shapes[name]}" for name in taps.encoder)
        raise InputError(
            f"EGCNN: the encoder taps are {found or 'none'}; expected one per resolution, fine to "
            f"coarse, of {_listing(calls)}"
        )
    return shapes


def _listing(calls: list[_Call]) -> str:
    """List the candidates; modules with the same output once, by shortest name."""
    names = dict.fromkeys(_outermost(call, calls) for call in calls)
    shapes = {call.name: call.shape for call in calls}
    return ", ".join(f"{name} {shapes[name]}" for name in names)
