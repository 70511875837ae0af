"""Commands that predict and evaluate."""

from __future__ import annotations

from os.path import exists  # False for joined names that are too long for one
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from egcnn.checks import DEFAULT_OVERLAP
from egcnn.cli.options import DEVICE, PRECISION
from egcnn.cli.root import app
from egcnn.errors import InputError

if TYPE_CHECKING:
    from egcnn.checkpoint import Trained
    from egcnn.data.case import Case


@app.command()
def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A .ckpt file written by 'egcnn train', or several joined by commas, whose "
            "probabilities are averaged."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="NIfTI files (3D, or 4D with the modalities last), the files of one case joined "
            "by commas in the order of the modalities, case folders, or dataset folders."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.nii.gz.")],
    edges: Annotated[
        bool,
        typer.Option(
            "--edges", help="Also write NAME_edges.nii.gz, the edge probabilities per region."
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write NAME_probabilities.nii.gz, the probabilities of all regions.",
        ),
    ] = False,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips",
            help="Average over mirrored images, along the axes that training mirrored (up to 8 "
            "times as long).",
        ),
    ] = False,
    split: Annotated[
        str,
        typer.Option(help="Cases of a dataset folder to predict: all, train or validation."),
    ] = "all",
    overlap: Annotated[
        float, typer.Option(help="Overlap of neighbouring windows, from 0 to below 1.")
    ] = DEFAULT_OVERLAP,
    device: Annotated[str, DEVICE] = "auto",
    precision: Annotated[str | None, PRECISION] = None,
) -> None:
    """Segment volumes; label maps are written on each input's own grid."""
    import time

    from egcnn.checkpoint import load
    from egcnn.inference import choose_device, predict_cases
    from egcnn.terminal import Terminal, progress_bar, say, visible

    where = choose_device(device)
    # A name may hold a comma itself.
    parts = [checkpoint] if exists(checkpoint) else checkpoint.split(",")
    files = [Path(part.strip()) for part in parts]
    members = [load(file, where) for file in files]
    for file, member in zip(files, members, strict=True):
        if edges and not member.settings.edge:
            raise InputError(
                f"--edges: {file} has no edge stream (it was trained with --no-edge); "
                "expected a checkpoint that has one"
            )
    axes = _flips(files, members) if flips else ()
    cases = _input_cases(inputs, members[0], split, files)
    with progress_bar(Terminal(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        predictions = predict_cases(
            members,
            cases,
            output,
            edges=edges,
            probabilities=probabilities,
            overlap=overlap,
            flips=axes,
            precision=precision,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        for number, case in enumerate(cases, 1):
            started = time.perf_counter()
            title = f"{visible(case.name)}, case {number} of {len(cases)}, windows"
            bar.reset(task, description=title, total=None)
            path = next(predictions)[2]  # holds no prediction beside the next
            say(f"{path}  {time.perf_counter() - started:.1f} s")


def _flips(files: list[Path], members: list[Trained]) -> tuple[int, ...]:
    """The axes that all checkpoints were trained to take mirrored."""
    from egcnn.errors import named
    from egcnn.inference import training_flips

    axes = []
    for file, member in zip(files, members, strict=True):
        with named(f"checkpoint: {file}"):
            axes.append(training_flips(member))
        if axes[-1] != axes[0]:
            raise InputError(
                f"--flips: {files[0]} was trained with the axes {axes[0]} mirrored, {file} with "
                f"{axes[-1]}; expected the same in all"
            )
    return axes[0]


def _input_cases(
    inputs: list[str], trained: Trained, split: str, checkpoints: list[Path]
) -> list[Case]:
    from egcnn.data.case import Case
    from egcnn.data.nifti import common_name

    if split not in ("all", "train", "validation"):
        raise InputError(f"--split: {split!r}; expected all, train or validation")
    if split != "all" and len(checkpoints) > 1:
        raise InputError(
            f"--split {split}: {len(checkpoints)} checkpoints, whose splits may differ; expected "
            "one"
        )
    cases: list[Case] = []
    for text in inputs:
        # A name may hold a comma itself.
        parts = [text] if exists(text) else text.split(",")
        files = [Path(part.strip()) for part in parts if part.strip()]
        if len(files) == 1 and files[0].is_dir():
            cases.extend(_folder_cases(files[0], split, checkpoints[0], len(trained.modalities)))
        elif files:
            cases.append(Case(common_name(files), tuple(files)))
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise InputError(
                f"inputs: two cases are named {case.name!r}; expected different names, since each "
                "prediction is named after its case"
            )
        seen.add(case.name)
        if len(case.images) not in (1, len(trained.modalities)):
            raise InputError(
                f"{','.join(map(str, case.images))}: {len(case.images)} files; this network takes "
                f"{len(trained.modalities)} modalities ({', '.join(trained.modalities)})"
            )
    return cases


def _folder_cases(folder: Path, split: str, checkpoint: Path, modalities: int) -> list[Case]:
    from egcnn.data import read_cases

    cases = list(read_cases(folder, modalities))
    if split == "all":
        return cases
    from egcnn.training import CONFIG, read_config

    if not (checkpoint.parent / CONFIG).is_file():
        raise InputError(
            f"--split {split}: {checkpoint.parent} has no {CONFIG}; expected a checkpoint in the "
            "folder of its run"
        )
    names = read_config(checkpoint.parent).split[split]
    known = {case.name: case for case in cases}
    absent = [name for name in names if name not in known]
    if absent:
        raise InputError(
            f"--split {split}: {folder} lacks {len(absent)} of the run's {len(names)} cases, such "
            f"as {absent[0]!r}; expected the dataset that it was trained on"
        )
    return [known[name] for name in names]


@app.command()
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder that holds NAME.nii.gz for each case.")
    ],
    data: Annotated[Path, typer.Argument(help="Dataset folder that holds the truth.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the tables and the report."),
    ] = None,
    lesions: Annotated[
        bool,
        typer.Option(
            "--lesions", help="Score every lesion by itself too (pip install 'egcnn[lesions]')."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of processes, one for each core by default; 0 uses none."),
    ] = None,
) -> None:
    """Compare predictions with the truth: tables, metrics.csv, metrics.json and report.html.

    Edge probabilities written by predict --edges are scored as well.
    """
    from egcnn import evaluation
    from egcnn.data import open_dataset
    from egcnn.machine import usable_cores
    from egcnn.report import edge_table, evaluation_table, lesion_table, write_report
    from egcnn.terminal import say, show

    scored = evaluation.evaluate(
        predictions,
        open_dataset(data),
        lesions=lesions,
        workers=usable_cores() if workers is None else workers,
        quiet=False,
    )
    # Files first: nothing that is wrong with the terminal loses them.
    written = evaluation.write_evaluation(scored, predictions if output is None else output)
    show(evaluation_table(scored))
    show(edge_table(scored))
    if lesions:
        show(lesion_table(scored))
    if scored.missing:
        count, all_ = len(scored.missing), len(scored.missing) + len(scored.cases)
        shown = ", ".join(scored.missing[:3]) + (", ..." if count > 3 else "")
        say(f"{count} of {all_} labelled cases have no prediction and are excluded: {shown}")
    for path in (*written, write_report(written[0].parent)):
        say(str(path))
