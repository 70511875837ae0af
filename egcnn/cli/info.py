"""Commands that inform: the demo, the cost of the networks, the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egcnn.cli.options import triple
from egcnn.cli.root import app


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all outputs.")] = Path(
        "demo"
    ),
    cases: Annotated[
        int, typer.Option(help="Number of synthetic cases; a quarter is held out.")
    ] = 48,
    shape: Annotated[str, typer.Option(help="Size of each case in voxels, as D,H,W.")] = "40,40,32",
    epochs: Annotated[int, typer.Option(help="Number of training epochs.")] = 28,
    seed: Annotated[int, typer.Option(help="Random seed of the cases and the training.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the demo in OUTPUT.")
    ] = False,
) -> None:
    """Train on synthetic tumours in the BraTS layout, predict held-out cases, evaluate and draw."""
    from egcnn.demo import run_demo

    run_demo(
        output,
        cases=cases,
        shape=triple("--shape", shape),
        epochs=epochs,
        seed=seed,
        overwrite=overwrite,
    )


@app.command()
def networks(
    modalities: Annotated[int, typer.Option(help="Image channels.")] = 4,
    regions: Annotated[int, typer.Option(help="Channels of the logits.")] = 3,
    filters: Annotated[int, typer.Option(help="Number of filters at full resolution.")] = 32,
    shape: Annotated[str, typer.Option(help="Image size in voxels, as D,H,W.")] = "160,192,128",
) -> None:
    """Print parameters and multiply-adds of backbones alone, with the edge stream, and larger."""
    from egcnn.comparison import networks as network_table

    size = triple("--shape", shape)
    for line in network_table(modalities, regions, filters, size):
        print(line)


@app.command()
def info() -> None:
    """Show versions, what was built, and which operators each device uses."""
    import torch

    from egcnn import ops
    from egcnn.machine import versions

    built = ops.backend_info()
    serves = built.pop("serves")
    for name, version in versions().items():
        print(f"{name:<20}{version}")
    for key, value in built.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if shown != "":
            print(f"{key.replace('_', ' '):<20}{shown}")
    print(f"{'threads':<20}{torch.get_num_threads()}")
    for device, backend in serves.items():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        what = f" ({', '.join(names)})" if device == "cuda" else ""
        print(f"{device + what:<20}{backend} operators")
