"""Where errors lie and how good edge probabilities are, counted over the voxels of cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from egcnn.edges import EdgeGrid
from egcnn.metrics import THRESHOLDS, threshold_counts
from egcnn.panels import true_edges
from egcnn.regions import Regions

Counts = NDArray[np.float64]
#: Distances from the boundary are counted up to this, in mm.
FARTHEST = 10.0


@dataclass
class Measures:
    """Sums over cases, by reported region.

    Args:
        width: width of a bin of distances, in mm.
        wrong: wrong voxels by distance from the true boundary, ``(F, bins)``.
        voxels: all voxels, likewise.
        hits: true edge voxels at or above each threshold, ``(F, thresholds)``; see
            :func:`egcnn.metrics.threshold_counts`.
        called: all voxels at or above it.
        edges: true edge voxels, ``(F,)``.
        cases: the number of cases.
        edge_cases: the number of those with edge probabilities.
        union: the edge probabilities are those of any region, and stand in the first place.
    """

    width: float
    wrong: Counts
    voxels: Counts
    hits: Counts
    called: Counts
    edges: Counts
    cases: int = 0
    edge_cases: int = 0
    union: bool = False

    @property
    def distances(self) -> Counts:
        """The middle of each bin in mm, negative inside the region."""
        bins = self.wrong.shape[1]
        return (np.arange(bins) - (bins - 1) / 2) * self.width


def measures(regions: Regions, spacing: float) -> Measures:
    """Sums over no case.

    Args:
        regions: the regions of the cases.
        spacing: the largest voxel size of all, in mm, which the bins are at least as wide as.
    """
    width = max(1.0, math.ceil(spacing))
    count = len(regions.foreground)
    bins = 2 * math.ceil(FARTHEST / width)
    wrong, voxels = np.zeros((2, count, bins))
    hits, called = np.zeros((2, count, THRESHOLDS))
    return Measures(width, wrong, voxels, hits, called, np.zeros(count))


def add_case(
    sums: Measures,
    truth: NDArray[Any],
    prediction: NDArray[Any],
    edges: NDArray[Any] | None,
    regions: Regions,
    spacing: Sequence[float],
    grid: EdgeGrid | None = None,
) -> None:
    """Count a case.

    Args:
        sums: receives the counts.
        truth: label map ``(D, H, W)``.
        prediction: likewise.
        edges: edge probabilities ``(F, D, H, W)`` or ``(1, D, H, W)``; None if there are none.
        regions: the regions.
        spacing: voxel size in mm.
        grid: where the true edges are taken; see :func:`egcnn.edges.label_edges`.
    """
    sums.cases += 1
    # No label is negative.
    ignored = -1 if regions.ignore_index is None else regions.ignore_index
    counted = np.not_equal(truth.astype(np.int32), ignored)
    for place, channel in enumerate(regions.foreground):
        inner, predicted = (np.isin(x, regions.labels[channel]) for x in (truth, prediction))
        if not inner.any() or inner.all():
            continue
        box = near(inner, FARTHEST, spacing)
        distance = _signed_distance(inner[box], spacing)
        bins = np.floor(distance / sums.width + sums.wrong.shape[1] / 2).astype(np.int64)
        inside = (bins >= 0) & (bins < sums.wrong.shape[1]) & counted[box]
        wrong = inside & (inner[box] != predicted[box])
        for count, voxels in ((sums.wrong, wrong), (sums.voxels, inside)):
            count[place] += np.bincount(bins[voxels], minlength=count.shape[1])
    if edges is None:
        return
    sums.edge_cases += 1
    sums.union = len(edges) == 1 < len(regions.foreground)
    true = true_edges(truth, regions, grid, union=sums.union).astype(bool)
    for place in range(len(true)):
        pair = (torch.from_numpy(np.ascontiguousarray(x[place][counted])) for x in (edges, true))
        hits, called = threshold_counts(*pair)
        sums.hits[place] += hits.numpy()
        sums.called[place] += called.numpy()
        sums.edges[place] += float(hits[-1])


def near(
    mask: NDArray[np.bool_], margin: float, spacing: Sequence[float]
) -> tuple[slice, slice, slice]:
    """The box around a mask's voxels with a margin in mm; the whole volume if there are none."""
    slices = []
    for axis, size in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        if not len(found):
            return (slice(None), slice(None), slice(None))
        more = math.ceil(margin / spacing[axis])
        slices.append(slice(max(0, int(found[0]) - more), min(size, int(found[-1]) + 1 + more)))
    return slices[0], slices[1], slices[2]


def _signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float]) -> Counts:
    """Distance in mm of voxel centres from the faces of a mask, negative inside."""
    outside, inside = (distance_transform_edt(m, sampling=spacing) for m in (~mask, mask))
    # The face lies half a voxel before the nearest voxel of the other side.
    half = min(spacing) / 2
    distance: Counts = np.where(mask, half - inside, outside - half)
    return distance
