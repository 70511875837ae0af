"""A prediction, and its files on the input's own grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egcnn.data.case import Spacing
from egcnn.data.nifti import Header, write_probabilities, write_volume
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError

#: Suffixes of the names of probability files, before ``.nii.gz``: of edges, and of regions.
EDGES = "_edges"
PROBABILITIES = "_probabilities"


@dataclass(frozen=True)
class Prediction:
    """A segmentation on the grid of the input.

    Args:
        labels: label map ``(D, H, W)``, int16.
        probabilities: per region, ``(R, D, H, W)`` float32; None unless they were asked for.
        edges: probability that a voxel is an edge, ``(F, D, H, W)`` float32 for the F reported
            regions, or ``(1, D, H, W)`` for their union (``edges="union"``); ``None`` for a
            network without edge stream.
        affine: the input's ``(4, 4)`` matrix from voxels to mm.
        header: header of the input file, whose geometry the written files copy; None for an image
            that was not read from a file.
    """

    labels: NDArray[np.int16]
    probabilities: NDArray[np.float32] | None
    edges: NDArray[np.float32] | None
    affine: NDArray[np.float64]
    header: Header | None = None


def output_paths(folder: str | Path, name: str) -> tuple[Path, Path, Path]:
    """The paths of the label map, the edge probabilities and the regions' probabilities."""
    label, edges, regions = (
        Path(folder) / f"{name}{suffix}.nii.gz" for suffix in ("", EDGES, PROBABILITIES)
    )
    return label, edges, regions


def write_prediction(
    prediction: Prediction,
    folder: str | Path,
    name: str,
    *,
    edges: bool = False,
    probabilities: bool = False,
    note: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``NAME.nii.gz``, the label map, on the input's own grid.

    Args:
        prediction: a prediction of :func:`egcnn.inference.predict_case`.
        folder: created if missing.
        name: name of the case.
        edges: write ``NAME_edges.nii.gz`` too, the edge probabilities ``(D, H, W, F)``, or
            ``(D, H, W)`` where there is one channel; see
            :func:`egcnn.data.nifti.write_probabilities`.
        probabilities: write ``NAME_probabilities.nii.gz`` too, those of all regions, likewise.
        note: where the prediction comes from; see :func:`egcnn.data.nifti.write_volume`.

    Returns:
        the label map's path.
    """
    path, *others = output_paths(folder, name)
    write_volume(prediction.labels, prediction.affine, path, prediction.header, note=note)
    kinds = ((edges, prediction.edges), (probabilities, prediction.probabilities))
    for other, (requested, channels) in zip(others, kinds, strict=True):
        if requested and channels is not None:
            write_probabilities(channels, prediction.affine, other, prediction.header, note)
        else:
            # An earlier prediction's would be mistaken for this one's.
            other.unlink(missing_ok=True)
    return path


def noted_spacing(note: Mapping[str, Any]) -> Spacing | None:
    """The voxel size in mm at which a prediction's network computes.

    Args:
        note: of :func:`egcnn.data.nifti.read_note`.

    Returns:
        the size along the RAS axes; None if the network keeps each case's own voxels, or the note
        is none of ours.
    """
    # Where it was before it had a place of its own.
    config = note.get("config")
    earlier = config.get("preprocessing") if isinstance(config, Mapping) else None
    try:
        return PreprocessingSettings.from_dict(note.get("preprocessing", earlier)).spacing
    except InputError:
        return None
