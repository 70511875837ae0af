"""When a run's checkpoints are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from egcnn.checkpoint import write
from egcnn.training.folder import BEST
from egcnn.training.history import LAST, History


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` after each epoch, and ``best.ckpt`` if its Dice is the highest so far.

    The history decides, since it moves with the run's folder, and Lightning's ModelCheckpoint
    forgets the best score when its folder has another name.
    """

    def __init__(self, output: Path, history: History) -> None:
        self.output = output
        self.history = history

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
