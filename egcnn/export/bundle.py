"""Networks as MONAI bundles: folders that ``python -m monai.bundle run`` predicts with.

Specification: https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from egcnn.checkpoint import Trained
from egcnn.checks import DEFAULT_OVERLAP
from egcnn.data.nifti import write_volume
from egcnn.data.transforms import HOUNSFIELD_LIMIT, RAS
from egcnn.errors import InputError, shown
from egcnn.export.metadata import LICENSE, metadata, readme
from egcnn.export.network import InferenceNetwork
from egcnn.files import save_tensors, write_json, write_text
from egcnn.regions import Regions
from egcnn.windows import segment


class WindowInferer(Inferer):
    """The sliding window of ``egcnn predict`` for MONAI's evaluators: images to probabilities.

    Args:
        regions: how logits become probabilities.
        patch: see :func:`egcnn.windows.segment`.
        stride: likewise.
        overlap: likewise.
    """

    def __init__(
        self,
        regions: Regions,
        patch: tuple[int, int, int],
        stride: int,
        overlap: float = DEFAULT_OVERLAP,
    ) -> None:
        self.regions = regions
        self.patch = patch
        self.stride = stride
        self.overlap = overlap

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Images ``(B, M, D, H, W)`` to probabilities ``(B, R, D, H, W)``, float32."""
        found, _ = segment(
            network,  # type: ignore[arg-type]
            _plain(inputs),
            self.regions,
            self.patch,
            stride=self.stride,
            overlap=self.overlap,
        )
        return _like(inputs, found)


class Decoded(MapTransform):
    """Probabilities ``(R, D, H, W)`` to a label map ``(1, D, H, W)``, int16.

    Args:
        keys: of the probabilities.
        regions: see :meth:`egcnn.regions.Regions.decode`.
    """

    def __init__(self, keys: KeysCollection, regions: Regions) -> None:
        super().__init__(keys)
        self.regions = regions

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode what is under the keys."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = _like(d[key], self.regions.decode(_plain(d[key])[None])[0])
        return d


class Written(MapTransform):
    """Write label maps ``(1, D, H, W)`` as ``egcnn predict`` does: ``NAME.nii.gz``, named by case.

    MONAI 1.6's ``SaveImaged`` fails on volumes whose axes are permuted.

    Args:
        keys: of the label maps, with affine; ``"name"`` holds the case's name.
        output_dir: created if missing.
    """

    def __init__(self, keys: KeysCollection, output_dir: str) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write what is under the keys, which stays as it is."""
        d = dict(data)
        for key in self.key_iterator(d):
            labels = _plain(d[key])[0].cpu().numpy()
            path = self.output_dir / f"{d['name']}.nii.gz"
            write_volume(labels, d[key].affine.numpy(), path)
        return d


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _like(source: Tensor, tensor: Tensor) -> Tensor:
    """A tensor with the affine and the applied transforms of another, if that has any."""
    if not isinstance(source, MetaTensor):
        return tensor
    return MetaTensor(tensor).copy_meta_from(source)


def write_bundle(trained: Trained, folder: str | Path) -> None:
    """Write a MONAI bundle, whose ``configs/inference.json`` predicts what ``egcnn predict`` does.

    Args:
        trained: the network.
        folder: new or empty; its name is the bundle's.

    Raises:
        InputError: the folder holds something or cannot be written, or a name of a region or a
            modality is one that MONAI would run as code.
    """
    folder = Path(folder)
    _check_names(trained)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: is there already; expected a new or an empty folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Next to it, so that what is there under its name is always whole.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as part:
            bundle = Path(part) / folder.name
            write_json(bundle / "configs/metadata.json", metadata(trained))
            write_json(bundle / "configs/inference.json", _inference(trained))
            write_text(bundle / "docs/README.md", readme(trained, folder.name))
            write_text(bundle / "LICENSE", LICENSE)
            weights = bundle / "models/model.pt"
            weights.parent.mkdir()
            save_tensors(InferenceNetwork(trained.network).state_dict(), weights, folder)
            os.replace(bundle, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _check_names(trained: Trained) -> None:
    """Refuse names that MONAI evaluates: a text that begins with ``$``, ``@`` or ``%``.

    A checkpoint may come from anybody.
    """
    for kind, names in (("regions", trained.regions.names), ("modalities", trained.modalities)):
        for name in names:
            if name.startswith(("$", "@", "%")):
                raise InputError(
                    f"{kind}: {shown(name)} begins with {name[0]}, by which MONAI knows code; "
                    "expected a name that is a word"
                )


def _network(trained: Trained) -> dict[str, Any]:
    """The network as a MONAI component: from its settings, which need no pickle."""
    settings = {
        "_target_": "egcnn.nn.NetworkSettings.from_dict",
        "data": trained.settings.to_dict(),
    }
    built = {
        "_target_": "egcnn.nn.build_network",
        "settings": settings,
        "in_channels": len(trained.modalities),
        "out_channels": len(trained.regions),
        "exclusive": trained.regions.exclusive,
    }
    return {"_target_": "egcnn.export.InferenceNetwork", "network": built}


def _preprocessing(trained: Trained) -> list[dict[str, Any]]:
    """The transforms of :func:`egcnn.data.transforms.preprocessing` by MONAI's, which invert."""
    settings = trained.preprocessing
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "ensure_channel_first": True},
        {"_target_": "EnsureTyped", "dtype": "$torch.float32"},
        {"_target_": "Orientationd", "axcodes": "RAS", "labels": RAS},
    ]
    if settings.spacing is not None:
        steps.append({"_target_": "Spacingd", "pixdim": settings.spacing, "mode": "bilinear"})
    if settings.normalization == "zscore":
        steps.append({"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True})
    else:
        limits = {"a_min": -HOUNSFIELD_LIMIT, "a_max": HOUNSFIELD_LIMIT}
        limits |= {"b_min": -1.0, "b_max": 1.0}
        steps.append({"_target_": "ScaleIntensityRanged", **limits, "clip": True})
    return [{**step, "keys": "image"} for step in steps]


def _inference(trained: Trained) -> dict[str, Any]:
    """``inference.json``, with the names that MONAI expects of it."""
    postprocessing: list[dict[str, Any]] = [
        {
            "_target_": "Invertd",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "egcnn.export.Decoded", "regions": "@regions"},
        {"_target_": "egcnn.export.Written", "output_dir": "@output_dir"},
    ]
    count = len(trained.modalities)
    return {
        "imports": ["$from pathlib import Path", "$from egcnn.data import read_cases"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "cases": f"$read_cases(Path(@dataset_dir), {count})",
        "regions": {
            "_target_": "egcnn.regions.Regions.from_dict",
            "data": trained.regions.to_dict(),
        },
        "network_def": _network(trained),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(trained)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': [*map(str, case.images)], 'name': case.name} for case in @cases]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "egcnn.export.WindowInferer",
            "regions": "@regions",
            "patch": trained.preprocessing.patch,
            "stride": trained.settings.stride,
            "overlap": DEFAULT_OVERLAP,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{**step, "keys": "pred"} for step in postprocessing],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            # As 'egcnn predict' does by default.
            "amp": "$torch.device(@device).type == 'cuda' and torch.cuda.is_bf16_supported(False)",
            "amp_kwargs": {"dtype": "$torch.bfloat16"},
        },
        "run": ["$@evaluator.run()"],
    }
