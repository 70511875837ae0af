"""Activation checkpointing of the networks (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from egcnn.nn.backbone import EncoderDecoder
from egcnn.nn.blocks import ResidualBlock
from egcnn.nn.edge_stream import EdgeStream


def recompute_stages(network: nn.Module) -> None:
    """Recompute the stages in backward instead of keeping their activations.

    Kept are the inputs of each stage of an encoder or decoder, and of each block of the edge
    stream. Results stay the same, and so do the names of the parameters.

    Args:
        network: a network of :func:`egcnn.nn.network.build_network`; it is changed.
    """
    for module in list(network.modules()):
        stages: list[nn.Module] = []
        if isinstance(module, EncoderDecoder):
            stages = [*module.encoder, *module.decoder]
        elif isinstance(module, EdgeStream):
            blocks = (m for m in module.residuals if isinstance(m, ResidualBlock))
            stages = [*module.blocks, *blocks]
        for stage in stages:
            stage.forward = partial(
                checkpoint, stage.forward, use_reentrant=False, preserve_rng_state=False
            )
