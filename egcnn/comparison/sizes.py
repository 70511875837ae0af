"""Parameters and costs of networks with and without the edge stream."""

from __future__ import annotations

import torch

from egcnn.nn.backbones import BACKBONES
from egcnn.nn.cost import cost
from egcnn.nn.network import NetworkSettings, build_network


def parameters(network: NetworkSettings, modalities: int, regions: int) -> int:
    """Number of trainable parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(network, modalities, regions).parameters())


def larger_filters(network: NetworkSettings, modalities: int, regions: int) -> int:
    """The smallest even number of filters with which the backbone alone has EG-CNN's parameters.

    The paper's control: does the edge stream help because of its design or its parameter count?
    """
    needed = parameters(network.change({"edge": True}), modalities, regions)
    filters = network.backbone.filters + network.backbone.filters % 2
    while parameters(alone(network, filters), modalities, regions) < needed:
        filters += 2
    return filters


def alone(network: NetworkSettings, filters: int) -> NetworkSettings:
    """The backbone without edge stream, with another number of filters."""
    return network.change({"edge": False, "backbone.filters": filters})


def networks(modalities: int, regions: int, filters: int, shape: tuple[int, int, int]) -> list[str]:
    """A Markdown table of all networks' costs; see :func:`egcnn.nn.cost.cost`."""
    lines = [
        "| network | filters | parameters | multiply-adds |",
        "|---|---|---|---|",
    ]
    for backbone, entry in BACKBONES.items():
        sizes = {"backbone.name": backbone, "backbone.filters": filters}
        wrapped = NetworkSettings().change(sizes)
        larger = larger_filters(wrapped, modalities, regions)
        for title, network in (
            (entry.title, alone(wrapped, filters)),
            (f"{entry.title} + EG-CNN", wrapped),
            (f"{entry.title}, larger", alone(wrapped, larger)),
        ):
            with torch.device("meta"):
                size = cost(build_network(network, modalities, regions), (1, modalities, *shape))
            lines.append(
                f"| {title} | {network.backbone.filters} | {size.parameters / 1e6:.2f} M "
                f"| {size.multiply_adds / 1e9:.0f} G |"
            )
    return lines
