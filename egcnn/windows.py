"""A window that slides over whole volumes, for several networks and mirrorings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from egcnn.checks import DEFAULT_OVERLAP
from egcnn.nn.attention import attention_maps
from egcnn.nn.blocks import resize
from egcnn.nn.edge_stream import EdgeGate
from egcnn.regions import Regions

#: Called with the number of windows that are done, and of all.
Progress = Callable[[int, int], None]
# Above this many bytes of output, windows are gathered in host memory.
_LARGE_OUTPUT = 2 << 30


def window_size(shape: Sequence[int], patch: Sequence[int], stride: int) -> tuple[int, ...]:
    """The sliding window for a volume: the training patch, or the whole volume if little larger.

    One window over a volume of at most twice the patch costs less than the overlapping windows
    that would cover it, and has no seams.

    Args:
        shape: shape of the volume.
        patch: the training patch.
        stride: see ``egcnn.nn.backbones.BackboneEntry``.
    """
    whole = tuple(-(-size // stride) * stride for size in shape)
    return whole if np.prod(whole) <= 2 * np.prod(patch) else tuple(patch)


@torch.no_grad()
def segment(
    networks: nn.Module | Sequence[nn.Module],
    image: Tensor,
    regions: Regions,
    patch: Sequence[int],
    *,
    stride: int,
    overlap: float = DEFAULT_OVERLAP,
    flips: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Slide a window over preprocessed volumes and blend overlaps with Gaussian weights.

    Args:
        networks: one, or several whose probabilities are averaged. Each returns logits
            ``(B, R, ...)`` or a ``Segmentation``.
        image: ``(B, M, D, H, W)``.
        regions: how logits become probabilities.
        patch: the window's size, see :func:`window_size`.
        stride: see :func:`window_size`.
        overlap: overlap of neighbouring windows as a fraction of their size.
        flips: spatial axes (0, 1, 2); the probabilities of all their mirrorings are averaged.
        progress: called after each window.

    Returns:
        probabilities ``(B, R, D, H, W)``, and edge probabilities of the same shape, or
        ``(B, 1, D, H, W)`` for ``edges="union"``, or ``None``; float32.
    """
    members = [networks] if isinstance(networks, nn.Module) else list(networks)
    mirrored = [
        [axis + 2 for axis in axes]
        for count in range(len(flips) + 1)
        for axes in combinations(flips, count)
    ]
    window_shape = window_size(image.shape[2:], patch, stride)
    done, total = 0, len(image) * window_count(image.shape[2:], window_shape, overlap)

    def predictor(window: Tensor) -> Tensor:
        nonlocal done
        mean: Tensor | None = None
        for network in members:
            for axes in mirrored:
                found = _probabilities(network, window.flip(axes), regions).flip(axes)
                mean = found if mean is None else mean.add_(found)
        assert mean is not None
        done += len(window)
        if progress is not None:
            progress(done, total)
        return mean.div_(len(members) * len(mirrored))

    count = len(regions)
    outputs = _slide(image, window_shape, overlap, predictor, 2 * count)
    return outputs[:, :count], outputs[:, count:] if outputs.shape[1] > count else None


@torch.no_grad()
def attention(
    network: nn.Module,
    image: Tensor,
    patch: Sequence[int],
    *,
    stride: int,
    overlap: float = DEFAULT_OVERLAP,
) -> tuple[Tensor, tuple[float, ...]]:
    """The edge gates' attention on preprocessed volumes, by the windows of :func:`segment`.

    Args:
        network: one with an edge stream.
        image: ``(B, M, D, H, W)``.
        patch: see :func:`segment`.
        stride: see :func:`segment`.
        overlap: see :func:`segment`.

    Returns:
        the maps of :func:`egcnn.nn.attention_maps`, coarse to fine, at the image's resolution,
        ``(B, L, D, H, W)`` float32; and how many of its voxels each map's own have along an axis.
    """
    coarseness: tuple[float, ...] = ()

    def predictor(window: Tensor) -> Tensor:
        nonlocal coarseness
        with attention_maps(network) as maps:
            # Not by a call, which of a compiled network would not run the hooks.
            network.forward(window.contiguous(memory_format=torch.channels_last_3d))
        coarseness = tuple(window.shape[-1] / found.shape[-1] for found in maps)
        return torch.cat([resize(found.float(), window) for found in maps], 1)

    window_shape = window_size(image.shape[2:], patch, stride)
    gates = sum(isinstance(module, EdgeGate) for module in network.modules())
    return _slide(image, window_shape, overlap, predictor, gates), coarseness


def _slide(
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    predictor: Callable[[Tensor], Tensor],
    channels: int,
) -> Tensor:
    """Blend what ``predictor`` makes of the windows, at most so many channels within [0, 1]."""
    outputs = sliding_window_inference(
        image,
        window,
        sw_batch_size=1,
        predictor=predictor,
        overlap=overlap,
        mode="gaussian",
        sw_device=image.device,
        device="cpu" if channels * image[:, 0].numel() * 4 > _LARGE_OUTPUT else image.device,
    )
    assert isinstance(outputs, Tensor)
    # Rounding can push weighted means of probabilities outside [0, 1].
    return outputs.clamp_(0, 1)


def _probabilities(network: nn.Module, window: Tensor, regions: Regions) -> Tensor:
    """Probabilities of the regions, followed by those of the edges where the network has any."""
    output = network(window.contiguous(memory_format=torch.channels_last_3d))
    if isinstance(output, Tensor):
        return regions.probabilities(output.float())
    parts = [regions.probabilities(output.logits.float())]
    if output.edge_logits is not None:
        parts.append(output.edge_logits.float().sigmoid())
    return torch.cat(parts, 1)


def window_count(shape: Sequence[int], window: Sequence[int], overlap: float) -> int:
    """The number of windows that MONAI slides over a volume."""
    return math.prod(
        1 + max(0, -(-(size - width) // max(1, int(width * (1 - overlap)))))
        for size, width in zip(shape, window, strict=True)
    )
