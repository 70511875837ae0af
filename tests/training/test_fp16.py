"""Training in float16 with a scaler of gradients, which Lightning builds only for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from egcnn import checkpoint
from egcnn.data import Dataset
from egcnn.training import fit, plan, read_history

STEPS_BEFORE_THE_FAULT = 4


class Scaler(torch.amp.GradScaler):
    """Grows often; ends the run after so many steps."""

    steps_left = -1

    def update(self, *arguments: Any) -> None:
        super().update(*arguments)
        Scaler.steps_left -= 1
        if Scaler.steps_left == 0:
            raise RuntimeError("a fault")


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> list[Scaler]:
    """The scalers of all runs, which compute in float16 on the CPU."""
    found: list[Scaler] = []
    trainer = L.Trainer

    def make(*, precision: str, plugins: list[Any], **options: Any) -> L.Trainer:
        assert precision == "16-mixed"
        found.append(Scaler("cpu", growth_interval=3))
        return trainer(plugins=[*plugins, MixedPrecision(precision, "cpu", found[-1])], **options)

    monkeypatch.setattr(L, "Trainer", make)
    return found


@pytest.mark.slow
@pytest.mark.thorough
def test_an_interrupted_run_in_float16_ends_as_an_unbroken_one(
    dataset: Dataset, tmp_path: Path, scalers: list[Scaler]
) -> None:
    changes = {"precision": "16-mixed", "clip_gradients": 1.0, "epochs": 6}
    config = plan(dataset, torch.device("cpu")).change(
        {**changes, "preprocessing.patch": (16, 16, 16)}
    )
    whole = fit(config, dataset, tmp_path / "whole", device="cpu", quiet=True)
    Scaler.steps_left = STEPS_BEFORE_THE_FAULT
    with pytest.raises(RuntimeError, match="a fault"):
        fit(config, dataset, tmp_path / "broken", device="cpu", quiet=True)
    Scaler.steps_left = -1
    again = fit(config, dataset, tmp_path / "broken", existing="resume", device="cpu", quiet=True)
    assert scalers[0].get_scale() == scalers[-1].get_scale() > Scaler("cpu").get_scale()
    losses = [row["loss"] for row in read_history(tmp_path / "whole")]
    assert losses == [row["loss"] for row in read_history(tmp_path / "broken")]
    assert losses[-1] < losses[0]
    weights, resumed = (checkpoint.load(run.last).network.state_dict() for run in (whole, again))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
