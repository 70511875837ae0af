from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from egcnn.config import PRESETS, TrainingConfig, plan, prepared_shape
from egcnn.data import Dataset
from egcnn.data.case import Case
from egcnn.errors import InputError
from egcnn.regions import BRATS, Regions

CONFIG = TrainingConfig(patch=(8, 16, 24), spacing=None, flip_axes=(), seed=3)


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
    assert config.patch == (40, 56, 40)
    assert config.filters == 8
    # Front and back may be what tells two organs apart; nested regions are named by their looks.
    assert 1 not in config.flip_axes
    assert plan(replace(small, regions=BRATS), torch.device("cpu")).flip_axes == (0, 1, 2)


def test_plan_for_ct(tmp_path: Path) -> None:
    config = plan(dataset(tmp_path, [(300, 100, 400)], modalities=("CT",)), torch.device("cpu"))
    assert config.normalization == "ct"
    assert config.patch == (176, 104, 176)


def test_plan_for_brats_is_the_papers(tmp_path: Path) -> None:
    brats = dataset(tmp_path, [(240, 240, 155)], layout="brats", regions=BRATS)
    config = plan(brats, torch.device("cpu"))
    assert config.patch == (160, 192, 128)
    assert (config.filters, config.epochs, config.batch_size) == (32, 300, 8)
    assert (config.lr, config.lr_power, config.fraction) == (1e-4, 0.9, 0.2)
    assert config.spacing == (1.0, 1.0, 1.0)
    assert config.flip_axes == (0, 1, 2)


def test_prepared_shape_turns_and_resamples(tmp_path: Path) -> None:
    # Array axes point up, back, right with 5, 2, 1 mm: in RAS order 30, 20 x 2, 10 x 5 mm.
    affine = np.array([[0, 0, 1.0, 0], [0, -2.0, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    (case,) = headers(tmp_path, (10, 20, 30), affine)
    assert prepared_shape(case, (1.0, 1.0, 1.0)) == (30, 40, 50)
    assert prepared_shape(case, None) == (30, 20, 10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 0}, "epochs: 0; wanted at least 1"),
        ({"lr": float("nan")}, "lr: nan; wanted a positive number"),
        ({"batch_size": 3, "devices": 2}, "batch_size: 3 does not divide among 2 devices"),
        ({"precision": "fp8"}, "precision: 'fp8'; wanted one of"),
        ({"overlap": 1.0}, "overlap: 1.0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_config_is_checked(change: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(CONFIG, **change)


def test_config_round_trip_and_unknown_entries() -> None:
    plain = json.loads(json.dumps(CONFIG.to_dict()))
    assert TrainingConfig.from_dict(plain) == CONFIG
    with pytest.raises(InputError, match="unknown entries colour"):
        TrainingConfig.from_dict({**plain, "colour": "red"})


def test_settings_as_text() -> None:
    changed = CONFIG.parse(
        [
            "hard=false",
            "lr = 2e-3",
            "epochs=7",
            "edge_channels=5",
            "spacing=1,1,2.5",
            "patch=[8,8,8]",
            "gate=voxel",
            "tau_end=0.1",
        ]
    )
    assert changed == replace(
        CONFIG,
        hard=False,
        lr=2e-3,
        epochs=7,
        edge_channels=5,
        spacing=(1.0, 1.0, 2.5),
        patch=(8, 8, 8),
        gate="voxel",
        tau_end=0.1,
    )
    assert changed.parse(["edge_channels=null"]).edge_channels is None
    assert CONFIG.parse([]) == CONFIG


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", "there is no entry 'colour'; wanted one of .*weight_negatives"),
        ("epochs", "epochs: ''; wanted int"),
        ("epochs=two", "epochs=two: 'two'; wanted int"),
        ("hard=yes", "'yes'; wanted bool"),
        ("tau_end=0", "tau_end: 0.0; wanted a temperature above 0"),
    ],
)
def test_rejected_settings(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CONFIG.parse([text])


def test_presets() -> None:
    paper = CONFIG.preset("paper")
    assert (paper.gate_activation, paper.residual) == ("relu_sigmoid", "none")
    assert (paper.edge_weight, paper.lambda1, paper.lambda2) == (1, 1, 0.5)
    assert paper.weight_negatives
    assert replace(paper, **{k: getattr(CONFIG, k) for k in PRESETS["paper"]}) == CONFIG
    with pytest.raises(InputError, match="preset: 'best'; expected one of paper"):
        CONFIG.preset("best")


def test_the_consistency_loss_counts_with_the_edge_stream_unless_told() -> None:
    assert CONFIG.consistency_weight == 1
    assert replace(CONFIG, edge=False).consistency_weight == 0
    assert replace(CONFIG, edge=False, consistency=0.3).consistency_weight == 0.3
    assert CONFIG.parse(["consistency=0"]).consistency_weight == 0


def test_temperature_falls_by_equal_factors() -> None:
    config = replace(CONFIG, epochs=3, tau=1.0, tau_end=0.25)
    assert [config.temperature(epoch) for epoch in range(3)] == pytest.approx([1, 0.5, 0.25])
    assert replace(CONFIG, tau=0.7).temperature(5) == 0.7
