"""Commands that train: one run, or a comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egcnn.cli.options import (
    CACHE,
    DEVICE,
    EPOCHS,
    FOLD,
    JSON,
    PRECISION,
    SET,
    choices,
    examples,
    triple,
)
from egcnn.cli.root import app
from egcnn.errors import InputError

if TYPE_CHECKING:
    import torch

    from egcnn.data import Dataset
    from egcnn.training import TrainingConfig


@app.command(
    epilog=examples(
        "egcnn train Task04_Hippocampus -o run",
        "egcnn train BRATS -o run --devices 8 --cache CACHE",
        "egcnn train BRATS -o run --backbone unet --set edge_stream.gate=voxel",
        "egcnn train BRATS -o run --resume",
    )
)
def train(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Dataset folder; its layout is detected.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.")
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in DIR.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in DIR.")] = False,
    as_json: Annotated[bool, JSON] = False,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="unet, vnet or segnet (segnet)."),
    ] = None,
    filters: Annotated[
        int | None,
        typer.Option(metavar="N", help="Filters at full resolution (32; 8)."),
    ] = None,
    edge: Annotated[
        bool | None,
        typer.Option("--edge/--no-edge", help="With the edge stream or without (with)."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="paper: its equations taken literally (none)."),
    ] = None,
    epochs: Annotated[int | None, EPOCHS] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Patches a step over all devices (8; 4)."),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="D,H,W", help="Patch in voxels (a median volume, or less)."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="First learning rate of Adam (1e-4; 1e-3)."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of weights, order, augmentation, noise (0)."),
    ] = None,
    fold: Annotated[int | None, FOLD] = None,
    clip_gradients: Annotated[
        float | None,
        typer.Option(metavar="NORM", help="Scale longer gradients to this norm (none)."),
    ] = None,
    settings: Annotated[list[str] | None, SET] = None,
    device: Annotated[str, DEVICE] = "auto",
    devices: Annotated[
        int | None,
        typer.Option(metavar="N", help="GPUs of a machine that share a batch (1)."),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Machines, each with DEVICES (1)."),
    ] = None,
    precision: Annotated[str | None, PRECISION] = None,
    cache: Annotated[Path | None, CACHE] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(metavar="N", help="Take a batch in N parts: less memory (1)."),
    ] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing", help="Recompute activations: less memory, more time."
        ),
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile the network by torch.compile."),
    ] = None,
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option(metavar="MIN", help="Minutes between checkpoints in an epoch (15)."),
    ] = None,
) -> None:
    """Train on a dataset.

    Options not given are chosen to suit it: in parentheses, those for large and, if they differ,
    for small volumes (up to 64 voxels an axis).
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite: both given; expected one of them")
    from egcnn.data import open_dataset
    from egcnn.files import without_nan
    from egcnn.inference import choose_device
    from egcnn.machine import first_process
    from egcnn.report import training_table
    from egcnn.terminal import say, show
    from egcnn.training import IfExists, fit

    options: dict[str, Any] = {
        "network.edge": edge,
        "network.backbone.name": backbone,
        "network.backbone.filters": filters,
        "preprocessing.patch": None if patch is None else triple("--patch", patch),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "fold": fold,
        "devices": devices,
        "nodes": nodes,
        "precision": precision,
        "accumulate": accumulate,
        "clip_gradients": clip_gradients,
        "activation_checkpointing": activation_checkpointing,
        "compile": compile_,
        "checkpoint_minutes": checkpoint_minutes,
    }
    given = {name: value for name, value in options.items() if value is not None}
    dataset = open_dataset(data)
    where = choose_device(device)
    config = _configure(dataset, where, output if resume else None, preset, given, settings or [])
    # Every device runs this command.
    first = first_process()
    if first:
        say(_described(dataset, config, where), wrap=True, stderr=as_json)
        _say_unlabelled(dataset, stderr=as_json)
    existing: IfExists = "resume" if resume else "overwrite" if overwrite else "error"
    run = fit(
        config,
        dataset,
        output,
        existing=existing,
        device=device,
        cache=cache,
        quiet=as_json,
        title="",
    )
    if not first:
        return
    if as_json:
        summary = {
            "run": str(run.output),
            "best": None if run.best is None else str(run.best),
            "last": str(run.last),
            "seconds": run.seconds,
            "validation": [case.name for case in run.validation],
            "history": [without_nan(row, None) for row in run.history],
        }
        say(json.dumps(summary, indent=1))
        return
    show(training_table(run.history, dataset.regions.reported_names, run.seconds))
    say(f"best epoch: {run.best or 'its checkpoint was deleted'}\nlast epoch: {run.last}")


