"""How good a segmentation is: overlap, boundary distance and boundary overlap, per region."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import ArrayLike
from torch import Tensor

from egcnn import ops
from egcnn.errors import InputError
from egcnn.regions import Regions

#: HD95 in mm where exactly one of prediction and truth is empty: BraTS's, the diagonal of its
#: 240 x 240 x 155 volumes.
WORST_HD95 = 373.13

#: The columns of a table, in their order.
METRICS = ("dice", "sensitivity", "specificity", "hd95", "surface_dice", "edge_f1")


def _share(part: Tensor, whole: Tensor, other: Tensor) -> Tensor:
    """``part / whole``; where ``whole`` is 0, 1 if ``other`` is 0 too and else 0."""
    return torch.where(whole > 0, part / whole.clamp(min=1), (other == 0).to(part.dtype))


def _counts(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels in both, in the prediction and in the truth, each ``(B, R)`` float64."""
    if prediction.shape != truth.shape or prediction.ndim != 5:
        raise InputError(
            f"metrics: prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)}; "
            "wanted binary regions of one shape (B, R, D, H, W)"
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
        ``(B, R)`` float64; 1 where both are empty, 0 where one is.

    Raises:
        InputError: shapes that differ or are not five-dimensional.
    """
    both, predicted, true = _counts(prediction, truth)
    total = predicted + true
    return _share(2 * both, total, total)


def _surface(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """HD95 in mm and normalised surface Dice of two binary volumes ``(D, H, W)``."""
    if not prediction.any() and not truth.any():
        return 0.0, 1.0
    if not prediction.any() or not truth.any():
        return WORST_HD95, 0.0
    with warnings.catch_warnings():
        # MONAI 1.6 warns of a deprecated argument that it passes to itself.
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
            f"{name} is {array.dtype} of shape {array.shape}; wanted an integer label map (D, H, W)"
        )
    return torch.from_numpy(array.astype(np.int64))[None, None]


def case_metrics(
    prediction: ArrayLike | Tensor,
    truth: ArrayLike | Tensor,
    regions: Regions,
    spacing: Sequence[float],
    *,
    tolerance: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Every metric of every reported region of one case.

    ``dice``, ``sensitivity``, ``specificity``; ``hd95``, the 95th percentile of the distances
    between the surfaces, the larger of both directions; ``surface_dice``, the share of both
    surfaces within ``tolerance`` of the other (Nikolov et al., 2018, arXiv 1809.04430, on surface
    voxels); ``edge_f1``, the F1 score of the Sobel edges of prediction and truth, the method's own
    two-voxel band. The surface of a region is its voxels with a face to the outside.

    Where prediction and truth are both empty all are 1 and HD95 is 0; where one is, all but
    specificity are 0 and HD95 is :data:`WORST_HD95`. A truth without outside has specificity 1 if
    the prediction has none either, else 0.

    Args:
        prediction: integer label map ``(D, H, W)``.
        truth: likewise, on the same grid.
        regions: what is reported: all but the background of a softmax.
        spacing: size of a voxel along each axis in mm.
        tolerance: of ``surface_dice``, in mm.

    Returns:
        The names in :data:`METRICS` to their values, by the region's name.

    Raises:
        InputError: shapes that differ, no integers, or a spacing that is not three positive
            numbers.
    """
    predicted_labels, true_labels = _labels("prediction", prediction), _labels("truth", truth)
    if predicted_labels.shape != true_labels.shape:
        raise InputError(
            f"prediction has shape {tuple(predicted_labels.shape[2:])} and truth "
            f"{tuple(true_labels.shape[2:])}; wanted one shape"
        )
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"spacing is {tuple(spacing)}; wanted three positive numbers of mm")
    chosen = list(regions.foreground)
    predicted = regions.masks(predicted_labels)[:, chosen]
    true = regions.masks(true_labels)[:, chosen]
    both, predicted_size, true_size = _counts(predicted, true)
    voxels = float(predicted[0, 0].numel())
    outside = voxels - true_size
    rows = {
        "dice": dice(predicted, true),
        "sensitivity": _share(both, true_size, predicted_size),
        "specificity": _share(outside - (predicted_size - both), outside, voxels - predicted_size),
        "edge_f1": dice(ops.sobel_edges(predicted), ops.sobel_edges(true)),
    }
    result: dict[str, dict[str, float]] = {}
    for index, channel in enumerate(chosen):
        values = {name: float(row[0, index]) for name, row in rows.items()}
        values["hd95"], values["surface_dice"] = _surface(
            predicted[0, index].bool().numpy(), true[0, index].bool().numpy(), spacing, tolerance
        )
        result[regions.names[channel]] = {name: values[name] for name in METRICS}
    return result


def summary(
    rows: Sequence[dict[str, dict[str, float]]],
) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and sample standard deviation over cases of what :func:`case_metrics` returned.

    Args:
        rows: one entry per case, all with the same regions and metrics.

    Returns:
        ``(mean, std)`` by region and metric; the deviation of a single case is 0.

    Raises:
        InputError: no case.
    """
    if not rows:
        raise InputError("summary: no case; wanted at least one")
    return {
        region: {
            metric: (
                float(np.mean(values := [row[region][metric] for row in rows])),
                float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
            )
            for metric in metrics
        }
        for region, metrics in rows[0].items()
    }
