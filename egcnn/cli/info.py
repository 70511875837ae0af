"""Commands that inform: the demo, the cost of the networks, the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egcnn.cli.options import examples, triple
from egcnn.cli.root import app


@app.command(
    epilog=examples("egcnn demo", "egcnn demo -o quick --cases 4 --shape 32,32,32 --epochs 1")
)
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for all outputs.")
    ] = Path("demo"),
    cases: Annotated[
        int, typer.Option(metavar="N", help="Synthetic cases; a quarter is held out.")
    ] = 48,
    shape: Annotated[
        str, typer.Option(metavar="D,H,W", help="Size of each case in voxels of 1 mm.")
    ] = "40,40,32",
    epochs: Annotated[int, typer.Option(metavar="N", help="Passes over the training cases.")] = 36,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the cases and the training.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the demo in DIR.")
    ] = False,
) -> None:
    """Train, predict, score and draw synthetic brain tumours.

    Less than three minutes on two cores.
    """
    from egcnn.demo import run_demo

    run_demo(
        output,
        cases=cases,
        shape=triple("--shape", shape),
        epochs=epochs,
        seed=seed,
        overwrite=overwrite,
    )


@app.command(epilog=examples("egcnn networks", "egcnn networks --filters 16 --shape 96,96,96"))
def networks(
    modalities: Annotated[int, typer.Option(metavar="N", help="Image channels.")] = 4,
    regions: Annotated[int, typer.Option(metavar="N", help="Channels of the logits.")] = 3,
    filters: Annotated[int, typer.Option(metavar="N", help="Filters at full resolution.")] = 32,
    shape: Annotated[
        str, typer.Option(metavar="D,H,W", help="Image size in voxels.")
    ] = "160,192,128",
) -> None:
    """Print the networks' parameters and multiply-adds.

    Of each backbone alone, as EG-CNN, and alone with as many parameters.
    """
    from egcnn.comparison import networks as network_table

    size = triple("--shape", shape)
    for line in network_table(modalities, regions, filters, size):
        print(line)


@app.command(epilog=examples("egcnn info"))
def info() -> None:
    """Show versions, what was built, what serves each device."""
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
