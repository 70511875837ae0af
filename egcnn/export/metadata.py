"""What a MONAI bundle says of its network: metadata, README and license."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import egcnn
from egcnn.checkpoint import KEY, Trained, description
from egcnn.machine import versions
from egcnn.regions import Regions

_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)


def metadata(trained: Trained) -> dict[str, Any]:
    """``metadata.json`` of a bundle, see the specification and its schema."""
    regions, settings = trained.regions, trained.preprocessing
    used = versions()
    try:
        used["pytorch-ignite"] = version("pytorch-ignite")
    except PackageNotFoundError:
        used["pytorch-ignite"] = "0.4.11"  # the oldest that MONAI supports
    ct = settings.normalization == "ct"
    tensor = {"type": "image", "dtype": "float32", "is_patch_data": True}
    tensor["spatial_shape"] = settings.patch
    image = {
        **tensor,
        "format": "hounsfield" if ct else "magnitude",
        "modality": "CT" if ct else "n/a",
        "num_channels": len(trained.modalities),
        "value_range": [-1, 1] if ct else [],
        "channel_def": _numbered(trained.modalities),
    }
    logits = {
        **tensor,
        "format": "labels" if regions.exclusive else "classes",
        "num_channels": len(regions),
        "value_range": [],
        "channel_def": _numbered(regions.names),
    }
    label_map = {
        **tensor,
        "format": "segmentation",
        "dtype": "int16",
        "is_patch_data": False,
        "spatial_shape": ["*", "*", "*"],
        "num_channels": 1,
        "value_range": [0, max(regions.values)],
        "channel_def": _label_names(regions),
    }
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by egcnn {egcnn.__version__}"},
        "monai_version": used["monai"],
        "pytorch_version": used["torch"],
        "numpy_version": used["numpy"],
        "required_packages_version": {
            name: used[name] for name in ("egcnn", "nibabel", "pytorch-ignite")
        },
        "task": f"Segmentation of {', '.join(regions.reported_names)}",
        "description": (
            f"{'EG-CNN around ' if trained.settings.edge else ''}{trained.settings.backbone.name} "
            f"with {trained.settings.backbone.filters} filters, for {', '.join(trained.modalities)}"
        ),
        "authors": "Not stated",
        "copyright": "Not stated",
        "intended_use": "Research; not for diagnosis or treatment",
        "references": [
            "Hatamizadeh, Terzopoulos and Myronenko. Edge-Gated CNNs for Volumetric Semantic "
            "Segmentation of Medical Images. arXiv 2002.04207 (2020)."
        ],
        "network_data_format": {
            "inputs": {"image": image},
            "outputs": {"pred": logits},
            "post_processed_outputs": {"pred": label_map},
        },
        # As text: MONAI evaluates the strings of its configurations.
        KEY: description(trained),
    }


def _numbered(names: tuple[str, ...]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _label_names(regions: Regions) -> dict[str, str]:
    """Each label value, and the regions that it belongs to."""
    names = {
        value: [name for name, of in zip(regions.names, regions.labels, strict=True) if value in of]
        for value in regions.values
    }
    return {str(value): ", ".join(some) or "no region" for value, some in names.items()}


def readme(trained: Trained, name: str) -> str:
    """``docs/README.md`` of a bundle."""
    told = metadata(trained)
    settings, regions = trained.preprocessing, trained.regions
    spacing = "each volume's own" if settings.spacing is None else _times(settings.spacing) + " mm"
    packages = " ".join(
        f"'{package}>={number}'" for package, number in told["required_packages_version"].items()
    )
    labels = "\n".join(f"| {value} | {names} |" for value, names in _label_names(regions).items())
    return f"""# {name}

{told["task"]}: {told["description"]}.

Input: {", ".join(trained.modalities)}, in this order, as one NIfTI file each or one with the
channels last. Voxel size: {spacing}. Window: {_times(settings.patch)} voxels.

| label value | regions |
|---|---|
{labels}

## Predict

    pip install 'monai[fire]' {packages}
    python -m monai.bundle run --config_file configs/inference.json \\
        --dataset_dir DATA --output_dir OUT

from this folder. DATA is a folder of scans, of one case, or a dataset in a layout that egcnn knows.
OUT receives NAME.nii.gz for each case, a label map on the case's own grid.

The labels are those of `egcnn predict`. Where the weights come from is in `configs/metadata.json`.

{told["intended_use"]}.
"""


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


#: ``LICENSE`` of a bundle: only who trained the network can license its weights.
LICENSE = """\
The configuration files of this bundle were written by egcnn, which is licensed under the Apache
License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).

No license has been stated for the weights in models/. Whoever trained them, and whoever owns the
data that they were trained on, decides; replace this text by that decision before passing the
bundle on.
"""
