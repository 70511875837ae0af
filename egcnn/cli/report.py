"""The command that writes the page of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egcnn.cli.options import DEVICE, examples
from egcnn.cli.root import app


@app.command(epilog=examples("egcnn report run", "egcnn report predictions run -o page.html"))
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a training, an evaluation, a comparison or a demo; or several for one "
            "page, such as an evaluation and the training of its network.",
            metavar="RUN",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page; by default report.html in the first RUN."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder, if it is no longer where it was.")
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Write one HTML page: scores, slices with edges, curves.

    The held-out cases of a training that has no predictions are predicted first.
    """
    from egcnn.report import write_report
    from egcnn.terminal import Terminal, say

    with Terminal(stderr=True).status("reading, predicting what is missing, drawing"):
        path = write_report(folders, output, data=data, device=device)
    say(str(path))
