"""Metrics of a segmentation and its edges, per region."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import ArrayLike
from torch import Tensor

from egcnn import ops
from egcnn.checks import check_spacing
from egcnn.edges import EdgeGrid, label_edges
from egcnn.errors import InputError
from egcnn.regions import Regions, equals

#: HD95 in mm if exactly one of prediction and truth is empty: the diagonal of a 240 x 240 x 155
#: volume, as in BraTS.
WORST_HD95 = 373.13


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Args:
        title: display name.
        digits: decimals shown.
        of: what it scores, a region's ``"voxels"``, its ``"edges"`` or its ``"lesions"``.
        meaning: what it says, for readers who do not know it.
    """

    title: str
    digits: int = 3
    of: Literal["voxels", "edges", "lesions"] = "voxels"
    meaning: str = ""


#: All metrics by name, in table order; see :func:`case_metrics`, :func:`edge_scores` and
#: :func:`egcnn.lesions.lesion_scores`.
METRICS = {
    "dice": Metric("Dice", meaning="overlap of prediction and truth: 0 none, 1 perfect"),
    "sensitivity": Metric("Sensitivity", meaning="share of the true region that was found"),
    "specificity": Metric("Specificity", meaning="share of everything else that was left out"),
    "hd95": Metric(
        "HD95 (mm)", digits=2, meaning="95 % of both surfaces lie closer than this to the other"
    ),
    "surface_dice": Metric(
        "Surface Dice", meaning="share of both surfaces within 1 mm of the other"
    ),
    "f1": Metric(
        "F1",
        of="edges",
        meaning="agreement of predicted and true edge voxels at threshold 0.5: 0 none, 1 perfect",
    ),
    "best_f1": Metric("Best F1", of="edges", meaning="the same at the best threshold"),
    "average_precision": Metric(
        "Average precision", of="edges", meaning="area under the curve of precision over recall"
    ),
    "thickness": Metric(
        "Thickness", digits=2, of="edges", meaning="predicted edge voxels for each true one"
    ),
    "interior": Metric(
        "Interior filled",
        digits=2,
        of="edges",
        meaning="share of the region's inside that is called an edge",
    ),
    "lesion_dice": Metric("Dice", of="lesions", meaning="overlap of matched lesions"),
    "lesion_f1": Metric("F1", of="lesions", meaning="agreement of predicted with true lesions"),
    "lesions_missed": Metric(
        "Missed", digits=2, of="lesions", meaning="true lesions without a prediction, a case"
    ),
    "lesions_false": Metric(
        "False", digits=2, of="lesions", meaning="predicted lesions that are none, a case"
    ),
}
VOXEL_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "voxels")
EDGE_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "edges")
LESION_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "lesions")

#: Titles of the edge sources that are scored: the edge head, and the Sobel edges of the
#: segmentation. Their columns are ``edge_f1``, ``sobel_f1`` and so on.
EDGE_SOURCES = {"edge": "edge head", "sobel": "Sobel of segmentation"}

#: Every column of a case's scores; those of lesions follow where they were asked for.
COLUMNS = (
    *VOXEL_METRICS,
    *(f"{source}_{name}" for source in EDGE_SOURCES for name in EDGE_METRICS),
)

#: Edge probabilities are scored at so many thresholds, multiples of 1/1000.
THRESHOLDS = 1000


def _ratio(part: Tensor, whole: Tensor, other: Tensor) -> Tensor:
    """``part / whole``; if ``whole`` is 0, then 1 if ``other`` is 0 too, else 0."""
    return torch.where(whole > 0, part / whole.clamp(min=1), (other == 0).to(part.dtype))


