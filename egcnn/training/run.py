"""A training run and its folder."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich import get_console

from egcnn import former
from egcnn.checkpoint import write
from egcnn.data.case import Case, Dataset
from egcnn.data.layouts import split
from egcnn.errors import InputError
from egcnn.files import write_text
from egcnn.inference import choose_device
from egcnn.machine import prepare_cpu, versions
from egcnn.training.batches import CaseData
from egcnn.training.config import TrainingConfig
from egcnn.training.history import LAST, History, remove_history
from egcnn.training.task import SegmentationTask

CONFIG = "config.json"
BEST = "best.ckpt"
_LOGS = "tensorboard"


class _WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their final name and then renamed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write(path, checkpoint)


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        output: the run's folder.
        best: checkpoint of the epoch with the highest mean Dice.
        last: checkpoint of the last epoch.
        history: the rows of ``history.csv``.
        seconds: wall-clock time of this call.
        validation: the held-out cases.
    """

    output: Path
    best: Path
    last: Path
    history: list[dict[str, float]]
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
        output: the run's folder: configuration, history, TensorBoard events, checkpoints.
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
    prepare_cpu()
    output = Path(output)
    if existing not in get_args(Existing):
        raise InputError(f"existing: {existing!r}; expected one of {', '.join(get_args(Existing))}")
    where = choose_device(device)
    train, validation = split(dataset, config.fraction, config.split_seed)
    if not train or not validation:
        raise InputError(
            f"{dataset.root}: {len(train) + len(validation)} labelled case; expected at least two, "
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
        _claim(output, config, described, existing)
    names = [dataset.regions.names[channel] for channel in dataset.regions.foreground]
    history = History(output, names, quiet)
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


def _claim(
    output: Path, config: TrainingConfig, described: dict[str, Any], existing: Existing
) -> None:
    """Make the run's folder, or check that it can be resumed."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output: {output} is a file; expected the name of a folder")
    holds = (output / LAST).is_file()
    if existing == "resume":
        if not holds or not (output / CONFIG).is_file():
            raise InputError(
                f"output: {output} holds no run to resume (no {CONFIG} with {LAST}); "
                "start one without resuming"
            )
        before = read_config(output)
        _check_settings(output, before.config, config)
        _check_split(output, before.split, described["split"])
        return
    if holds and existing == "error":
        raise InputError(
            f"output: {output} holds a run already; resume it, overwrite it, or name another folder"
        )
    for name in (CONFIG, LAST, BEST):
        (output / name).unlink(missing_ok=True)
    remove_history(output)
    shutil.rmtree(output / _LOGS, ignore_errors=True)
    write_text(output / CONFIG, json.dumps(described, indent=1) + "\n")


def _check_settings(output: Path, before: TrainingConfig, now: TrainingConfig) -> None:
    # Where a run is computed may change between its parts; what is computed may not.
    for name, was, is_now in differences(before, now):
        if name not in ("workers", "devices", "precision"):
            raise InputError(
                f"{name}: {is_now}, but the run in {output} has {was}; a run is resumed as it was "
                "started"
            )


def differences(before: TrainingConfig, now: TrainingConfig) -> list[tuple[str, Any, Any]]:
    """Name, value before and value now of every entry that differs."""
    old = before.entries()
    return [(name, old[name], value) for name, value in now.entries().items() if old[name] != value]


def _check_split(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for part in now:
        if before.get(part) != now[part]:
            raise InputError(
                f"output: {output} was trained with other {part} cases than the dataset has now"
            )


@dataclass(frozen=True)
class RunConfig:
    """What a run's ``config.json`` says.

    Args:
        config: the hyperparameters.
        split: names of the ``"train"`` and ``"validation"`` cases.
        versions: of the libraries that trained.
    """

    config: TrainingConfig
    split: dict[str, list[str]]
    versions: dict[str, str]


def read_config(run: str | Path) -> RunConfig:
    """Read a run's ``config.json``, of this version or an earlier one.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(run) / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config = TrainingConfig.from_dict(former.config(data["config"]))
        return RunConfig(config, data["split"], data["versions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read; expected what 'egcnn train' writes") from error


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
