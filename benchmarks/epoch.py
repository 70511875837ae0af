"""Where the time of a training epoch goes: steps, reading, validation, pictures, checkpoints.

    python -m benchmarks.epoch [DATA] [--filters N] [--batch N] [--epochs N] [--cases N]

Trains as ``egcnn train DATA`` does; without DATA on phantoms of BraTS's size. The first epoch warms
up, the next ones are timed, and the last one is profiled: the operators that take its time,
validation included.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import lightning as L
import typer
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity, profile

from egcnn.data import Dataset, open_dataset
from egcnn.data.phantom import write_brats
from egcnn.training import TrainingConfig, fit, plan, run, task

EPOCH = "run_training_epoch"
#: What an action of Lightning is part of, by the first of these texts that its name holds. Others
#: belong to what they are called from.
PARTS = {
    "dataloader_next": "reading and augmentation",
    "val_next": "reading for validation",
    "optimizer_step": "optimizer",
    ".training_step": "forward pass and losses",
    ".backward": "backward pass",
    "prediction": "validation: prediction",
    ".validation_step": "validation: scores",
    "[Callback]History": "history",
    "[Callback]Panels": "pictures",
    "[Callback]Checkpoints": "checkpoints",
    "save_checkpoint": "checkpoints",
    EPOCH: "Lightning",
}
#: Operators below this share of an epoch are not shown.
LEAST = 0.01


class EpochProfiler(Profiler):
    """The time of each part of all epochs but the first and the last, which the other one profiles.

    Args:
        epochs: how many there are.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs
        self.begun = 0
        self.seconds: Counter[str] = Counter()
        self.open: list[str] = []
        self.last = 0.0
        self.operators = profile(activities=[ProfilerActivity.CPU])

    def start(self, action_name: str) -> None:
        """Enter an action."""
        if action_name == EPOCH:
            self.begun += 1
            if self.begun == self.epochs:
                self.operators.__enter__()
        self._charge()
        inherited = self.open[-1] if self.open else ""
        found = (part for text, part in PARTS.items() if text in action_name)
        self.open.append(next(found, inherited))

    def stop(self, action_name: str) -> None:
        """Leave it."""
        self._charge()
        self.open.pop()
        if action_name == EPOCH and self.begun == self.epochs:
            self.operators.__exit__(None, None, None)

    def _charge(self) -> None:
        """Add the time since the last event to the part that it was spent in."""
        now = time.perf_counter()
        if self.open and self.open[-1] and 1 < self.begun < self.epochs:
            self.seconds[self.open[-1]] += now - self.last
        self.last = now

    def table(self) -> list[tuple[str, float, float]]:
        """Parts, their seconds an epoch and their shares; the largest first."""
        total, epochs = sum(self.seconds.values()), self.epochs - 2
        return [(part, s / epochs, s / total) for part, s in self.seconds.most_common()]

    def operator_table(self) -> list[tuple[str, float, int]]:
        """Operators, their shares of all operators' time, and their calls."""
        events = self.operators.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        shares = ((e.key, e.self_cpu_time_total / total, e.count) for e in events)
        return sorted((row for row in shares if row[1] >= LEAST), key=lambda row: -row[1])


def measure(config: TrainingConfig, dataset: Dataset, output: Path) -> EpochProfiler:
    """Train as ``egcnn train`` does where the output is no terminal."""
    profiler = EpochProfiler(config.epochs)
    make_trainer, segment = run._trainer, task.segment

    def trainer(*args: Any) -> L.Trainer:
        made = make_trainer(*args)
        made.profiler = profiler  # type: ignore[attr-defined]
        return made

    def prediction(*args: Any, **options: Any) -> Any:
        with profiler.profile("prediction"):
            return segment(*args, **options)

    with patch.object(run, "_trainer", trainer), patch.object(task, "segment", prediction):
        fit(config, dataset, output)
    return profiler


def main(
    data: Annotated[Path | None, typer.Argument(help="A folder that egcnn train takes.")] = None,
    filters: Annotated[int, typer.Option(help="Filters of the backbone.")] = 8,
    batch: Annotated[int | None, typer.Option(help="Patches a step (as planned; 1).")] = None,
    epochs: Annotated[int, typer.Option(help="At least 3.", min=3)] = 4,
    cases: Annotated[int, typer.Option(help="Phantoms, a quarter for validation.")] = 8,
    size: Annotated[int, typer.Option(help="Voxels across a phantom.")] = 240,
) -> None:
    """Print two tables: the parts of an epoch, and the operators in it."""
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = Path(folder) / "phantoms"
            write_brats(data, cases, (size, size, size * 155 // 240))
            batch = batch or 1
        dataset = open_dataset(data)
        config = plan(dataset).change({"network.backbone.filters": filters, "epochs": epochs})
        config = config.change({"fraction": 0.25} | ({"batch_size": batch} if batch else {}))
        profiler = measure(config, dataset, Path(folder) / "run")
    print("| part of an epoch | seconds | share |\n|---|--:|--:|")
    for part, seconds, share in profiler.table():
        print(f"| {part} | {seconds:.2f} | {share:.1%} |")
    print("\n| operator | share | calls |\n|---|--:|--:|")
    for operator, share, calls in profiler.operator_table():
        print(f"| `{operator}` | {share:.1%} | {calls} |")


if __name__ == "__main__":
    typer.run(main)