def _counts(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Voxel counts of the intersection, the prediction and the truth, each ``(B, R)`` float64."""
    if prediction.shape != truth.shape or prediction.ndim != 5:
        raise InputError(
            f"metrics: prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)}; "
            "expected binary regions of one shape (B, R, D, H, W)"
        )
    predicted, true = prediction.bool(), truth.bool()
    return tuple(  # type: ignore[return-value]
        mask.sum((2, 3, 4), dtype=torch.float64) for mask in (predicted & true, predicted, true)
    )


def dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """Dice coefficient per sample and region.

    Args:
        prediction: binary regions ``(B, R, D, H, W)``; anything but 0 is inside.
        truth: likewise.

    Returns:
        ``(B, R)`` float64; 1 if both are empty, 0 if one is.

    Raises:
        InputError: shapes that differ or are not five-dimensional.
    """
    intersection, predicted, true = _counts(prediction, truth)
    total = predicted + true
    return _ratio(2 * intersection, total, total)


def edge_scores(
    probabilities: Tensor, masks: Tensor, edges: Tensor | None = None
) -> dict[str, Tensor]:
    """Score edge probabilities against the edges of the true regions.

    ``f1`` at the threshold 0.5 and ``best_f1`` at the best one; ``average_precision``, the area
    under precision over recall in steps; ``thickness``, the number of predicted edge voxels over
    that of true ones; ``interior``, the share of the region's voxels off its edges that are
    predicted as edges. The thresholds are the multiples of 1/1000.

    If a region has no edge, ``f1`` is 1 if none is predicted, else 0; other ratios with denominator
    0 are NaN.

    Args:
        probabilities: ``(B, R, D, H, W)`` in [0, 1]; 0 and 1 for binary edges. A single channel
            (``edges="union"``) is compared with the union of all regions' edges.
        masks: the true binary regions, ``(B, R, D, H, W)``.
        edges: their edges, 0 or 1, with as many channels as the probabilities; None takes the Sobel
            edges of the masks.

    Returns:
        By name in :data:`EDGE_METRICS`, ``(B, R)`` float64.

    Raises:
        InputError: shapes that differ or are not five-dimensional.
    """
    union = masks.ndim == probabilities.ndim == 5 and probabilities.shape[1] == 1
    if edges is None:
        edges = ops.sobel_edges(masks)
        edges = edges.amax(1, keepdim=True) if union else edges
    truth = edges.bool()
    inside = ((masks != 0).any(1, keepdim=True) if union else masks != 0) & ~truth
    found = probabilities >= 0.5
    intersection, predicted, true = _counts(found, truth)
    scores = {
        "f1": _ratio(2 * intersection, predicted + true, predicted + true),
        "best_f1": torch.full_like(true, torch.nan),
        "average_precision": torch.full_like(true, torch.nan),
        "thickness": predicted / true,
        "interior": _counts(found, inside)[0] / inside.sum((2, 3, 4)),
    }
    scores["thickness"][true == 0] = torch.nan
    for b, r in (true > 0).nonzero().tolist():
        hits, all_ = threshold_counts(probabilities[b, r], truth[b, r])
        scores["best_f1"][b, r] = (2 * hits / (all_ + true[b, r])).max()
        gained = torch.diff(hits, prepend=hits.new_zeros(1)) / true[b, r]
        scores["average_precision"][b, r] = (gained * hits / all_.clamp(min=1)).sum()
    regions = masks.shape[1]
    return {name: values.expand(-1, regions) for name, values in scores.items()}


def threshold_counts(probabilities: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Count the voxels at or above each threshold: those of the truth, and all.

    Args:
        probabilities: in [0, 1], of any shape.
        truth: bool, of the same shape.

    Returns:
        two vectors of length :data:`THRESHOLDS`, float64, from the threshold 0.999 to 0.
    """
    level = (probabilities * THRESHOLDS).to(torch.int16).clamp_(0, THRESHOLDS - 1)
    hits, all_ = (
        torch.bincount(levels, minlength=THRESHOLDS).flip(0).cumsum(0).double()
        for levels in (level[truth], level.flatten())
    )
    return hits, all_


def edge_scores_by_source(
    prediction: Tensor,
    truth: Tensor,
    regions: Regions,
    edges: Tensor | None,
    grid: EdgeGrid | None = None,
) -> dict[str, Tensor]:
    """:func:`edge_scores` of every source.

    Args:
        prediction: integer label map ``(B, 1, D, H, W)``. Voxels that the truth ignores count as
            outside of all regions.
        truth: likewise.
        regions: their regions, of which the reported ones are scored.
        edges: the edge head's probabilities, with a channel per region or one for all; None without
            an edge stream.
        grid: see :func:`egcnn.edges.label_edges`; takes B = 1.

    Returns:
        By column name (``edge_f1``, ``sobel_f1`` and so on), ``(B, F)`` float64.
    """
    if (ignored := regions.ignore_index) is not None:
        prediction = prediction.masked_fill(equals(truth, ignored), ignored)
    masks = regions.reported(regions.masks(truth))
    true = label_edges(truth, regions, grid)
    found = {"sobel": edge_scores(label_edges(prediction, regions, grid).float(), masks, true)}
    if edges is not None:
        if edges.shape[1] == 1 < masks.shape[1]:
            true = label_edges(truth, regions, grid, union=True)
        found["edge"] = edge_scores(edges, masks, true)
    return {
        f"{source}_{name}": values
        for source, scores in found.items()
        for name, values in scores.items()
    }


def _surface(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """HD95 in mm and normalised surface Dice of two binary volumes ``(D, H, W)``."""
    if not prediction.any() and not truth.any():
        return 0.0, 1.0
    if not prediction.any() or not truth.any():
        return WORST_HD95, 0.0
    with warnings.catch_warnings():
        # MONAI 1.6 warns about a deprecated argument that it passes itself.
        warnings.filterwarnings("ignore", "monai.metrics.utils", FutureWarning)
        _, distances, _ = get_edge_surface_distance(
            torch.from_numpy(prediction),
            torch.from_numpy(truth),
            spacing=tuple(float(s) for s in spacing),
            symmetric=True,
        )
    there, back = (torch.as_tensor(d).double().numpy() for d in distances)
    close = (there <= tolerance).sum() + (back <= tolerance).sum()
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float(close / (there.size + back.size))


def _labels(name: str, volume: ArrayLike | Tensor) -> Tensor:
    array = volume.detach().cpu().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if array.ndim != 3 or array.dtype.kind not in "iub":
        raise InputError(
            f"{name} is {array.dtype} of shape {array.shape}; expected an integer label map "
            "(D, H, W)"
        )
    return torch.from_numpy(array.astype(np.int64))[None, None]


def case_metrics(
    prediction: ArrayLike | Tensor,
    truth: ArrayLike | Tensor,
    regions: Regions,
    spacing: Sequence[float],
    *,
    edges: ArrayLike | Tensor | None = None,
    edge_grid: EdgeGrid | None = None,
    tolerance: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Every metric of every reported region of one case.

    ``dice``, ``sensitivity``, ``specificity``; ``hd95``, the 95th percentile of the distances
    between the surfaces, the larger of both directions; ``surface_dice``, the share of both
    surfaces within ``tolerance`` of the other (Nikolov et al., 2018, arXiv 1809.04430, on surface
    voxels). The surface of a region is its voxels with a face to the outside. ``edge_f1`` and so
    on score the edge head's probabilities (:func:`edge_scores`; NaN without them), ``sobel_f1``
    and so on the Sobel edges of the prediction.

    If prediction and truth are both empty, HD95 is 0 and the other :data:`VOXEL_METRICS` are 1; if
    one is, HD95 is :data:`WORST_HD95` and the others except specificity are 0. If the truth fills
    the volume, specificity is 1 if the prediction does too, else 0. Voxels of the truth with the
    regions' ``ignore_index`` count as predicted outside of all regions, and not for specificity.

    Args:
        prediction: integer label map ``(D, H, W)``.
        truth: likewise, on the same grid.
        regions: the regions; all but the background of a softmax are reported.
        spacing: size of a voxel along each axis in mm.
        edges: the edge head's probabilities, ``(F, D, H, W)`` for the F reported regions or
            ``(1, D, H, W)`` for their union, whose scores are repeated for every region.
        edge_grid: where the edges of both label maps are taken, see
            :func:`egcnn.edges.label_edges`; None takes them on these voxels.
        tolerance: tolerance of ``surface_dice`` in mm.

    Returns:
        By region name, the value of each of :data:`COLUMNS`.

    Raises:
        InputError: shapes that differ, label maps that are not integer, or a spacing that is not
            three positive numbers.
    """
    predicted_labels, true_labels = _labels("prediction", prediction), _labels("truth", truth)
    if predicted_labels.shape != true_labels.shape:
        raise InputError(
            f"prediction has shape {tuple(predicted_labels.shape[2:])} and truth "
            f"{tuple(true_labels.shape[2:])}; expected one shape"
        )
    check_spacing(spacing)
    names = regions.reported_names
    predicted = regions.reported(regions.masks(predicted_labels))
    true = regions.reported(regions.masks(true_labels))
    voxels = float(predicted[0, 0].numel())
    if (ignored := regions.ignored(true_labels)) is not None:
        predicted = predicted.masked_fill(ignored, 0)
        voxels -= float(ignored.sum())
    intersection, predicted_size, true_size = _counts(predicted, true)
    outside = voxels - true_size
    rows = {
        "dice": dice(predicted, true),
        "sensitivity": _ratio(intersection, true_size, predicted_size),
        "specificity": _ratio(
            outside - (predicted_size - intersection), outside, voxels - predicted_size
        ),
    }
    edge_head = None if edges is None else torch.as_tensor(edges).cpu()[None]
    if edge_head is not None:
        channels = tuple(edge_head.shape[1:])
        if channels not in ((n, *true.shape[2:]) for n in (1, len(names))):
            raise InputError(
                f"edges have shape {channels}; expected {(len(names), *true.shape[2:])}, or one "
                "channel for the edges of any region"
            )
    rows |= edge_scores_by_source(predicted_labels, true_labels, regions, edge_head, edge_grid)
    result: dict[str, dict[str, float]] = {}
    for index, region in enumerate(names):
        values = {name: float(row[0, index]) for name, row in rows.items()}
        values["hd95"], values["surface_dice"] = _surface(
            predicted[0, index].bool().numpy(), true[0, index].bool().numpy(), spacing, tolerance
        )
        result[region] = {name: values.get(name, math.nan) for name in COLUMNS}
    return result


def summary(
    rows: Sequence[dict[str, dict[str, float]]],
) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and sample standard deviation over cases of the metrics of :func:`case_metrics`.

    NaN values are ignored; if a metric is NaN in every case, both are NaN.

    Args:
        rows: one entry per case, all with the same regions and metrics.

    Returns:
        ``(mean, std)`` by region and metric; the deviation of a single case is 0.

    Raises:
        InputError: no case.
    """
    if not rows:
        raise InputError("summary: no case; expected at least one")
    return {
        region: {
            metric: mean_and_deviation([row[region][metric] for row in rows]) for metric in metrics
        }
        for region, metrics in rows[0].items()
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the values that are not NaN; 0 for a single value."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
