"""The runs of a comparison: finished ones are read, the others trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

from egcnn.checkpoint import load
from egcnn.comparison.arms import Arm
from egcnn.comparison.differences import Comparison, Result
from egcnn.comparison.sizes import parameters
from egcnn.data.case import Dataset
from egcnn.errors import InputError
from egcnn.evaluation import MEAN, SUMMARY, predict_and_evaluate, read_summary
from egcnn.inference import choose_device
from egcnn.terminal import duration
from egcnn.training import (
    HISTORY,
    LAST,
    PREDICTIONS,
    IfExists,
    TrainingConfig,
    changed_settings,
    checkpoints,
    fit,
    read_config,
    read_history,
)
from egcnn.training.config import MACHINE

#: Written last: a run with this file is finished.
EVALUATION = Path(PREDICTIONS, SUMMARY)


def compare(
    dataset: Dataset,
    config: TrainingConfig,
    output: str | Path,
    *,
    arms: Sequence[Arm],
    seeds: int,
    device: str = "auto",
    cache: str | Path | None = None,
    console: Console | None = None,
) -> Comparison:
    """Train and evaluate the runs that ``output`` does not hold yet.

    Each run is evaluated with its last checkpoint, since the best one was chosen on the held-out
    cases, and written to ``OUTPUT/ARM-seedN``. An interrupted run continues after its last epoch.

    Args:
        dataset: the cases.
        config: hyperparameters of all runs; backbone, edge stream and seed are set here.
        output: the comparison's folder.
        arms: the arms to compare.
        seeds: runs per arm, with seeds 0, 1, ...; all share the split.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        cache: see :func:`egcnn.training.fit`.
        console: where progress is printed; None prints nothing.

    Raises:
        InputError: as :func:`egcnn.training.fit`; or a run there was made with other settings, or a
            file of it is damaged.
    """
    if seeds < 1:
        raise InputError(f"seeds: {seeds}; expected at least 1")
    if not arms:
        raise InputError("arms: none; expected at least one")
    console = console or Console(quiet=True)
    say = partial(console.print, highlight=False, markup=False)
    # Resolve all configurations first, so that an invalid setting fails now and not after hours.
    todo = [(arm, arm.config(config, dataset, seed)) for seed in range(seeds) for arm in arms]
    results = []
    for number, (arm, settings) in enumerate(todo, 1):
        run = Path(output) / arm.folder(settings.seed)
        title = f"run {number} of {len(todo)}, {run.name}"
        finished = (run / EVALUATION).is_file()
        say(f"{title}: {'already finished' if finished else 'training'}")
        started = time.perf_counter()
        if finished:
            _check_same(run, settings)
        else:
            _train(dataset, settings, run, device, cache, None if console.quiet else title)
        results.append(_result(dataset, settings, run, arm))
        if not finished:
            spent = duration(time.perf_counter() - started)
            say(f"{title}: done in {spent}, Dice {results[-1].regions[MEAN]['dice']:.4f}")
    return Comparison(tuple(results))


def _check_same(run: Path, config: TrainingConfig) -> None:
    for name, before, now in changed_settings(read_config(run).config, config):
        if name not in MACHINE:
            raise InputError(
                f"{run}: finished with {name} {before}, now {now}; expected the same settings or "
                "another folder"
            )


def _train(
    dataset: Dataset,
    config: TrainingConfig,
    run: Path,
    device: str,
    cache: str | Path | None,
    title: str | None,
) -> None:
    """Train and evaluate a run, continuing it if it was interrupted."""
    existing: IfExists = "resume" if checkpoints(run) else "overwrite"
    done = fit(
        config,
        dataset,
        run,
        existing=existing,
        device=device,
        cache=cache,
        quiet=True,
        title=title,
    )
    trained = load(run / LAST, choose_device(device))
    predict_and_evaluate(
        trained,
        done.validation,
        dataset,
        (run / EVALUATION).parent,
        edges=True,
        title=title and f"{title}: predicting",
    )


def _result(dataset: Dataset, config: TrainingConfig, run: Path, arm: Arm) -> Result:
    """Read a finished run's folder."""
    names = dataset.regions.reported_names
    regions, networks, edge_space = read_summary(run / EVALUATION, names)
    steps = [row["step_seconds"] for row in read_history(run) if "step_seconds" in row]
    if not steps:
        raise InputError(f"{run / HISTORY}: no row with 'step_seconds'; expected one per epoch")
    size = parameters(config.network, len(dataset.modalities), len(dataset.regions))
    return Result(arm, config.seed, size, median(steps), regions, networks, edge_space)
