"""The folder of a run: what a run writes there, and what must not be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from egcnn import legacy
from egcnn.checkpoint import KEY, former, is_checkpoint, read
from egcnn.errors import InputError, brief
from egcnn.files import read_json, write_json
from egcnn.training.config import MACHINE, TrainingConfig
from egcnn.training.history import FORMER_HISTORY, HISTORY, LAST, epochs_done, is_history
from egcnn.typed import entry

CONFIG = "config.json"
BEST = "best.ckpt"
LOGS = "tensorboard"
#: Folder of predictions and their scores, in a run's or, in a demo's, beside it.
PREDICTIONS = "predictions"
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
        data: hash of each case, see :func:`egcnn.data.hashes.case_digest`; empty for runs of
            earlier versions.
        sizes: size of each case's files in bytes; likewise.
        dataset: the dataset's ``"layout"``, ``"root"``, ``"modalities"`` and ``"regions"``.
    """

    config: TrainingConfig
    split: dict[str, list[str]]
    versions: dict[str, str]
    data: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)


def read_config(run: str | Path) -> RunConfig:
    """Read a run's ``config.json``, of this version or an earlier one.

    If it is missing or damaged, its copy in a checkpoint beside it is read.

    Raises:
        InputError: there is neither.
    """
    return _read_run(Path(run))[0]


def _read_run(run: Path) -> tuple[RunConfig, Any]:
    """The contents of ``config.json``, or of its copy, as they are used and as they are written."""
    file = run / CONFIG
    problem = InputError(f"{file}: cannot be read; expected a file written by 'egcnn train'")
    for described in (_read_json(file), _config_copy(run)):
        try:
            return _run_config(described), described
        except InputError as error:
            problem = problem if described is None else InputError(f"{file}: {error}")
    raise problem


def _run_config(described: Any) -> RunConfig:
    try:
        config = legacy.config(entry(described, "config", dict[str, Any]))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"config: {brief(repr(error))}; expected all of its entries") from error
    split = entry(described, "split", dict[str, list[str]])
    data = entry(described, "data", dict[str, Any] | None) or {}
    return RunConfig(
        TrainingConfig.from_dict(config),
        {part: entry(split, part, list[str]) for part in ("train", "validation")},
        entry(described, "versions", dict[str, str]),
        entry(data, "cases", dict[str, str] | None) or {},
        entry(data, "sizes", dict[str, int] | None) or {},
        entry(described, "dataset", dict[str, Any] | None) or {},
    )


def _read_json(path: Path) -> Any:
    """Plain data from a file, or None if it is missing or damaged."""
    with suppress(InputError):
        return read_json(path)
    return None


def _config_copy(run: Path) -> Any:
    """What ``config.json`` held, from the newest checkpoint that has a copy."""
    for path in checkpoints(run):
        with suppress(InputError, KeyError, TypeError):
            return read(path)[KEY]["provenance"]["run"]
    return None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, the newest of the last ones first, and the best."""
    numbers = [path.stem.removeprefix("last-") for path in run.glob("last-*.ckpt")]
    older = sorted(int(number) for number in numbers if number.isdecimal())
    paths = [*(former(run / LAST, number) for number in (0, *older)), run / BEST]
    return [path for path in paths if path.is_file()]


def newest_checkpoint(run: Path) -> tuple[Path, str | None]:
    """Choose the checkpoint to resume from.

    Returns:
        it, and a warning about unreadable newer ones or None.

    Raises:
        InputError: none reads.
    """
    steps: dict[Path, int] = {}
    epochs: dict[Path, int] = {}
    problem = None
    for path in checkpoints(run):
        try:
            data = read(path)
            epochs[path], steps[path] = epochs_done(data), entry(data, "global_step", int)
        except InputError as error:
            said = str(error)
            problem = problem or (said if str(path) in said else f"checkpoint: {path}: {said}")
        if path in steps and path.name == LAST:
            break
    if not steps:
        raise InputError(f"output: {run} holds no checkpoint that can be resumed; {problem}")
    # Of equal ones the first: the last ones are newer than the best.
    path = max(steps, key=steps.__getitem__)
    if path.name == LAST:
        return path, None
    problem = problem or f"checkpoint: {run / LAST} does not exist"
    where = f"epoch {epochs[path]}, step {steps[path]}"
    return path, f"{problem}\nresuming from {path}, {where}"


def check_folder(
    output: Path, config: TrainingConfig, described: dict[str, Any], existing: IfExists
) -> None:
    """Check that a run's folder can be one, before anything that takes long.

    Raises:
        InputError: it is a file, holds no run to resume or one of other settings, cases or sizes
            of files, or holds what a new run may not replace.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"output: {output} is a file; expected the name of a folder")
    if existing == "resume" and not checkpoints(output):
        raise InputError(
            f"output: {output} holds no run to resume (no {LAST}); start one without resuming"
        )
    if existing == "resume":
        _check_same(output, read_config(output), config, described)
    else:
        _check_ownership(output, existing)


def prepare_folder(
    output: Path, config: TrainingConfig, described: dict[str, Any], existing: IfExists
) -> None:
    """Empty the folder for a new run, or check that the run in it can be resumed.

    Only files that a run wrote are replaced.

    Raises:
        InputError: as :func:`egcnn.training.fit`.
    """
    if existing == "resume":
        before, written = _read_run(output)
        _check_same(output, before, config, described)
        if _by_a_run(output / CONFIG) is None:
            write_json(output / CONFIG, written)
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
    described = _read_json(path)
    if described is None:
        return None
    return isinstance(described, dict) and {"config", "split", "versions"} <= set(described)


def _check_same(
    output: Path, before: RunConfig, config: TrainingConfig, described: dict[str, Any]
) -> None:
    """Check that a run was started with the same settings, cases and data, as far as described."""
    _check_settings(output, before.config, config)
    _check_split(output, before.split, described["split"])
    data = described["data"]
    _check_data(output, before.sizes, data["sizes"])
    _check_data(output, before.data, data.get("cases", {}))


def _check_settings(output: Path, before: TrainingConfig, now: TrainingConfig) -> None:
    # Settings of the machine may change when a run is resumed; hyperparameters may not.
    for name, was, is_now in changed_settings(before, now):
        if name not in MACHINE:
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


def _check_data(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if now.get(name, value) != value:
            raise InputError(
                f"output: {output} was trained with other files of the case {name!r} than the "
                "dataset has now; expected the same until the run ends"
            )
