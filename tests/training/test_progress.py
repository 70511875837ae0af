"""The bar of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from egcnn.errors import InputError
from egcnn.terminal import Terminal
from egcnn.training.progress import ProgressBar


@pytest.mark.parametrize("error", [InputError("the loss is nan"), KeyboardInterrupt()])
def test_a_run_that_fails_leaves_no_bar(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []

    class Failing(BoringModel):
        def training_step(self, *_: Any) -> Any:
            shown.append(Terminal.live)
            raise error

    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way to say that this is a terminal
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ProgressBar()],
    )
    with pytest.raises((InputError, SystemExit)):
        trainer.fit(Failing())
    assert [live is not None for live in shown] == [True]
    assert Terminal.live is None
