"""A training run and its folder."""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from egcnn.data.case import Case, Dataset
from egcnn.data.hashes import data_digest, data_sizes
from egcnn.data.inspection import check_headers
from egcnn.data.splits import Split, split
from egcnn.errors import InputError, brief, input_error, lost_peer
from egcnn.files import owned
from egcnn.inference import choose_device
from egcnn.machine import first_process, prepare_cpu, versions
from egcnn.training.batches import CaseData
from egcnn.training.config import TrainingConfig
from egcnn.training.folder import (
    BEST,
    LOGS,
    IfExists,
    check_folder,
    newest_checkpoint,
    prepare_folder,
)
from egcnn.training.history import LAST, History
from egcnn.training.panels import Panels
from egcnn.training.progress import ProgressBar
from egcnn.training.saving import Checkpoints, WholeCheckpoints
from egcnn.training.task import SegmentationTask


@dataclass(frozen=True)
class Run:
    """Result of a training run.

    Args:
        output: the run's folder.
        best: checkpoint of the epoch with the highest mean Dice; None if it was deleted before the
            run was resumed.
        last: checkpoint of the last epoch.
        history: the rows of ``history.csv``.
        seconds: wall-clock time of this call.
        validation: the held-out cases.
    """

    output: Path
    best: Path | None
    last: Path
    history: list[dict[str, float]]
    seconds: float
    validation: tuple[Case, ...]


def fit(
    config: TrainingConfig,
    dataset: Dataset,
    output: str | Path,
    *,
    existing: IfExists = "error",
    device: str = "auto",
    cache: str | Path | None = None,
    quiet: bool = False,
    title: str | None = None,
) -> Run:
    """Train on a dataset's labelled cases.

    Args:
        config: the hyperparameters.
        dataset: the cases.
        output: the run's folder: configuration, history, TensorBoard events, checkpoints.
        existing: what to do if ``output`` already holds a run: ``"error"``, ``"resume"`` it
            from its last epoch with its own configuration (``config`` must be equal), or
            ``"overwrite"`` it.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        cache: folder of preprocessed cases, which runs may share; None keeps them in memory.
        quiet: print no lines.
        title: what the text of a progress bar on stderr begins with, where that is a terminal; by
            default "" and, if ``quiet``, there is no bar.

    Raises:
        InputError: a case is unusable, fewer than two cases are labelled, the folder already holds
            a run, is in use by one or has files of others in a run's place, there is no run to
            resume or it has other settings, or the loss is no longer finite.
    """
    started = time.perf_counter()
    prepare_cpu()
    output = Path(output)
    if existing not in get_args(IfExists):
        raise InputError(f"existing: {existing!r}; expected one of {', '.join(get_args(IfExists))}")
    where = choose_device(device)
    train, validation = _cases(config, dataset)
    # Every device has a process of its own; the first one owns the folder.
    first = first_process()
    if title is None and not quiet:
        title = ""
    quiet = quiet or not first
    described = _described(config, dataset, train, validation)
    check_folder(output, config, described, existing)
    if first:
        described["data"] = data_digest([*train, *validation])
    task = SegmentationTask(
        config,
        dataset,
        {"layout": dataset.layout, "training_cases": len(train), "run": described},
    )
    data = CaseData(
        config,
        dataset,
        train,
        validation,
        None if cache is None else Path(cache),
        quiet,
        described["data"].get("cases"),
    )
    history = History(output, dataset.regions.reported_names, quiet)
    with owned(output) if first else nullcontext(), _silence_lightning():
        if first:
            prepare_folder(output, config, described, existing)
        start = None
        if existing == "resume":
            start, problem = newest_checkpoint(output)
            if problem is not None:
                history.say(problem)
        with _explained(start, history):
            _trainer(config, dataset, where, output, history, title if first else None).fit(
                task,
                datamodule=data,
                ckpt_path=None if start is None else str(start),
            )
    return Run(
        output,
        output / BEST if (output / BEST).is_file() else None,
        output / LAST,
        history.rows,
        time.perf_counter() - started,
        validation,
    )


def _cases(config: TrainingConfig, dataset: Dataset) -> Split:
    """The cases to train on and those held out, whose headers are usable."""
    train, validation = split(dataset, config.fraction, config.split_seed, config.fold)
    if not train or not validation:
        raise InputError(
            f"{dataset.root}: {len(train) + len(validation)} labelled case; expected at least two, "
            "one to train on and one to validate on"
        )
    check_headers(dataset, train + validation)
    return train, validation


@contextmanager
def _explained(start: Path | None, history: History) -> Iterator[None]:
    """Explain what stops a training, which resumes the checkpoint ``start`` if there is one."""
    try:
        yield
    except SIGTERMException:
        # Lightning would exit with code 0.
        sys.exit(128 + signal.SIGTERM)
    except (MemoryError, OSError, InputError):
        raise
    except Exception as error:  # of many types, depending on the damage
        if (wrong := input_error(error)) is not None:  # MONAI's transforms chain it
            raise wrong from error
        if start is None or history.started or lost_peer(error) is not None:
            raise
        raise InputError(
            f"checkpoint: {start} cannot be resumed ({type(error).__name__}: {brief(error)}); "
            "expected the state of a run of this version"
        ) from error


def _trainer(
    config: TrainingConfig,
    dataset: Dataset,
    device: torch.device,
    output: Path,
    history: History,
    title: str | None,
) -> L.Trainer:
    """Lightning's trainer, which writes checkpoints and events to the run's folder."""
    callbacks: list[Callback] = [
        history,
        Checkpoints(output, history, config.checkpoint_minutes),
        Panels(config, dataset),
    ]
    if title is not None:
        callbacks.append(ProgressBar(title))
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=config.devices if device.index is None else [device.index],
        num_nodes=config.nodes,
        strategy="ddp" if config.devices * config.nodes > 1 else "auto",
        precision=config.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_gradients,
        max_epochs=config.epochs,
        logger=TensorBoardLogger(output, name=LOGS, version=""),
        callbacks=callbacks,
        plugins=[WholeCheckpoints(config.keep)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def _described(
    config: TrainingConfig, dataset: Dataset, train: Sequence[Case], validation: Sequence[Case]
) -> dict[str, Any]:
    """Contents of ``config.json``, see :class:`RunConfig`, but for what reading all data takes."""
    return {
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
        "data": {"sizes": data_sizes([*train, *validation])},
    }


@contextmanager
def _silence_lightning() -> Iterator[None]:
    """Silence Lightning's messages about intended behaviour."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Cached volumes need no worker processes.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning uses a class that torch has renamed.
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        # Weights of 1x1x1 convolutions have the same order in memory by several strides.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides.*")
        # A resumed run's folder is not empty.
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty.*")
        # A run of an earlier version has the state of Lightning's own ModelCheckpoint.
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
