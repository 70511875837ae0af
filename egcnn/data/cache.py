"""Preprocessed cases, kept in memory as far as there is room."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from monai.data.dataset import CacheDataset
from monai.transforms.compose import Compose

from egcnn.data.case import Case, Dataset
from egcnn.data.transforms import PreprocessingSettings, ReadCase, prepared_shape, preprocessing


def cache_cases(
    groups: Mapping[str, Sequence[Case]],
    dataset: Dataset,
    settings: PreprocessingSettings,
    room: float,
) -> dict[str, CacheDataset]:
    """Read and preprocess groups of cases, and keep the first ones that fit.

    Args:
        groups: labelled cases by the group's name; memory goes to the first group first.
        dataset: gives regions and modalities.
        settings: the preprocessing.
        room: bytes that all groups may take together.

    Returns:
        Under the group's name its cases as ``{"image": (M, D, H, W) float32, "label": (1, D, H, W)
        integers}``. What did not fit is read anew each time.

    Raises:
        InputError: the file of a kept case is missing, damaged or does not fit its dataset.
    """
    modalities = len(dataset.modalities)
    prepare = Compose(
        [ReadCase(dataset.regions, modalities), preprocessing(settings, dataset.regions)]
    )
    cached = {}
    for name, cases in groups.items():
        count = 0
        for case in cases:
            # float32 images and a label of one byte.
            room -= math.prod(prepared_shape(case, settings.spacing)) * (4 * modalities + 1)
            if room < 0:
                break
            count += 1
        # Filled here and not by CacheDataset's own thread: after an error that one reads on, and
        # aborts the process when the interpreter ends under it.
        group = CacheDataset(
            list(cases), prepare, cache_num=count, progress=False, runtime_cache=True
        )
        for index in range(count):
            group[index]
        cached[name] = group
    return cached
