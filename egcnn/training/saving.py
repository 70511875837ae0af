"""When a run's checkpoints are written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from egcnn.checkpoint import read, write
from egcnn.errors import InputError
from egcnn.training.folder import BEST, checkpoints
from egcnn.training.history import LAST, History


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` after each epoch, and ``best.ckpt`` if its Dice is the highest so far.

    The history decides, since it moves with the run's folder, and Lightning's ModelCheckpoint
    forgets the best score when its folder has another name.
    """

    def __init__(self, output: Path, history: History) -> None:
        self.output = output
        self.history = history

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore what is missing of a resumed run, where another checkpoint is of that epoch."""
        if trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        if Path(trainer.ckpt_path) != self.output / LAST:
            write(self.output / LAST, read(Path(trainer.ckpt_path)))
        best = self.output / BEST
        if best.is_file():
            return
        for path in checkpoints(self.output):
            with suppress(InputError):
                if (data := read(path)).get("epoch", -1) + 1 == self.history.best_epoch:
                    write(best, data)
                    return
        self.history.say(
            f"{best} is missing, and no other checkpoint is of epoch "
            f"{self.history.best_epoch:.0f}, the best; a better one will replace it"
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoints; the best first, so that a resumed run cannot miss it."""
        if self.history.best_epoch == trainer.current_epoch + 1:
            trainer.save_checkpoint(self.output / BEST)
        trainer.save_checkpoint(self.output / LAST)


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
