"""Commands about data: what a dataset holds, and synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egcnn.cli.root import app


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(help="Dataset folder; its layout is detected.")],
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="Read all images too: finds damaged files, NaN and empty images."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a dataset holds, and what is wrong with which case; then the exit code is 1.

    Reads the headers of all files and the label maps.
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
