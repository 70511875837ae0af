"""Lesion-wise scores: every connected part of a region counts the same, however small it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from egcnn.errors import not_installed


def check_installed() -> None:
    """Raise InputError if panoptica is not installed."""
    try:
        import panoptica  # noqa: F401
    except ImportError:
        raise not_installed("lesions", "panoptica", "lesions") from None


def lesion_scores(prediction: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """Score one region by its lesions, as BraTS does since 2023, computed by panoptica.

    A lesion is a connected part (26 neighbours). A true one is found if a predicted one overlaps
    it; further ones that overlap are merged with that if this brings them closer. BraTS also
    dilates true lesions first, and leaves out small ones; this does not.

    ``lesion_dice`` is the mean over all lesions, where those missed and those falsely predicted
    count as 0; ``lesion_f1`` is that of their detection. Both are 1 if there is no lesion at all.
    ``lesions_missed`` and ``lesions_false`` are counts.

    Source: Kofler et al. (2023), arXiv 2312.02608.

    Args:
        prediction: binary region ``(D, H, W)``.
        truth: likewise.

    Returns:
        By name in ``egcnn.metrics.LESION_METRICS``.

    Raises:
        InputError: panoptica is not installed.
    """
    check_installed()
    import panoptica
    from panoptica.instance_matcher import MaximizeMergeMatching
    from panoptica.metrics import Metric

    panoptica.disable_citation_reminder()
    any_overlap = 1e-9
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=MaximizeMergeMatching(Metric.IOU, any_overlap),
        instance_metrics=[Metric.DSC],
        global_metrics=[],
    )
    arrays = (np.ascontiguousarray(mask != 0, dtype=np.uint8) for mask in (prediction, truth))
    found = evaluator.evaluate(*arrays)["ungrouped"]
    hits, false, missed = (int(getattr(found, name)) for name in ("tp", "fp", "fn"))
    dice = hits * float(found.sq_dsc) if hits else 0.0
    lesions = hits + false + missed
    return {
        "lesion_dice": dice / lesions if lesions else 1.0,
        "lesion_f1": 2 * hits / (2 * hits + false + missed) if lesions else 1.0,
        "lesions_missed": float(missed),
        "lesions_false": float(false),
    }
