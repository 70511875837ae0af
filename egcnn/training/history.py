"""History of a run: losses and scores of each epoch, as CSV and on the terminal."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from egcnn.checkpoint import KEY, read
from egcnn.errors import InputError, brief
from egcnn.files import write_csv
from egcnn.metrics import EDGE_METRICS, EDGE_SOURCES
from egcnn.terminal import say
from egcnn.typed import entry

HISTORY = "history.csv"
LAST = "last.ckpt"
#: Former name of the history, which evaluations use today.
FORMER_HISTORY = "metrics.csv"
# What every row has.
_COLUMNS = ("epoch", "dice")
_LOSSES = ("loss", "semantic", "consistency", "edge")


class History(Callback):
    """Writes a row of metrics per epoch to ``history.csv`` and a line to the terminal."""

    def __init__(self, output: Path, regions: Sequence[str], quiet: bool) -> None:
        self.folder = output
        self.regions = regions
        self.quiet = quiet
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self.before = 0.0
        self.steps: list[float] = []
        self.lr = 0.0

    @property
    def best_epoch(self) -> float:
        """The epoch with the highest mean Dice, the first of several; 0 before any."""
        best = max(self.rows, key=lambda row: row["dice"], default=None)
        return 0 if best is None else best["epoch"]

    def say(self, text: str) -> None:
        """Print a text, unless the run is quiet."""
        if not self.quiet:
            say(text, wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """The rows up to the checkpoint, and the seconds of the epoch so far."""
        return {"rows": self.rows, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows and seconds of a checkpoint."""
        self.rows = list(state_dict["rows"])
        self.before = float(state_dict.get("seconds", 0.0))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the file of a resumed run, whatever became of it since its checkpoint."""
        if trainer.ckpt_path is None:
            return
        if not self.rows and _history_path(self.folder).is_file():
            # Checkpoints of earlier versions hold no rows.
            done = epochs_done(read(Path(trainer.ckpt_path)))
            self.rows = [row for row in read_history(self.folder) if row["epoch"] <= done]
        if self.rows and trainer.is_global_zero:
            self._write()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of an epoch that is resumed in its midst."""
        self.started = time.perf_counter()
        self.steps = [self.started]
        # By the end of the epoch the scheduler has already moved on.
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.on_train_start(trainer, pl_module)
        self.before = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        """Time the step."""
        self.steps.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add, write and print the epoch's row."""
        logged = trainer.callback_metrics
        losses: dict[str, float] = pl_module.mean_losses()  # type: ignore[operator]
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row.update((name, losses[name]) for name in _LOSSES if name in losses)
        row["dice"] = float(logged["dice"])
        for name in self.regions:
            row[f"dice_{name}"] = float(logged[f"dice_{name}"])
        for source in EDGE_SOURCES:
            keys = [f"{source}_{m}_{name}" for name in self.regions for m in EDGE_METRICS]
            row.update((key, float(logged[key])) for key in keys if key in logged)
        row["lr"] = self.lr
        steps = [after - before for before, after in pairwise(self.steps)]
        row["step_seconds"] = round(median(steps), 4)
        row["seconds"] = round(self._seconds(), 3)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            self._print(row, trainer.max_epochs or 0)

    def _seconds(self) -> float:
        """Duration of the epoch so far."""
        return self.before + time.perf_counter() - self.started

    def _write(self) -> None:
        write_csv(self.folder / HISTORY, self.rows[-1], self.rows)
        if is_history(self.folder / FORMER_HISTORY):
            (self.folder / FORMER_HISTORY).unlink()

    def _print(self, row: Mapping[str, float], epochs: int) -> None:
        scores = "  ".join(f"{name} {row[f'dice_{name}']:.3f}" for name in self.regions)
        if f"edge_f1_{self.regions[0]}" in row:
            edge = mean(row[f"edge_f1_{name}"] for name in self.regions)
            scores += f"  edge F1 {edge:.3f}"
        self.say(
            f"epoch {row['epoch']:.0f}/{epochs}  {losses_text(row)}  "
            f"Dice {scores}  lr {row['lr']:.2g}  {row['seconds']:.1f} s"
        )


def losses_text(losses: Mapping[str, float]) -> str:
    """The total loss, and its terms in parentheses."""
    parts = ", ".join(f"{n} {losses[n]:.3f}" for n in _LOSSES[1:] if n in losses)
    return f"loss {losses['loss']:.3f} ({parts})"


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Number of epochs that a run had completed when it wrote a checkpoint.

    Raises:
        InputError: it was not written by a run.
    """
    provenance = entry(entry(checkpoint, KEY, dict[str, Any]), "provenance", dict[str, Any] | None)
    done: int | None = entry(provenance or {}, "epochs", int | None)
    if done is not None:
        return done
    # Checkpoints of earlier versions were written at the end of an epoch.
    return int(entry(checkpoint, "epoch", int)) + 1


def _history_path(run: Path) -> Path:
    """The path of a run's history; earlier versions used another name."""
    path, former = run / HISTORY, run / FORMER_HISTORY
    return former if not path.is_file() and is_history(former) else path


def is_history(path: Path) -> bool | None:
    """Whether a file is a history, and not the table of an evaluation; None if it is damaged."""
    try:
        with path.open(encoding="utf-8") as lines:
            header = lines.readline(1 << 16)
    except (OSError, ValueError):
        return None
    return header.startswith("epoch,")


def read_history(run: str | Path) -> list[dict[str, float]]:
    """Read the ``history.csv`` in a run's folder: a row per epoch.

    Raises:
        InputError: no such file, or a damaged one.
    """
    path = _history_path(Path(run))
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the folder of a run")
    rows: list[dict[str, float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, strict=True):
                rows.append({key: float(value) for key, value in row.items()})
                if not set(_COLUMNS) <= set(row) or not rows[-1]["epoch"] >= 1:
                    raise ValueError("no row of an epoch")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read in row {len(rows) + 1} ({brief(error)}); expected the table "
            "of a run, which --resume restores from a checkpoint"
        ) from error
    return rows
