"""``egcnn demo``: synthetic data, a trained network, its predictions, scores and a report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from egcnn import checkpoint
from egcnn.data import Case, Dataset, open_dataset, read_image, read_label
from egcnn.data.layouts import shown_channel, shown_colours, shown_modality
from egcnn.data.phantom import write_brats
from egcnn.errors import InputError, named
from egcnn.evaluation import Evaluation, score_predictions, write_evaluation
from egcnn.files import read_json, write_json
from egcnn.inference import Prediction, predict_cases
from egcnn.report import (
    REPORT,
    View,
    edge_table,
    evaluation_table,
    try_report,
    write_picture,
)
from egcnn.terminal import Terminal, counted, duration, show
from egcnn.training import PREDICTIONS, Run, fit, plan
from egcnn.typed import entry

_PARTS = ("data", "run", PREDICTIONS, "evaluation")
_FILES = ("demo.png", REPORT)
_RECORD = "demo.json"
_MAX_ROWS = 3


def run_demo(
    output: str | Path,
    *,
    cases: int,
    shape: tuple[int, int, int],
    epochs: int,
    seed: int,
    overwrite: bool,
) -> None:
    """Write synthetic BraTS cases, train EG-CNN on most of them, predict and evaluate the rest.

    Args:
        output: folder that receives data, run, predictions, evaluation, ``demo.png`` and
            ``report.html``.
        cases: how many cases; about a quarter is held out.
        shape: their size in voxels.
        epochs: number of training epochs.
        seed: for the cases and the training.
        overwrite: replace an earlier demo in ``output``, by what ``demo.json`` there records.

    Raises:
        InputError: fewer than two cases, or ``output`` holds a demo already or files in its place.
    """
    output = Path(output)
    if cases < 2:
        raise InputError(f"cases: {cases}; expected at least 2, one to train on and one to predict")
    _prepare_folder(output, overwrite)
    with _recorded(output):
        _run(output, cases, shape, epochs, seed)


def _run(output: Path, cases: int, shape: tuple[int, int, int], epochs: int, seed: int) -> None:
    started = time.perf_counter()
    console = Terminal(soft_wrap=True)
    data, run_folder, predictions, scores = (output / part for part in _PARTS)
    write_brats(data, cases, shape=shape, seed=seed)
    dataset = open_dataset(data)
    # With so few cases, more steps help more than larger batches.
    few = {"fraction": 0.25, "batch_size": 1, "network.backbone.filters": 8, "lr": 1e-3}
    config = plan(dataset).change({"epochs": epochs, "seed": seed, **few})
    console.print(f"1. {cases} synthetic cases of {'x'.join(map(str, shape))} voxels: {data}")
    console.print(f"2. training, {counted(epochs, 'epoch')}")
    run = fit(config, dataset, run_folder)
    console.print(f"3. {counted(len(run.validation), 'unseen case')}")
    evaluation, views = _predict(run, dataset, predictions)
    written = write_evaluation(evaluation, scores)
    picture = write_picture(
        views,
        dataset.regions,
        output / _FILES[0],
        modality=f"image ({shown_modality(dataset).upper()})",
        colours=shown_colours(dataset),
    )
    report = try_report(output)
    show(evaluation_table(evaluation))
    show(edge_table(evaluation))
    for title, path in (
        ("cases", data),
        ("run", run_folder),
        ("checkpoint", run.last),
        ("predictions", predictions),
        ("scores", written[0]),
        ("scores", written[1]),
        ("picture", picture),
        ("report", report),
    ):
        if path is not None:
            console.print(f"{title:<12}{path}")
    console.print(f"done in {duration(time.perf_counter() - started)}")


def _prepare_folder(output: Path, overwrite: bool) -> None:
    """Delete an earlier demo.

    Raises:
        InputError: there is one that is not to be overwritten, or a file that no demo wrote.
    """
    record = output / _RECORD
    with named(record):
        made = set(entry(read_json(record), "files", list[str])) if record.exists() else set()
    there = _files(output)
    for file in there:
        if str(file.relative_to(output)) not in made:
            raise InputError(
                f"output: {file} is no file of a demo by {record}, and would be replaced or mixed "
                "with one; expected another folder"
            )
    if there and not overwrite:
        raise InputError(
            f"output: {output} holds a demo already; overwrite it (--overwrite) or name "
            "another folder"
        )
    for file in there:
        file.unlink()
    for folder in (output / name for name in _PARTS):
        for empty in (*sorted(folder.rglob("*"), reverse=True), folder):
            with suppress(OSError):
                empty.rmdir()


@contextmanager
def _recorded(output: Path) -> Iterator[None]:
    """Record afterwards, however the block ends, which files are the demo's."""
    try:
        yield
    finally:
        files = [str(file.relative_to(output)) for file in _files(output)]
        write_json(output / _RECORD, {"files": sorted(files)})


def _files(output: Path) -> list[Path]:
    """All files in the places of a demo."""
    places = [path for name in (*_PARTS, *_FILES) for path in (output / name).rglob("*")]
    places += [output / name for name in (*_PARTS, *_FILES)]
    return [path for path in places if path.is_symlink() or (path.exists() and not path.is_dir())]


def _predict(run: Run, dataset: Dataset, folder: Path) -> tuple[Evaluation, list[View]]:
    """Predict and score the cases that the run has not seen, and prepare the first for drawing."""
    # The last epoch, since the best one was chosen on these very cases.
    trained = checkpoint.load(run.last)
    views: list[View] = []

    def viewed() -> Iterator[tuple[Case, Prediction, Path]]:
        for case, prediction, path in predict_cases(trained, run.validation, folder, edges=True):
            if len(views) < _MAX_ROWS:
                views.append(
                    View(
                        case.name,
                        read_image(case)[shown_channel(dataset)].numpy(),
                        read_label(case, dataset.regions)[0].numpy(),
                        prediction.labels,
                        prediction.edges,
                        (1.0, 1.0, 1.0),
                    )
                )
            yield case, prediction, path

    return score_predictions(viewed(), dataset, folder), views
