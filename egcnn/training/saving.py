"""When a run's checkpoints are written."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from egcnn.checkpoint import read, write
from egcnn.errors import InputError
from egcnn.training.folder import BEST, checkpoints
from egcnn.training.history import LAST, History, epochs_done


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` after each epoch, and ``best.ckpt`` if its Dice is the highest so far.

    The history decides, since it moves with the run's folder, and Lightning's ModelCheckpoint
    forgets the best score when its folder has another name.

    Args:
        output: the run's folder.
        history: the run's history.
        minutes: also write ``last.ckpt`` within an epoch, after so many minutes; None never does.
    """

    def __init__(self, output: Path, history: History, minutes: float | None) -> None:
        self.output = output
        self.history = history
        self.minutes = minutes
        self.written = 0.0
        self.kept = ""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore what is missing of a resumed run, where another checkpoint is of that epoch."""
        if trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        if Path(trainer.ckpt_path) != self.output / LAST:
            write(self.output / LAST, read(Path(trainer.ckpt_path)))
        best = self.output / BEST
        if best.is_file() or not self.history.rows:  # before the first epoch's end there is none
            return
        for path in checkpoints(self.output):
            with suppress(InputError):
                data = read(path)
                if _whole_epoch(data) and epochs_done(data) == self.history.best_epoch:
                    write(best, data)
                    return
        self.history.say(
            f"{best} is missing, and no other checkpoint is of epoch "
            f"{self.history.best_epoch:.0f}, the best; a better one will replace it"
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.written = time.monotonic()
        if self.history.rows:
            self.kept = f"epoch {len(self.history.rows)}"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Write a checkpoint if it is time.

        Not between the parts of a step, whose gradients are not in it, nor after the last step,
        which the end of the epoch follows.
        """
        if self.minutes is None or trainer.is_last_batch:
            return
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self.written >= 60 * self.minutes
        # All devices take part in a checkpoint; one clock decides.
        if trainer.strategy.broadcast(due):
            self._save_last(trainer, f"step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoints; the best first, so that a resumed run cannot miss it."""
        if self.history.best_epoch == trainer.current_epoch + 1:
            trainer.save_checkpoint(self.output / BEST)
        self._save_last(trainer, f"epoch {trainer.current_epoch + 1}")

    def _save_last(self, trainer: L.Trainer, what: str) -> None:
        trainer.save_checkpoint(self.output / LAST)
        self.kept, self.written = what, time.monotonic()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Report after Ctrl-C or SIGTERM what is saved."""
        asked = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if not asked or not trainer.is_global_zero:
            return
        what = f"{self.output / LAST} holds {self.kept}; continue from there with --resume"
        self.history.say(f"stopped: {what if self.kept else 'before the first checkpoint'}")


def _whole_epoch(data: dict[str, Any]) -> bool:
    """Whether a checkpoint was written at the end of an epoch."""
    return epochs_done(data) == data.get("epoch", -1) + 1


class WholeCheckpoints(TorchCheckpointIO):
    """Atomic, verified writes of checkpoints; ``keep`` of the last ones remain."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        write(path, checkpoint, self.keep if Path(path).name == LAST else 1)
