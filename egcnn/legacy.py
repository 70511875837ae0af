"""Convert the flat hyperparameters of earlier versions' files to today's tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Today's name of each entry of a flat ``config.json`` or a checkpoint of format 3.
FLAT = {
    "backbone": "network.backbone.name",
    "edge": "network.edge",
    "filters": "network.backbone.filters",
    "blocks_down": "network.backbone.blocks_down",
    "blocks_up": "network.backbone.blocks_up",
    "dropout": "network.backbone.dropout",
    "gate": "network.edge_stream.gate",
    "gate_activation": "network.edge_stream.activation",
    "edge_channels": "network.edge_stream.channels",
    "residual": "network.edge_stream.residual",
    "upsampling": "network.edge_stream.upsampling",
    "edge_seed": "network.edge_stream.start",
    "edge_head": "network.edge_stream.edges",
    "patch": "preprocessing.patch",
    "spacing": "preprocessing.spacing",
    "normalization": "preprocessing.normalization",
    "flip_axes": "augmentation.flip_axes",
    "intensity_shift": "augmentation.intensity_shift",
    "intensity_scale": "augmentation.intensity_scale",
    "foreground": "augmentation.foreground",
    "semantic": "loss.semantic_weight",
    "consistency": "loss.consistency_weight",
    "edge_weight": "loss.edge_weight",
    "edge_threshold": "loss.edge_threshold",
    "include_background": "loss.dice.include_background",
    "tau": "loss.consistency.tau",
    "hard": "loss.consistency.hard",
    "support": "loss.consistency.support",
    "lambda1": "loss.edge.lambda1",
    "lambda2": "loss.edge.lambda2",
    "edge_reduction": "loss.edge.reduction",
    "weight_negatives": "loss.edge.weight_negatives",
}


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Convert flat entries to nested ones; entries not listed in :data:`FLAT` stay at the root."""
    # Formerly the edge stream had the main stream's width at each resolution, and a linear head.
    nested: dict[str, Any] = {"network": {"edge_stream": {"head": "linear"}}}
    if flat.get("edge_channels") is None:
        filters, levels = flat["filters"], len(flat.get("blocks_down", (1, 2, 2, 4)))
        widths = [filters * min(1 << level, 8) for level in reversed(range(levels))]
        flat = {**flat, "edge_channels": widths}
    for name, value in flat.items():
        *groups, last = FLAT.get(name, name).split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return nested


def config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a ``config.json`` of any version."""
    return dict(data) if "network" in data else tree(data)


def checkpoint(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a format 3 checkpoint's description to format 4."""
    network = {
        k: v for k, v in entry["network"].items() if k not in ("in_channels", "out_channels")
    }
    preprocessing = dict(entry["preprocessing"])
    modalities = preprocessing.pop("modalities")
    return {**entry, "format": 4, "modalities": modalities, **tree({**network, **preprocessing})}
