"""The folder of a run: what a run writes there, and what must not be lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from egcnn import legacy
from egcnn.checkpoint import is_checkpoint
from egcnn.errors import InputError
from egcnn.files import write_json
from egcnn.training.config import TrainingConfig
from egcnn.training.history import FORMER_HISTORY, HISTORY, LAST, is_history

CONFIG = "config.json"
BEST = "best.ckpt"
LOGS = "tensorboard"
# What TensorBoard's logger writes.
_EVENTS = ("events.out.tfevents.*", "hparams.yaml")

IfExists = Literal["error", "resume", "overwrite"]


@dataclass(frozen=True)
class RunConfig:
    """Contents of a run's ``config.json``.

    Args:
        config: the hyperparameters.
        split: names of the ``"train"`` and ``"validation"`` cases.
        versions: versions of the libraries used.
    """

    config: TrainingConfig
    split: dict[str, list[str]]
    versions: dict[str, str]


def read_config(run: str | Path) -> RunConfig:
    """Read a run's ``config.json``, of this version or an earlier one.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(run) / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config = TrainingConfig.from_dict(legacy.config(data["config"]))
        return RunConfig(config, data["split"], data["versions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: cannot be read; expected a file written by 'egcnn train'"
        ) from error


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, the newest first."""
    return [path for path in (run / LAST, run / BEST) if path.is_file()]


def prepare_folder(
    output: Path, config: TrainingConfig, described: dict[str, Any], existing: IfExists
) -> None:
    """Create the run's folder, or check that the run in it can be resumed.

    Only files that a run wrote are replaced.

    Raises:
        InputError: as :func:`egcnn.training.fit`.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"output: {output} is a file; expected the name of a folder")
    if existing == "resume":
        if not (output / LAST).is_file() or not (output / CONFIG).is_file():
            raise InputError(
                f"output: {output} holds no run to resume (no {CONFIG} with {LAST}); "
                "start one without resuming"
            )
        before = read_config(output)
        _check_settings(output, before.config, config)
        _check_split(output, before.split, described["split"])
        return
    _check_ownership(output, existing)
    for path in list(_written(output)):
        path.unlink()
    with suppress(OSError):  # somebody's files are in it
        (output / LOGS).rmdir()
    write_json(output / CONFIG, described)


def _written(output: Path) -> Iterator[Path]:
    """The files of the run in a folder that :func:`_check_ownership` let pass."""
    run = [path for path in (output / CONFIG, *checkpoints(output)) if path.is_file()]
    yield from run
    yield from (path for path in (output / HISTORY,) if path.is_file())
    if is_history(output / FORMER_HISTORY):
        yield output / FORMER_HISTORY
    for pattern in _EVENTS if run else ():
        yield from (output / LOGS).glob(pattern)


def _check_ownership(output: Path, existing: IfExists) -> None:
    """Check that a new run may be written to a folder.

    Raises:
        InputError: it would replace a run that is not to be overwritten, or anything that no run
            wrote.
    """
    held = checkpoints(output)
    files = [path for path in (output / CONFIG, output / HISTORY, *held) if path.is_file()]
    judged = {path: _by_a_run(path) for path in files}
    ours = True in judged.values()
    for path, by_a_run in judged.items():
        # A damaged file among those of a run is one of them.
        if not (ours if by_a_run is None else by_a_run):
            raise InputError(
                f"output: {path} was not written by a training run, and would be replaced; "
                "expected another folder"
            )
    if existing == "overwrite":
        return
    if held:
        raise InputError(
            f"output: {output} holds a run already; resume it, overwrite it, or name another folder"
        )
    if not ours and (output / LOGS).exists():
        raise InputError(
            f"output: {output / LOGS} is there already; expected another folder, or --overwrite to "
            "add this run's events to it"
        )


def _by_a_run(path: Path) -> bool | None:
    """Whether a run wrote a file of this name; None if it is too damaged to tell."""
    if path.suffix == ".ckpt":
        return is_checkpoint(path)
    if path.suffix == ".csv":
        return is_history(path)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return isinstance(described, dict) and {"config", "split", "versions"} <= set(described)


def _check_settings(output: Path, before: TrainingConfig, now: TrainingConfig) -> None:
    # Settings of the machine may change when a run is resumed; hyperparameters may not.
    for name, was, is_now in changed_settings(before, now):
        if name not in ("workers", "devices", "precision"):
            raise InputError(
                f"{name}: {is_now}, but the run in {output} has {was}; a run is resumed as it was "
                "started"
            )


def changed_settings(before: TrainingConfig, now: TrainingConfig) -> list[tuple[str, Any, Any]]:
    """Name, old value and new value of every entry that differs."""
    old = before.entries()
    return [(name, old[name], value) for name, value in now.entries().items() if old[name] != value]


def _check_split(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for part in now:
        if before.get(part) != now[part]:
            raise InputError(
                f"output: {output} was trained with other {part} cases than the dataset has now"
            )
