"""What a dataset holds and what is wrong with it, found before anything long starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from torch import Tensor

from egcnn.data.case import Case, Dataset, Spacing, check_problems, read_image, read_label
from egcnn.data.nifti import Grid, check_axes, check_grid, grid_of, open_volume
from egcnn.errors import InputError
from egcnn.machine import usable_cores

# Each thread holds one volume.
_MOST_THREADS = 4


@dataclass(frozen=True)
class CaseReport:
    """What was found in one case.

    Args:
        name: the case's name.
        labelled: whether it has a label map.
        shape: of its array, or None if no header could be read.
        spacing: voxel size in mm along the axes of the array.
        orientation: anatomical direction of each axis, such as ``"IPL"``.
        labels: number of voxels by label value; empty without a readable label map.
        problems: what is wrong, a sentence each.
    """

    name: str
    labelled: bool = False
    shape: tuple[int, int, int] | None = None
    spacing: Spacing | None = None
    orientation: str | None = None
    labels: dict[int, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def inspect_cases(dataset: Dataset, *, images: bool = False) -> Iterator[CaseReport]:
    """Look at every case: at the headers of all files and the voxels of label maps.

    Args:
        dataset: see :func:`egcnn.data.find_dataset`.
        images: read the voxels of the images too, which takes much longer.

    Yields:
        a report for each of the dataset's ``problems`` and then for each case, in order.
    """
    for name, problem in dataset.problems.items():
        yield CaseReport(name, problems=(problem,))
    with ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as threads:
        yield from threads.map(partial(_inspect, dataset, images), dataset.cases)


def check_headers(dataset: Dataset, cases: Iterable[Case]) -> None:
    """Check the headers of all files, so that a bad case ends a run before it starts.

    Raises:
        InputError: the first problem, with the number of others.
    """
    modalities = len(dataset.modalities)
    check_problems(
        dataset.root, [problem for case in cases for problem in _headers(case, modalities)[1]]
    )


def check_images(cases: Iterable[Case], modalities: int) -> None:
    """Check the headers of images that are to be predicted, before the first one is.

    Labels are not looked at, and a sheared affine is no problem.

    Raises:
        InputError: the first problem, with the number of others.
    """
    images = (replace(case, label=None) for case in cases)
    found = [p for case in images for p in _headers(case, modalities, sheared=True)[1]]
    if found:
        raise InputError(found[0] + (f" ({len(found) - 1} more)" if len(found) > 1 else ""))


def summarize(dataset: Dataset, reports: Sequence[CaseReport]) -> dict[str, Any]:
    """The dataset and its reports as plain data for JSON.

    ``labels`` has, per value, the number of label maps that hold it and its mean share of their
    voxels.
    """
    shares = [
        {value: count / sum(report.labels.values()) for value, count in report.labels.items()}
        for report in reports
        if report.labels
    ]
    return {
        "root": str(dataset.root),
        "layout": dataset.layout,
        "modalities": list(dataset.modalities),
        "normalization": dataset.normalization,
        "training_spacing": None if dataset.spacing is None else list(dataset.spacing),
        "regions": dataset.regions.to_dict(),
        "labelled": sum(report.labelled for report in reports),
        "unlabelled": [r.name for r in reports if not r.labelled and not r.problems],
        "labels": {
            str(value): {
                "cases": sum(share[value] > 0 for share in shares),
                "share": float(np.mean([share[value] for share in shares])),
            }
            for value in (dataset.regions.values if shares else ())
        },
        "problems": {report.name: list(report.problems) for report in reports if report.problems},
        "cases": [
            {
                "name": report.name,
                "labelled": report.labelled,
                "shape": report.shape,
                "spacing": report.spacing,
                "orientation": report.orientation,
                "labels": {str(value): count for value, count in report.labels.items()},
                "problems": list(report.problems),
            }
            for report in reports
        ],
    }


def _inspect(dataset: Dataset, images: bool, case: Case) -> CaseReport:
    modalities = len(dataset.modalities)
    grid, found = _headers(case, modalities)
    problems = list(found)
    labels: dict[int, int] = {}
    if not problems:  # else the voxels are of no use, or cannot be read
        try:
            if case.label is not None:
                labels = _counts(read_label(case, dataset.regions).as_tensor(), dataset)
            if images:
                read_image(case, modalities)
        except InputError as error:
            problems.append(str(error))
    labelled = case.label is not None
    if grid is None:
        return CaseReport(case.name, labelled, problems=tuple(problems))
    shape, affine = grid
    x, y, z = (float(size) for size in voxel_sizes(affine))
    orientation = "".join(aff2axcodes(affine))
    return CaseReport(case.name, labelled, shape, (x, y, z), orientation, labels, tuple(problems))


def _headers(
    case: Case, modalities: int, *, sheared: bool = False
) -> tuple[Grid | None, tuple[str, ...]]:
    """The grid of a case, and what is wrong with its files as far as headers tell.

    With ``sheared``, such an affine is not.
    """
    first: tuple[Path, Grid] | None = None
    channels = 0
    problems = []
    for path in case.files:
        try:
            volume = open_volume(path)
            if first is None:
                first = path, grid_of(volume)
                if not sheared:
                    check_axes(*first)
            else:
                check_grid(path, volume, *first)
        except InputError as error:
            problems.append(str(error))
            continue
        rest = volume.shape[3:]
        if len(rest) > 1 or (path is case.label and rest not in ((), (1,))):
            axes = "three axes" + ("" if path is case.label else ", or channels as a fourth")
            problems.append(f"{path}: shape {volume.shape}; expected {axes}")
        if path is not case.label:
            channels += math.prod(rest)
    if not problems and channels != modalities:
        files = ", ".join(map(str, case.images))
        problems.append(f"{files}: {channels} channels; expected {modalities}, one per modality")
    return None if first is None else first[1], tuple(problems)


def _counts(labels: Tensor, dataset: Dataset) -> dict[int, int]:
    """The number of voxels of each value in a label map ``(1, D, H, W)``."""
    values = dataset.regions.values
    counts = np.zeros(max(values) + 1, np.int64)
    for plane in labels[0].numpy():  # bincount takes eight bytes a voxel
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {value: int(counts[value]) for value in values}