def _configure(
    dataset: Dataset,
    device: torch.device,
    resumed: Path | None,
    preset: str | None,
    options: Mapping[str, Any],
    settings: list[str],
) -> TrainingConfig:
    """The configuration of the run to resume, or one for the dataset, changed by the options.

    Raises:
        InputError: there is no run to resume, or an invalid setting.
    """
    from egcnn.training import checkpoints, plan, read_config

    if resumed is not None and not checkpoints(resumed):
        raise InputError(f"--resume: {resumed} holds no run (no checkpoint)")
    config = plan(dataset, device) if resumed is None else read_config(resumed).config
    changes = config.read(settings)
    if resumed is None and "preprocessing.spacing" in changes:
        # The default patch depends on the spacing.
        config = plan(replace(dataset, spacing=changes["preprocessing.spacing"]), device)
    if preset is not None:
        config = config.preset(preset)
    return config.change({**options, **changes})


def _described(dataset: Dataset, config: TrainingConfig, device: torch.device) -> str:
    """One line about the run to come."""
    from egcnn.terminal import counted

    labelled = sum(case.label is not None for case in dataset.cases)
    network = config.network
    return (
        f"{dataset.root}: {dataset.layout} layout, {counted(labelled, 'labelled case')}, "
        f"{'edge-gated ' if network.edge else ''}{network.backbone.name} with "
        f"{network.backbone.filters} filters, "
        f"patch {'x'.join(map(str, config.preprocessing.patch))}, "
        f"{counted(config.epochs, 'epoch')}, batch {config.batch_size}, "
        f"{config.devices * config.nodes} x {device.type} ({config.precision})"
    )


def _say_unlabelled(dataset: Dataset, stderr: bool) -> None:
    """Say in one line which cases cannot be trained on; nothing if all have a label."""
    from egcnn.terminal import say

    names = [case.name for case in dataset.cases if case.label is None]
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        say(
            f"{len(names)} of {len(dataset.cases)} cases have no label and are left out: "
            f"{', '.join(names[:8])}{more}",
            wrap=True,
            stderr=stderr,
        )


@app.command(
    epilog=examples(
        "egcnn compare BRATS -o table1 --arms none,egcnn,larger",
        "egcnn compare DATA -o gates --arms egcnn --vary gate=voxel",
    )
)
def compare(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Dataset folder; its layout is detected.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder of all runs; given again, it continues."
        ),
    ],
    backbones: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Joined by commas (all).")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Joined by commas: none (the backbone alone), larger (alone, with EG-CNN's "
            "parameters), consistency (alone, with the consistency loss), egcnn, paper (its "
            "equations literally).",
        ),
    ] = "none,egcnn",
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of an arm, by seed.")] = 3,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="EG-CNN with other settings, several quoted; repeatable."
        ),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
    epochs: Annotated[int | None, EPOCHS] = None,
    fold: Annotated[int | None, FOLD] = None,
    settings: Annotated[list[str] | None, SET] = None,
    device: Annotated[str, DEVICE] = "auto",
    cache: Annotated[Path | None, CACHE] = None,
) -> None:
    """Train with and without the edge stream: the paper's tables.

    Mean ± deviation over seeds, and paired differences.
    """
    from egcnn import comparison
    from egcnn.data import open_dataset
    from egcnn.inference import choose_device
    from egcnn.machine import first_process
    from egcnn.nn import BACKBONES
    from egcnn.report import try_report
    from egcnn.terminal import Terminal, counted, say, show
    from egcnn.training import plan

    chosen = choices(
        "--backbones", ",".join(BACKBONES) if backbones is None else backbones, tuple(BACKBONES)
    )
    kinds = choices("--arms", arms, tuple(comparison.KINDS))
    dataset = open_dataset(data)
    config = plan(dataset, choose_device(device))
    given = {"epochs": epochs, "fold": fold}
    config = config.change({name: value for name, value in given.items() if value is not None})
    config = config.parse(settings or [])
    compared = [comparison.Arm(b, kind) for kind in kinds for b in chosen]  # type: ignore[arg-type]
    for setting in (re.sub(r"\s*=\s*", "=", text) for text in vary or []):
        fixed = {"network.backbone.name", "network.edge", "seed"}
        if taken := fixed.intersection(config.read(setting.split())):
            raise InputError(
                f"--vary {setting}: {taken.pop()} cannot be varied here; --backbones, --arms and "
                "--seeds are for that"
            )
        compared += [comparison.Arm(b, "egcnn", setting) for b in chosen]
    # Every device runs this command.
    first = first_process()
    if first:
        _say_unlabelled(dataset, stderr=as_json)
    console = Terminal(soft_wrap=True, quiet=not first, stderr=as_json)
    runs = comparison.compare(
        dataset,
        config,
        output,
        arms=compared,
        seeds=seeds,
        device=device,
        cache=cache,
        console=console,
    )
    if not first:
        return
    # Files first: nothing that is wrong with the terminal loses them.
    written = comparison.write_comparison(runs, output)
    if as_json:
        say(written[2].read_text(encoding="utf-8"))
        try_report(output, device=device)
        return
    show(comparison.as_table(f"Mean ± deviation, {counted(seeds, 'seed')}", comparison.rows(runs)))
    show(comparison.as_table("Edges", comparison.edge_rows(runs)))
    if lines := comparison.difference_rows(runs):
        show(comparison.as_table("Differences, paired by seed", lines))
    for path in written:
        say(str(path))
    if (page := try_report(output, device=device)) is not None:
        say(str(page))
