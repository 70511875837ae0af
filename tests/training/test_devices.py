"""Two processes, each with half of every batch, against one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from egcnn.data import Dataset, open_dataset, split, write_volume
from egcnn.data.phantom import write_brats
from egcnn.training import LAST, SegmentationTask, TrainingConfig, plan, read_history
from egcnn.training.batches import CaseData

from ..tolerances import WRITTEN

LR = 1e-5
OPTIONS = {"filters": 2, "patch": (16, 16, 16), "lr": LR, "precision": "32-true"}
DIFFERENCE = 1e-5


class _OneOf:
    """Stands in for the trainer of one of several devices, none of which waits for the others."""

    current_epoch = 0

    def __init__(self, rank: int, replicas: int) -> None:
        self.global_rank, self.world_size = rank, replicas
        self.strategy = self

    def reduce(self, values: torch.Tensor, reduce_op: str) -> torch.Tensor:
        return values + (values[-1] == 0)  # some device has a case


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data")
    write_brats(root, 8, shape=(16, 18, 17), seed=1)
    dataset = open_dataset(root)
    # A case without an edge has NaN scores, so devices hold different numbers of cases.
    label = split(dataset, 0.5)[1][0].label
    assert label is not None
    volume = nib.load(label)
    write_volume(np.zeros(volume.shape, np.uint8), volume.affine, label)
    return dataset


def ten_steps(
    dataset: Dataset, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Float64 gradients of each step, averaged as in training, and the weights after them."""
    monkeypatch.setattr(SegmentationTask, "trainer", _OneOf(0, replicas))
    monkeypatch.setattr(SegmentationTask, "log", lambda *_, **__: None)
    monkeypatch.setattr(SegmentationTask, "current_epoch", 0)
    parts = config.accumulate
    task = SegmentationTask(config, dataset).double()
    optimizer = task.configure_optimizers()["optimizer"]
    loaders = []
    for rank in range(replicas):
        data = CaseData(config, dataset, dataset.cases[:5], dataset.cases[5:])
        trainer: Any = _OneOf(rank, replicas)
        data.trainer = trainer
        data.setup("fit")
        loaders.append(data.train_dataloader())
    steps: list[list[torch.Tensor]] = []
    for epoch in range(5):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        turns = list(zip(*loaders, strict=True))
        for first in range(0, len(turns), parts):
            optimizer.zero_grad()
            for batch in (batch for turn in turns[first : first + parts] for batch in turn):
                loss = task.training_step({**batch, "image": batch["image"].double()}, 0)
                (loss / (replicas * parts)).backward()
            weights = list(task.network.parameters())
            steps.append([weight.grad.clone() for weight in weights if weight.grad is not None])
            optimizer.step()
    return steps, [weight.detach() for weight in weights]


@pytest.mark.parametrize(("replicas", "parts"), [(2, 2), (4, 1)])
def test_any_division_of_a_batch_trains_the_same(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, replicas: int, parts: int
) -> None:
    # Five cases: every second step has one case, and some devices have none of their own.
    options = {**OPTIONS, "dropout": 0.2, "batch_size": 4}
    config = plan(dataset, torch.device("cpu")).change(options)
    whole = ten_steps(dataset, config, monkeypatch, 1)
    divided = ten_steps(dataset, config.change({"accumulate": parts}), monkeypatch, replicas)
    assert len(whole[0]) == 10
    torch.testing.assert_close(divided, whole, rtol=1e-6, atol=1e-8)


def test_volumes_are_validated_once(dataset: Dataset) -> None:
    config = plan(dataset, torch.device("cpu"))
    weights = []
    for rank in range(3):
        data = CaseData(config, dataset, dataset.cases[:6], dataset.cases[6:])
        trainer: Any = _OneOf(rank, 3)
        data.trainer = trainer
        data.setup("fit")
        weights += [item["weight"] for item in data.val_dataloader()]
    assert weights == [1, 1, 0]


@pytest.mark.slow
@pytest.mark.thorough
def test_two_devices_find_the_numbers_of_one(dataset: Dataset, tmp_path: Path) -> None:
    def train(devices: int) -> Path:
        output = tmp_path / f"run{devices}"
        # Two steps an epoch, with a checkpoint after each.
        settings = [f"{name}={value}" for name, value in OPTIONS.items() if name != "patch"]
        settings += ["fraction=0.5", "patch=16,16,16", "keep=20"]
        options = f"--epochs 5 --batch-size 2 --device cpu --devices {devices}"
        command = [sys.executable, "-m", "egcnn", "train", dataset.root, "-o", output]
        command += [*options.split(), "--checkpoint-minutes", "1e-9"]
        command += [word for setting in settings for word in ("--set", setting)]
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("epoch 5/5") == 1
        return output

    runs = [train(devices) for devices in (1, 2)]
    files = [sorted(path.name for path in run.rglob("*.*")) for run in runs]
    assert [len(names) for names in files] == [len(files[0])] * 2  # one writer
    states = [
        [torch.load(path, weights_only=True) for path in (oldest(run), run / LAST)] for run in runs
    ]
    (first, last), (first2, last2) = states
    assert first["global_step"] == first2["global_step"] == 1
    # Adam's first moment after a step is a tenth of the gradient.
    step, step2 = (
        [10 * state["exp_avg"] for state in data["optimizer_states"][0]["state"].values()]
        for data in (first, first2)
    )
    torch.testing.assert_close(step2, step, rtol=0, atol=DIFFERENCE)
    assert last["global_step"] == last2["global_step"] >= 10
    # In float32 Adam goes either way where a gradient is rounding alone, in a few weights more than
    # once; above it is float64.
    pairs = zip(last["state_dict"].values(), last2["state_dict"].values(), strict=True)
    apart = torch.cat([(one - other).abs().flatten() for one, other in pairs])
    assert (apart > 2 * LR).double().mean() < 1e-3
    assert apart.max() < 10 * LR
    for row, row2 in zip(*map(read_history, runs), strict=True):
        for name in ("seconds", "step_seconds"):
            del row[name], row2[name]
        assert row2 == pytest.approx(row, abs=WRITTEN, nan_ok=True)


def oldest(run: Path) -> Path:
    """The first checkpoint that a run wrote."""
    return max(run.glob("last-*.ckpt"), key=lambda path: int(path.stem.removeprefix("last-")))
