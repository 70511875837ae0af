"""The slices of chosen cases on the page: image, truth, predictions, edges and attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egcnn import windows
from egcnn.checkpoint import Trained, load
from egcnn.data.case import Case, Dataset, Spacing, read_edges, read_image, read_label
from egcnn.data.layouts import shown_channel, shown_colours, shown_modality
from egcnn.data.resampling import resample
from egcnn.data.transforms import preprocessing
from egcnn.edges import EdgeGrid
from egcnn.inference import autocast, default_precision
from egcnn.panels import (
    DISAGREEMENT,
    attention_title,
    disagreement,
    edge_codes,
    edge_colours,
    grey,
    region_codes,
    region_colours,
    rgb,
    true_edges,
)
from egcnn.regions import Regions
from egcnn.report.found import Evaluated
from egcnn.report.volumes import Frame, code_slices, frame, grey_slices, pooled

#: Black and white of CT in pictures, in Hounsfield units: a window for the abdomen.
CT_WINDOW = (-160.0, 240.0)


@dataclass(frozen=True)
class Attention:
    """The edge gates' attention on a case's grid.

    Args:
        maps: coarse to fine, ``(L, D, H, W)`` float32 in [0, 1].
        coarseness: how many voxels of the finest each map's own have along an axis.
    """

    maps: NDArray[np.float32]
    coarseness: tuple[float, ...]


@dataclass(frozen=True)
class Shown:
    """A case's prediction of one network, with what the page shows of it.

    Args:
        title: of the network; empty where there is only one.
        labels: predicted label map ``(D, H, W)``.
        edges: edge probabilities ``(F, D, H, W)``, or None.
        attention: the attention, or None.
    """

    title: str
    labels: NDArray[Any]
    edges: NDArray[Any] | None
    attention: Attention | None


def attention_of(trained: Trained, case: Case) -> Attention:
    """The attention of a network's edge gates on a case, averaged over channels.

    Args:
        trained: a network with an edge stream, which computes on its device.
        case: the case.

    Raises:
        InputError: the image is unusable.
    """
    image = read_image(case, len(trained.modalities))
    affine, shape = image.affine.numpy().copy(), image.shape[1:]
    prepared = preprocessing(trained.preprocessing, trained.regions)({"image": image})["image"]
    device = next(trained.network.parameters()).device
    with torch.inference_mode(), autocast(device, default_precision(device)):
        maps, coarseness = windows.attention(
            trained.network.eval(),
            prepared.as_tensor()[None].to(device),
            trained.preprocessing.patch,
            stride=trained.settings.stride,
        )
    matrix = np.linalg.solve(prepared.affine.numpy(), affine)
    on_grid = resample(maps[0].float().cpu(), matrix, shape).clamp_(0, 1)
    return Attention(on_grid.numpy(), coarseness)


def views(
    evaluations: Sequence[Evaluated], names: Mapping[str, str], device: torch.device
) -> Iterator[dict[str, Any]]:
    """What the page shows of some cases, one after the other.

    Args:
        evaluations: of the same cases; their predictions are shown side by side.
        names: the cases, and why each was chosen.
        device: where checkpoints compute what no file holds.

    Raises:
        InputError: a damaged file.
    """
    first = evaluations[0]
    assert first.dataset is not None
    trained = [None if e.checkpoint is None else load(e.checkpoint, device) for e in evaluations]
    for name, why in names.items():
        case = first.drawable[name]
        shown = [
            _shown(evaluated, network, case, first.dataset.regions)
            for evaluated, network in zip(evaluations, trained, strict=True)
        ]
        if len(shown) == 1:
            shown = [Shown("", shown[0].labels, shown[0].edges, shown[0].attention)]
        spacing = first.evaluation.edge_spacing(name)
        yield {"name": name, "why": why, **_view(case, first.dataset, shown, spacing)}


def _shown(evaluated: Evaluated, trained: Trained | None, case: Case, regions: Regions) -> Shown:
    labels = read_label(case, regions, evaluated.prediction(case.name)).numpy()[0]
    file = evaluated.edges(case.name)
    edges = None if file is None else read_edges(case, file, regions).numpy()
    attention = None
    if trained is not None and trained.settings.edge:
        attention = attention_of(trained, case)
    return Shown(evaluated.title, labels, edges, attention)


def _view(
    case: Case, dataset: Dataset, shown: Sequence[Shown], edge_spacing: Spacing | None
) -> dict[str, Any]:
    """The volumes and panels of one case, as plain data."""
    regions = dataset.regions
    image = read_image(case)[shown_channel(dataset)].numpy()
    label = read_label(case, regions)
    truth, affine = label.numpy()[0], label.affine.numpy()
    foreground = region_codes(truth, regions) > 0
    if not foreground.any():
        foreground = region_codes(shown[0].labels, regions) > 0
    part = frame(image, foreground, affine)
    edges = true_edges(truth, regions, EdgeGrid(affine, edge_spacing))
    colours = region_colours(regions, shown_colours(dataset))
    ct = dataset.normalization == "ct"
    inside = image[image != image.flat[0]]
    window = CT_WINDOW if ct else tuple(map(float, np.percentile(inside, (1, 99.5))))
    axes = [
        np.count_nonzero(part.cut(foreground), axis=other) for other in ((1, 2), (0, 2), (0, 1))
    ]
    unit = f"CT, {CT_WINDOW[0]:.0f} to {CT_WINDOW[1]:.0f} HU" if ct else shown_modality(dataset)
    return {
        "spacing": part.spacing,
        "shape": [len(count) for count in axes],
        "start": [int(count.argmax()) if count.any() else len(count) // 2 for count in axes],
        "image": grey_slices(part.cut(grey(image, (window[0], window[1])))),
        "panels": list(_panels(truth, edges, shown, part, regions, colours, unit)),
    }


def _panels(
    truth: NDArray[Any],
    edges: NDArray[np.uint8],
    shown: Sequence[Shown],
    part: Frame,
    regions: Regions,
    colours: Sequence[str],
    unit: str,
) -> Iterator[dict[str, Any]]:
    """The panels in the order of the page; each has a title, and what is over the image."""

    def codes(values: NDArray[np.uint8], table: Sequence[Any]) -> dict[str, Any]:
        return code_slices(part.cut(values), table)

    plain = [rgb(colour) for colour in colours]
    yield {"title": "Image", "note": unit, "over": True}
    yield {"title": "Truth", "over": True, "codes": codes(region_codes(truth, regions), plain)}
    wrong = [rgb(colour) for colour in DISAGREEMENT.values()]
    for one in shown:
        made = {"note": one.title, "over": True}
        found = codes(region_codes(one.labels, regions), plain)
        yield {"title": "Prediction", **made, "codes": found}
        differs = codes(disagreement(truth, one.labels, regions), wrong)
        yield {"title": "Disagreement", **made, "codes": differs}
    yield {"title": "True edges", "codes": codes(edge_codes(edges), edge_colours(colours))}
    for one in shown:
        if one.edges is not None:
            found = codes(edge_codes(one.edges), edge_colours(colours, len(one.edges)))
            yield {"title": "Predicted edges", "note": one.title, "codes": found}
    for one in shown:
        if one.attention is not None:
            yield from _attention_panels(one.title, one.attention, part)


def _attention_panels(title: str, attention: Attention, part: Frame) -> Iterator[dict[str, Any]]:
    """A panel for each resolution, from its smallest attention in the case to its largest."""
    for volume, factor in zip(attention.maps, attention.coarseness, strict=True):
        own = pooled(part.cut(volume), max(1, round(factor / part.step)))
        low, high = (float(value) for value in np.percentile(own, (1, 99)))
        yield {
            "title": attention_title(factor).capitalize(),
            "note": f"{f'{title}; ' if title else ''}{low:.2f} to {high:.2f}",
            "heat": grey_slices(grey(own, (low, high))),
        }
