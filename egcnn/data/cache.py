"""A cache of preprocessed cases, as many as fit into memory."""

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
    """Preprocess groups of cases and keep the first ones that fit into memory.

    Args:
        groups: labelled cases by group name; earlier groups are kept first.
        dataset: defines regions and modalities.
        settings: the preprocessing.
        room: bytes that all groups may occupy together.

    Returns:
        By group name, its cases as ``{"image": (M, D, H, W) float32, "label": (1, D, H, W)
        integers}``. Cases that did not fit are read again each time.

    Raises:
        InputError: a file of a kept case is missing, damaged or inconsistent with its dataset.
    """
    modalities = len(dataset.modalities)
    prepare = Compose(
        [ReadCase(dataset.regions, modalities), preprocessing(settings, dataset.regions)]
    )
    cached = {}
    for name, cases in groups.items():
        count = 0
        for case in cases:
            voxels = math.prod(map(float, prepared_shape(case, settings.spacing)))
            room -= voxels * (4 * modalities + 1)  # float32 images and a label of one byte
            if room < 0:
                break
            count += 1
        # Filled here and not by CacheDataset's own thread: after an error that thread keeps reading
        # and aborts the process at interpreter shutdown.
        group = CacheDataset(
            list(cases), prepare, cache_num=count, progress=False, runtime_cache=True
        )
        for index in range(count):
            group[index]
        cached[name] = group
    return cached
