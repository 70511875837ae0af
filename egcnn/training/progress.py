"""The progress bar of a run."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from egcnn.terminal import Bar, amount
from egcnn.training.history import losses_text


class ProgressBar(Callback):
    """Shows the epoch and its losses, Dice, voxels a second and the time left of the whole run.

    Args:
        title: what the text begins with; may be empty.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.bar = Bar()
        self.dice = ""
        self.losses = ""
        self.voxels = 0
        self.seconds = 0.0
        self.before = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar; a resumed run's begins where it was."""
        self.bar.__enter__()
        parts = trainer.accumulate_grad_batches
        epochs, steps = divmod(trainer.global_step, -(-_steps(trainer) // parts))
        self._show(trainer, epochs * _steps(trainer) + steps * parts)

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock of a step."""
        self.before = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Count the step's voxels."""
        image = batch["image"]
        self.voxels += image.shape[0] * image[0, 0].numel() * trainer.world_size
        self.seconds += time.perf_counter() - self.before
        self.losses = losses_text(pl_module.mean_losses())  # type: ignore[operator]
        self._show(trainer, trainer.current_epoch * _steps(trainer) + batch_idx + 1)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say which held-out case was scored."""
        done = (trainer.current_epoch + 1) * _steps(trainer)
        self._show(trainer, done, f"validation {batch_idx + 1}/{trainer.num_val_batches[0]}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the epoch's Dice."""
        self.dice = f"Dice {float(trainer.callback_metrics['dice']):.3f}"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar."""
        self.bar.__exit__()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar of a run that was interrupted or failed, which is not torn down."""
        self.bar.__exit__()

    def _show(self, trainer: L.Trainer, done: int, doing: str = "") -> None:
        epochs = trainer.max_epochs or 1
        speed = f"{amount(self.voxels / self.seconds)}voxels/s" if self.seconds else ""
        epoch = f"epoch {min(trainer.current_epoch + 1, epochs)}/{epochs}"
        parts = (self.title, epoch, doing or self.losses, self.dice, speed)
        text = "  ".join(part for part in parts if part)
        self.bar.update(done, epochs * _steps(trainer), text)


def _steps(trainer: L.Trainer) -> int:
    """Batches of an epoch."""
    return int(trainer.num_training_batches)
