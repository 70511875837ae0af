"""Hyperparameters: chosen for a dataset, checked, read from texts and from earlier versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from egcnn import legacy
from egcnn.data import BRATS, Dataset
from egcnn.data.case import Case
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError
from egcnn.regions import Regions
from egcnn.training import PRESETS, TrainingConfig, plan

CONFIG = TrainingConfig(PreprocessingSettings((8, 16, 24), None), seed=3)


def headers(folder: Path, shape: tuple[int, int, int], affine: np.ndarray) -> tuple[Case, ...]:
    path = folder / f"{'x'.join(map(str, shape))}.nii.gz"
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    nib.save(image, path)
    return (Case(path.name, (path,)),)


def dataset(folder: Path, shapes: list[tuple[int, int, int]], **change: object) -> Dataset:
    cases = [case for shape in shapes for case in headers(folder, shape, np.diag([-1.0, -1, 1, 1]))]
    regions = Regions(("background", "organ"), ((0,), (1,)), "softmax")
    return replace(Dataset("decathlon", folder, tuple(cases), ("MRI",), regions), **change)


def test_plan_for_small_volumes(tmp_path: Path) -> None:
    small = dataset(tmp_path, [(30, 51, 37), (35, 50, 36), (40, 47, 32)])
    config = plan(small, torch.device("cpu"))
    # The median shape rounded up to multiples of 8, taken whole.
    assert config.preprocessing.patch == (40, 56, 40)
    assert config.network.backbone.filters == 8
    # Front and back may distinguish two organs; nested regions differ in appearance.
    assert 1 not in config.augmentation.flip_axes
    assert plan(replace(small, regions=BRATS), torch.device("cpu")).augmentation.flip_axes == (
        0,
        1,
        2,
    )


def test_plan_for_ct(tmp_path: Path) -> None:
    config = plan(dataset(tmp_path, [(300, 100, 400)], modalities=("CT",)), torch.device("cpu"))
    assert config.preprocessing.normalization == "ct"
    assert config.preprocessing.patch == (176, 104, 176)


def test_plan_for_brats_is_the_papers(tmp_path: Path) -> None:
    brats = dataset(tmp_path, [(240, 240, 155)], layout="brats", regions=BRATS)
    config = plan(brats, torch.device("cpu"))
    assert config.preprocessing.patch == (160, 192, 128)
    assert (config.network.backbone.filters, config.epochs, config.batch_size) == (32, 300, 8)
    assert (config.lr, config.lr_power, config.fraction) == (1e-4, 0.9, 0.2)
    assert config.preprocessing.spacing == (1.0, 1.0, 1.0)
    assert config.augmentation.flip_axes == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 0}, "epochs: 0; expected at least 1"),
        ({"filters": 0}, "filters: 0; expected at least 1"),
        ({"lr": float("nan")}, "lr: nan; expected a finite number"),
        ({"batch_size": 3, "devices": 2}, "batch_size: 3 does not divide among 2 devices"),
        ({"precision": "fp8"}, "precision: 'fp8'; expected one of"),
        ({"overlap": 1.0}, r"overlap: 1\.0"),
        ({"seed": -1}, "seed: -1"),
        ({"tau": 0.0}, r"tau: 0\.0; expected a temperature above 0"),
        ({"tau_end": 0.0}, r"tau_end: 0\.0; expected a temperature above 0"),
    ],
)
def test_config_is_checked(change: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        CONFIG.change(change)


def test_config_round_trip() -> None:
    changed = CONFIG.parse(["gate=voxel", "blocks_down=1,1", "blocks_up=1", "tau_end=0.1"])
    plain = json.loads(json.dumps(changed.to_dict()))
    assert TrainingConfig.from_dict(plain) == changed
    assert legacy.config(plain) == plain


#: A ``config.json`` of version 0.1.0; no value is today's default.
FLAT = {
    **{"patch": [16, 24, 8], "backbone": "unet", "edge": False, "filters": 4, "dropout": 0.2},
    **{"gate": "voxel", "gate_activation": "relu_sigmoid", "edge_channels": 5},
    **{"residual": "none", "upsampling": "nearest", "edge_seed": "encoder", "edge_head": "union"},
    **{"spacing": [1.0, 1.0, 2.5], "normalization": "ct", "flip_axes": [0]},
    **{"intensity_shift": 0.2, "intensity_scale": 0.3, "foreground": 0.5, "epochs": 7},
    **{"batch_size": 2, "lr": 0.002, "lr_power": 0.5, "semantic": 0.9, "consistency": 0.7},
    **{"edge_weight": 0.25, "include_background": False, "lambda1": 0.5, "lambda2": 3.0},
    **{"edge_reduction": "mean", "weight_negatives": True, "edge_threshold": 0.1, "tau": 0.8},
    **{"tau_end": 0.4, "hard": False, "support": "both", "overlap": 0.25, "fraction": 0.3},
    **{"split_seed": 2, "seed": 5, "precision": "bf16-mixed", "devices": 2, "workers": 1},
}


def test_flat_entries_of_earlier_versions_find_their_place() -> None:
    config = TrainingConfig.from_dict(legacy.config(FLAT))
    entries = config.entries()
    moved = {legacy.FLAT.get(name, name): value for name, value in FLAT.items()}
    moved["network.edge_stream.channels"] = [5]
    assert {name: entries[name] for name in moved} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in moved.items()
    }
    default = TrainingConfig(PreprocessingSettings((1, 1, 1))).entries()
    assert [name for name in moved if entries[name] == default[name]] == []


def test_the_edge_stream_was_as_wide_as_the_main_stream() -> None:
    flat = {**FLAT, "edge_channels": None}
    stream = TrainingConfig.from_dict(legacy.config(flat)).network.edge_stream
    assert (stream.channels, stream.head) == ((32, 16, 8, 4), "linear")


def test_presets() -> None:
    paper = CONFIG.preset("paper")
    stream = paper.network.edge_stream
    assert (stream.activation, stream.residual) == ("relu_sigmoid", "none")
    assert (paper.loss.edge_weight, paper.loss.edge.lambda1, paper.loss.edge.lambda2) == (1, 1, 0.5)
    assert paper.loss.edge.weight_negatives
    assert paper.change({name: CONFIG.entries()[name] for name in PRESETS["paper"]}) == CONFIG
    with pytest.raises(InputError, match="preset: 'best'; expected one of paper"):
        CONFIG.preset("best")


def test_temperature_falls_by_equal_factors() -> None:
    config = CONFIG.change({"epochs": 3, "tau": 1.0, "tau_end": 0.25})
    assert [config.temperature(epoch) for epoch in range(3)] == pytest.approx([1, 0.5, 0.25])
    assert CONFIG.change({"tau": 0.7}).temperature(5) == 0.7
