"""Commands about data: what a dataset holds, and synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egcnn.cli.options import JSON, examples, triple
from egcnn.cli.root import app
from egcnn.errors import InputError


@app.command(epilog=examples("egcnn inspect DATA", "egcnn inspect DATA --images --json"))
def inspect(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Dataset folder; its layout is detected.")
    ],
    images: Annotated[
        bool,
        typer.Option("--images", help="Read the images too: damaged, NaN or empty ones."),
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Show what a dataset holds, and what is wrong with it.

    Reads the headers of all files and the label maps; the exit code is 1 if a case is bad.
    """
    import json

    from egcnn.data import find_dataset, inspect_cases
    from egcnn.data.inspection import summarize
    from egcnn.report import grid_table, inspection_title, label_table
    from egcnn.terminal import Terminal, plain, say, show

    dataset = find_dataset(data)
    reports = []
    with Terminal(stderr=True).status("reading") as status:
        for report in inspect_cases(dataset, images=images):
            reports.append(report)
            status.update(plain(f"{len(reports)} cases read, the last {report.name}"))
    summary = summarize(dataset, reports)
    if as_json:
        say(json.dumps(summary, indent=1))
    else:
        say(inspection_title(summary))
        show(grid_table(summary))
        if summary["labels"]:
            show(label_table(summary))
        for name, problems in summary["problems"].items():
            for problem in problems:
                say(f"{name}: {problem}")
    if summary["problems"]:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "egcnn phantom brats --layout brats",
        "egcnn phantom small --layout kits --cases 6 --shape 48,48,40",
    )
)
def phantom(
    output: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write to, new or empty.")
    ],
    layout: Annotated[
        str, typer.Option(metavar="NAME", help="brats, kits or nnunet (BraTS as nnU-Net has it).")
    ],
    cases: Annotated[int, typer.Option(metavar="N", help="Number of cases.")] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the cases, one by one.")] = 0,
    shape: Annotated[
        str | None,
        typer.Option(metavar="D,H,W", help="Voxels along the array's axes (the challenge's)."),
    ] = None,
) -> None:
    """Write synthetic cases in the layout of a challenge.

    Brain MR of four modalities with tumours, or abdominal CT with kidneys and their tumours.
    """
    from egcnn.data.phantom import write_phantoms
    from egcnn.terminal import Terminal, counted, plain, say

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: is there already; expected a new or an empty folder")
    size = None if shape is None else triple("--shape", shape)
    with Terminal(stderr=True).status("drawing the first case") as status:
        for number, case in enumerate(write_phantoms(layout, output, cases, size, seed), 1):
            status.update(plain(f"{number} of {cases} cases written, the last {case.name}"))
    say(f"{output}: {counted(cases, 'case')} in the layout of {layout}")
