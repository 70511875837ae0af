"""Training: the Lightning module, and the run's folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich import get_console
from torch import Tensor

from egcnn import ops
from egcnn.batches import CaseData, mixed
from egcnn.checkpoint import KEY, NetworkSpec, Trained, build_network, versions, write
from egcnn.config import TrainingConfig
from egcnn.data.case import Case, Dataset
from egcnn.data.layouts import split
from egcnn.errors import InputError
from egcnn.files import write_text
from egcnn.inference import choose_device, segment
from egcnn.losses import EGCNNLoss
from egcnn.metrics import EDGE_METRICS, EDGE_SOURCES, dice, edge_scores
from egcnn.nn import Segmentation

CONFIG = "config.json"
METRICS = "metrics.csv"
LAST = "last.ckpt"
BEST = "best.ckpt"
_LOGS = "tensorboard"
_LOSSES = ("loss", "semantic", "consistency", "edge")


def network_spec(config: TrainingConfig, dataset: Dataset) -> NetworkSpec:
    """The network that ``config`` trains on ``dataset``."""
    return NetworkSpec(
        in_channels=len(dataset.modalities),
        out_channels=len(dataset.regions),
        backbone=config.backbone,
        edge=config.edge,
        filters=config.filters,
        dropout=config.dropout,
        gate=config.gate,
        gate_activation=config.gate_activation,
        edge_channels=config.edge_channels,
        residual=config.residual,
        upsampling=config.upsampling,
        edge_seed=config.edge_seed,
        stream_head=config.stream_head,
        edge_head=config.edge_head,
        exclusive=dataset.regions.activation == "softmax",
    )


class SegmentationTask(L.LightningModule):
    """The network, its losses (Eq. 3), Adam with the polynomial rate (Eq. 9), and validation.

    Args:
        config: the run's hyperparameters.
        dataset: gives regions and modalities.
        provenance: goes into every checkpoint.
    """

    def __init__(
        self, config: TrainingConfig, dataset: Dataset, provenance: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.regions = dataset.regions
        spec = network_spec(config, dataset)
        torch.manual_seed(config.seed)
        network = build_network(spec)
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.trained = Trained(
            network=self.network,
            spec=spec,
            regions=dataset.regions,
            modalities=dataset.modalities,
            spacing=config.spacing,
            normalization=config.normalization,
            patch=config.patch,
            provenance=dict(provenance or {}),
        )
        self.loss = EGCNNLoss(
            dataset.regions,
            semantic=config.semantic,
            consistency=config.consistency_weight,
            edge=config.edge_weight,
            include_background=config.include_background,
            lambda1=config.lambda1,
            lambda2=config.lambda2,
            reduction=config.edge_reduction,
            weight_negatives=config.weight_negatives,
            tau=config.tau,
            hard=config.hard,
            support=config.support,
            edge_threshold=config.edge_threshold,
        )

    def forward(self, image: Tensor) -> Segmentation:
        """Images ``(B, M, D, H, W)`` to logits and edge logits."""
        output = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        return output if isinstance(output, Segmentation) else Segmentation(output, None)

    def on_train_epoch_start(self) -> None:
        """Set the temperature of Eq. 8."""
        self.loss.consistency.tau = self.config.temperature(self.current_epoch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on ``{"image", "label"}``; the loss of Eq. 3."""
        # All noise hangs on the step alone, so that a resumed run draws what an unbroken one draws.
        noise = mixed(self.config.seed, 2, self.global_step, self.global_rank)
        torch.manual_seed(noise)
        seed = torch.tensor(noise, dtype=torch.int64, device=self.device)
        losses: dict[str, Tensor] = self.loss(self(batch["image"]), batch["label"], seed)
        if not losses["loss"].isfinite():
            raise InputError(
                f"training: the loss is {losses['loss'].item()} in epoch {self.current_epoch + 1}, "
                f"step {batch_idx + 1}; a lower learning rate (it is {self.config.lr:g}) or "
                "precision 32-true may help"
            )
        size = len(batch["image"])
        self.log(
            "loss",
            losses["loss"],
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=size,
            sync_dist=True,
        )
        parts = {name: value for name, value in losses.items() if name != "loss"}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return losses["loss"]

    def validation_step(self, item: dict[str, Any], batch_idx: int) -> None:
        """Dice and edge scores per region of one whole volume, at the training's spacing."""
        image, label = item["image"][None], item["label"][None]
        found, edges = segment(
            self.network, image, self.regions, self.config.patch, overlap=self.config.overlap
        )
        reported = list(self.regions.foreground)
        labels = self.regions.decode(found).to(label.device)
        predicted, true = (self.regions.masks(x)[:, reported] for x in (labels, label))
        scores = dice(predicted, true)[0]
        for value, name in zip(scores, self._reported(), strict=True):
            self._log_score(f"dice_{name}", value, prog_bar=True)
        self._log_score("dice", scores.mean())
        scored = {"sobel": ops.sobel_edges(predicted).float()}
        if edges is not None:
            edges = edges.to(label.device)
            scored["edge"] = edges if edges.shape[1] == 1 else edges[:, reported]
        for source, probabilities in scored.items():
            for metric, values in edge_scores(probabilities, true).items():
                for value, name in zip(values[0], self._reported(), strict=True):
                    self._log_score(f"{source}_{metric}_{name}", value)

    def _log_score(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        """Log one case's score for the mean over cases; where it is NaN, the case does not count.

        The weight is a float: Lightning averages it over devices in its own type, and an integer
        mean would be cut off where devices hold different numbers of cases.
        """
        weight: Any = float(not value.isnan())
        self.log(name, value.nan_to_num(), prog_bar=prog_bar, batch_size=weight, sync_dist=True)

    def _reported(self) -> list[str]:
        return [self.regions.names[channel] for channel in self.regions.foreground]

    def configure_optimizers(self) -> Any:
        """Adam, and Eq. 9 once per epoch."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.lr, fused=True)
        count, power = self.config.epochs, self.config.lr_power
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: max(0.0, 1 - epoch / count) ** power
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the entry that makes the checkpoint usable without Lightning."""
        checkpoint[KEY] = self.trained.entry()


class _WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their final name and then renamed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write(path, checkpoint)


class _History(Callback):
    """A row of metrics per epoch, in ``metrics.csv`` and as a line on the terminal."""

    def __init__(self, output: Path, regions: Sequence[str], quiet: bool) -> None:
        self.path = output / METRICS
        self.regions = regions
        self.quiet = quiet
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self.steps: list[float] = []
        self.lr = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the rows of the epochs that a resumed run does not repeat."""
        if trainer.ckpt_path is not None and self.path.is_file():
            self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= _done(trainer)]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()
        self.steps = [self.started]
        # When the epoch ends, its scheduler has moved on already.
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = trainer.callback_metrics
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        for name in _LOSSES:
            key = "loss_epoch" if name == "loss" else name
            if key in found:
                row[name] = float(found[key])
        row["dice"] = float(found["dice"])
        for name in self.regions:
            row[f"dice_{name}"] = float(found[f"dice_{name}"])
        for source in EDGE_SOURCES:
            keys = [f"{source}_{m}_{name}" for name in self.regions for m in EDGE_METRICS]
            row.update((key, float(found[key])) for key in keys if key in found)
        row["lr"] = self.lr
        steps = [after - before for before, after in pairwise(self.steps)]
        row["step_seconds"] = round(median(steps), 4)
        row["seconds"] = round(time.perf_counter() - self.started, 3)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            if not self.quiet:
                self._print(row, trainer.max_epochs or 0)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say after Ctrl-C or a termination what is left."""
        asked = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if not asked or self.quiet or not trainer.is_global_zero:
            return
        kept = self.path.parent / LAST
        what = f"{kept} holds epoch {len(self.rows)}; go on from there with --resume"
        get_console().print(
            f"stopped: {what if self.rows else 'before the end of the first epoch'}",
            highlight=False,
            soft_wrap=True,
        )

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def _print(self, row: Mapping[str, float], epochs: int) -> None:
        parts = ", ".join(f"{n} {row[n]:.3f}" for n in _LOSSES[1:] if n in row)
        scores = "  ".join(f"{name} {row[f'dice_{name}']:.3f}" for name in self.regions)
        if f"edge_f1_{self.regions[0]}" in row:
            edge = mean(row[f"edge_f1_{name}"] for name in self.regions)
            scores += f"  edge F1 {edge:.3f}"
        get_console().print(
            f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.3f} ({parts})  "
            f"Dice {scores}  lr {row['lr']:.2g}  {row['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


def _done(trainer: L.Trainer) -> int:
    """Epochs that the checkpoint behind a resumed trainer has seen."""
    data = torch.load(str(trainer.ckpt_path), map_location="cpu", mmap=True, weights_only=True)
    return int(data["epoch"]) + 1


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read a run's ``metrics.csv``: a row per epoch."""
    with Path(path).open(newline="", encoding="utf-8") as lines:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        output: the run's folder.
        best: checkpoint of the epoch with the highest mean Dice.
        last: checkpoint of the last epoch.
        metrics: the rows of ``metrics.csv``.
        seconds: wall-clock time of this call.
        validation: the held-out cases.
    """

    output: Path
    best: Path
    last: Path
    metrics: list[dict[str, float]]
    seconds: float
    validation: tuple[Case, ...]


Existing = Literal["error", "resume", "overwrite"]


def fit(
    config: TrainingConfig,
    dataset: Dataset,
    output: str | Path,
    *,
    existing: Existing = "error",
    device: str = "auto",
    quiet: bool = False,
) -> Run:
    """Train on a dataset's labelled cases.

    Args:
        config: the hyperparameters.
        dataset: where the cases are.
        output: the run's folder: configuration, metrics, TensorBoard events, checkpoints.
        existing: what to do where ``output`` holds a run already: ``"error"``, ``"resume"`` it
            from its last epoch with its own configuration (``config`` must be equal), or
            ``"overwrite"`` it.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        quiet: print nothing.

    Raises:
        InputError: a case is unusable, fewer than two cases are labelled, the folder holds a run,
            there is none to resume or it differs, or the loss is no longer finite.
    """
    started = time.perf_counter()
    output = Path(output)
    if existing not in get_args(Existing):
        raise InputError(f"existing: {existing!r}; wanted one of {', '.join(get_args(Existing))}")
    where = choose_device(device)
    train, validation = split(dataset, config.fraction, config.split_seed)
    if not train or not validation:
        raise InputError(
            f"{dataset.root}: {len(train) + len(validation)} labelled case; wanted at least two, "
            "one to train on and one to validate on"
        )
    described = {
        "config": config.to_dict(),
        "dataset": {
            "layout": dataset.layout,
            "root": str(dataset.root.resolve()),
            "cases": len(dataset.cases),
            "modalities": list(dataset.modalities),
            "regions": dataset.regions.to_dict(),
        },
        "split": {
            "train": [case.name for case in train],
            "validation": [case.name for case in validation],
        },
        "versions": versions(),
    }
    task = SegmentationTask(
        config, dataset, {"layout": dataset.layout, "training_cases": len(train)}
    )
    data = CaseData(config, dataset, train, validation)
    # Lightning starts one more process per further device; the first one owns the folder.
    if getattr(rank_zero_only, "rank", 0) == 0:
        _claim(output, described, existing)
    names = [dataset.regions.names[channel] for channel in dataset.regions.foreground]
    history = _History(output, names, quiet)
    bar = not quiet and get_console().is_terminal
    always: dict[str, Any] = {
        "dirpath": output,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    callbacks: list[Callback] = [
        history,
        ModelCheckpoint(filename="best", monitor="dice", mode="max", save_top_k=1, **always),
        ModelCheckpoint(filename="last", monitor=None, save_top_k=1, **always),
    ]
    if bar:
        callbacks.append(RichProgressBar(leave=False))
    with _calm():
        trainer = L.Trainer(
            accelerator="gpu" if where.type == "cuda" else "cpu",
            devices=config.devices if where.index is None else [where.index],
            strategy="ddp" if config.devices > 1 else "auto",
            precision=config.precision,  # type: ignore[arg-type]
            max_epochs=config.epochs,
            logger=TensorBoardLogger(output, name=_LOGS, version=""),
            callbacks=callbacks,
            plugins=[_WholeCheckpoints()],
            enable_progress_bar=bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        try:
            trainer.fit(
                task,
                datamodule=data,
                ckpt_path=str(output / LAST) if existing == "resume" else None,
            )
        except SIGTERMException:
            # Lightning's own exit code says that all went well.
            sys.exit(128 + signal.SIGTERM)
    return Run(
        output,
        output / BEST,
        output / LAST,
        history.rows,
        time.perf_counter() - started,
        validation,
    )


def _claim(output: Path, described: dict[str, Any], existing: Existing) -> None:
    """Make the run's folder, or find it as resuming wants it."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output: {output} is a file; wanted the name of a folder")
    holds = (output / LAST).is_file()
    if existing == "resume":
        if not holds or not (output / CONFIG).is_file():
            raise InputError(
                f"output: {output} holds no run to resume (no {CONFIG} with {LAST}); "
                "start one without resuming"
            )
        before = read_config(output)
        for part in ("config", "split"):
            _check_same(output, part, before[part], json.loads(json.dumps(described[part])))
        return
    if holds and existing == "error":
        raise InputError(
            f"output: {output} holds a run already; resume it, overwrite it, or name another folder"
        )
    for name in (CONFIG, METRICS, LAST, BEST):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / _LOGS, ignore_errors=True)
    write_text(output / CONFIG, json.dumps(described, indent=1) + "\n")


def _check_same(output: Path, part: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # Where a run is computed may change between its parts; what is computed may not.
    free = {"workers", "devices", "precision"} if part == "config" else set()
    for key in now:
        if key not in free and before.get(key) != now[key]:
            if part == "split":
                raise InputError(
                    f"output: {output} was trained with other {key} cases than the dataset has now"
                )
            raise InputError(
                f"{key}: {now[key]}, but the run in {output} has {before.get(key)}; "
                "a run is resumed as it was started"
            )


def read_config(run: str | Path) -> dict[str, Any]:
    """Read a run's ``config.json``.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(run) / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        TrainingConfig.from_dict(data["config"])
        return {"config": data["config"], "split": data["split"], **data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read; wanted what 'egcnn train' writes") from error


@contextmanager
def _calm() -> Iterator[None]:
    """Leave out what Lightning says about things that are as they should be."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Volumes that are cached need no worker processes.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning's use of a class that torch renames.
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        # The folder is ours and may hold the files of the run that is resumed.
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
