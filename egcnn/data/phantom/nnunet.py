"""The synthetic brain tumours as a raw dataset of nnU-Net."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egcnn.data.brats import MODALITIES
from egcnn.data.case import Case
from egcnn.data.nifti import write_volume
from egcnn.data.phantom.brats import brats_affine, brats_volumes
from egcnn.files import write_json

#: nnU-Net's values, consecutive, by those of BraTS: 2 necrosis, 1 oedema, 3 enhancing tumour.
_VALUES = np.array([0, 2, 1, 0, 3], np.uint8)
_LABELS = {
    "background": 0,
    "whole tumour": [1, 2, 3],
    "tumour core": [2, 3],
    "enhancing tumour": [3],
}


def write_nnunet_case(root: Path, index: int, shape: tuple[int, int, int], seed: int) -> Case:
    """Write ``root/imagesTr/PHANTOM_000_000{0,1,2,3}.nii.gz`` and ``root/labelsTr``."""
    images, labels = brats_volumes(index, shape, seed)
    name = f"PHANTOM_{index:03d}"
    paths = tuple(root / f"imagesTr/{name}_{channel:04d}.nii.gz" for channel in range(len(images)))
    for image, path in zip(images, paths, strict=True):
        write_volume(image, brats_affine(shape), path)
    label = root / f"labelsTr/{name}.nii.gz"
    write_volume(_VALUES[labels], brats_affine(shape), label)
    return Case(name, paths, label)


def describe_nnunet(root: Path, names: list[str]) -> None:
    """Write ``root/dataset.json``."""
    write_json(
        root / "dataset.json",
        {
            "channel_names": {str(index): name for index, name in enumerate(MODALITIES)},
            "labels": _LABELS,
            "regions_class_order": [1, 2, 3],
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        },
    )
