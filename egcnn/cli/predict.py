"""Commands that predict and evaluate."""

from __future__ import annotations

import json
import math
import time
from operator import itemgetter
from os.path import exists  # False for joined names that are too long for one
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egcnn.checks import DEFAULT_OVERLAP
from egcnn.cli.options import DEVICE, JSON, PRECISION, examples
from egcnn.cli.root import app
from egcnn.errors import InputError
from egcnn.terminal import Bar, amount, say

if TYPE_CHECKING:
    from egcnn.checkpoint import Trained
    from egcnn.data.case import Case


@app.command(
    epilog=examples(
        "egcnn predict run/last.ckpt DATA -o predictions --split validation --edges",
        "egcnn predict run/best.ckpt t1.nii,t1ce.nii,t2.nii,flair.nii -o p",
        "egcnn predict fold0/best.ckpt,fold1/best.ckpt DATA -o averaged --flips",
    )
)
def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Of 'egcnn train'; several joined by commas are averaged."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="NIfTI files (3D, or 4D with the modalities last), a case's files joined by "
            "commas in the modalities' order, folders of cases, or of datasets.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for NAME.nii.gz.")
    ],
    edges: Annotated[
        bool,
        typer.Option("--edges", help="NAME_edges.nii.gz too: each region's edges."),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="NAME_probabilities.nii.gz too, of the regions."),
    ] = False,
    flips: Annotated[
        bool,
        typer.Option("--flips", help="Average over mirrored images too, in up to 8 times as long."),
    ] = False,
    split: Annotated[
        str,
        typer.Option(metavar="NAME", help="Cases of a dataset: all, train or validation."),
    ] = "all",
    overlap: Annotated[
        float, typer.Option(metavar="SHARE", help="Of neighbouring windows, from 0 to below 1.")
    ] = DEFAULT_OVERLAP,
    as_json: Annotated[bool, JSON] = False,
    device: Annotated[str, DEVICE] = "auto",
    precision: Annotated[str | None, PRECISION] = None,
) -> None:
    """Segment volumes, each on its own grid."""
    from egcnn.checkpoint import load
    from egcnn.inference import choose_device, predict_cases

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
    made: list[dict[str, Any]] = []
    try:
        with Bar() as bar:
            shown = _Windows(bar, len(cases), math.prod(members[0].preprocessing.patch))
            predictions = predict_cases(
                members,
                cases,
                output,
                edges=edges,
                probabilities=probabilities,
                begin=shown.begin,
                overlap=overlap,
                flips=axes,
                precision=precision,
                progress=shown.update,
            )
            for case, path in map(itemgetter(0, 2), predictions):  # holds none beside the next
                seconds = time.perf_counter() - shown.started
                made.append({"case": case.name, "labels": str(path), "seconds": round(seconds, 3)})
                if not as_json:
                    say(f"{path}  {seconds:.1f} s")
    finally:
        # Also where a case could not be read, which is said when all others are done.
        if as_json and made:
            names = [str(file) for file in files]
            say(json.dumps({"checkpoints": names, "predictions": made}, indent=1))


class _Windows:
    """The text of the progress bar: the case, its windows, voxels a second through the network."""

    def __init__(self, bar: Bar, cases: int, voxels: int) -> None:
        self.bar, self.cases, self.voxels = bar, cases, voxels
        self.title, self.number, self.started = "", 0, 0.0
        self.windows, self.seconds, self.before = 0, 0.0, 0.0

    def begin(self, case: Case) -> None:
        """Show the next case."""
        self.number += 1
        self.title = f"{case.name}, case {self.number} of {self.cases}"
        self.started, self.before = time.perf_counter(), 0.0
        self.bar.update(self.number - 1, self.cases, self.title)

    def update(self, done: int, total: int) -> None:
        """Show how many windows of the case are done."""
        now = time.perf_counter()
        if self.before:
            self.windows += 1
            self.seconds += now - self.before
        self.before = now
        pace = self.windows * self.voxels / self.seconds if self.seconds else 0
        speed = f"  {amount(pace)}voxels/s" if pace else ""
        text = f"{self.title}  window {done}/{total}{speed}"
        self.bar.update(self.number - 1 + done / total, self.cases, text)


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


@app.command(epilog=examples("egcnn evaluate predictions DATA"))
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Folder of NAME.nii.gz, a case each.")
    ],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Dataset folder that holds the truth.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for tables and report (PREDICTIONS)."
        ),
    ] = None,
    lesions: Annotated[
        bool,
        typer.Option(
            "--lesions", help="Score each lesion too; needs the extra 'lesions' (panoptica)."
        ),
    ] = False,
    as_json: Annotated[bool, JSON] = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes (one a core); 0: none."),
    ] = None,
) -> None:
    """Score predictions against the truth: tables, files and a report.

    Dice, sensitivity, specificity, HD95 in mm, surface Dice; and the edges', of predict --edges.
    """
    from egcnn import evaluation
    from egcnn.data import open_dataset
    from egcnn.machine import usable_cores
    from egcnn.report import edge_table, evaluation_table, lesion_table, try_report
    from egcnn.terminal import show

    scored = evaluation.evaluate(
        predictions,
        open_dataset(data),
        lesions=lesions,
        workers=usable_cores() if workers is None else workers,
        quiet=False,
    )
    # Files first: nothing that is wrong with the terminal loses them.
    written = evaluation.write_evaluation(scored, predictions if output is None else output)
    if as_json:
        say(written[1].read_text(encoding="utf-8"))
        try_report(written[0].parent)
        return
    show(evaluation_table(scored))
    show(edge_table(scored))
    if lesions:
        show(lesion_table(scored))
    if scored.missing:
        count, all_ = len(scored.missing), len(scored.missing) + len(scored.cases)
        shown = ", ".join(scored.missing[:3]) + (", ..." if count > 3 else "")
        say(f"{count} of {all_} labelled cases have no prediction and are excluded: {shown}")
    for path in written:
        say(str(path))
    if (page := try_report(written[0].parent)) is not None:
        say(str(page))
