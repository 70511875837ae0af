"""The command that writes trained networks for other software."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egcnn.cli.options import examples
from egcnn.cli.root import app


@app.command(
    epilog=examples(
        "egcnn export run/best.ckpt -o brain.onnx --edges",
        "egcnn export run/best.ckpt -o brain.safetensors",
        "egcnn export run/best.ckpt -o brain",
    )
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Of 'egcnn train', or .safetensors.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="NAME.pt2 (torch.export), NAME.onnx, NAME.safetensors (weights and settings), or "
            "NAME, a MONAI bundle's folder, new or empty.",
        ),
    ],
    edges: Annotated[
        bool, typer.Option("--edges", help="Of .pt2, .onnx: edge logits as a second output.")
    ] = False,
) -> None:
    """Write a trained network for other software.

    The suffix of the output is its format. Programs (.pt2, .onnx) turn preprocessed images into
    logits.
    """
    from egcnn.checkpoint import load
    from egcnn.export import check_format
    from egcnn.export import export as write
    from egcnn.terminal import say

    check_format(output)  # before what takes long
    write(load(checkpoint), output, edges=edges)
    say(str(output))
