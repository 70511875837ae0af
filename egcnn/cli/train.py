"""Commands that train: one run, or a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egcnn.cli.options import CACHE, DEVICE, FOLD, PRECISION, SET, choices, triple
from egcnn.cli.root import app
from egcnn.errors import InputError

if TYPE_CHECKING:
    import torch

    from egcnn.data import Dataset
    from egcnn.training import TrainingConfig


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Dataset folder; its layout is detected.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run.")],
    edge: Annotated[
        bool | None,
        typer.Option("--edge/--no-edge", help="Train with the edge stream (default) or without."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper: follow the paper's equations literally instead of the tuned defaults."
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone, such as unet.")] = None,
    filters: Annotated[
        int | None, typer.Option(help="Number of filters at full resolution.")
    ] = None,
    patch: Annotated[str | None, typer.Option(help="Patch size in voxels, as D,H,W.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of training epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Patches per step over all devices.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, case order, augmentation and noise.")
    ] = None,
    fold: Annotated[int | None, FOLD] = None,
    settings: Annotated[list[str] | None, SET] = None,
    device: Annotated[str, DEVICE] = "auto",
    devices: Annotated[
        int | None, typer.Option(help="Number of devices that share a batch.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Number of machines, each with DEVICES devices.")
    ] = None,
    precision: Annotated[str | None, PRECISION] = None,
    cache: Annotated[Path | None, CACHE] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Parts in which a device takes its share of a batch, one by one."),
    ] = None,
    clip_gradients: Annotated[
        float | None, typer.Option(help="Largest norm of the gradients; longer ones are scaled.")
    ] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing/--no-activation-checkpointing",
            help="Compute activations anew in backward: less memory, more time.",
        ),
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the network with torch.compile."),
    ] = None,
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option(help="Minutes after which a checkpoint is written within an epoch."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUTPUT.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in OUTPUT.")
    ] = False,
) -> None:
    """Train on a dataset. Options not given are chosen to suit it; see OUTPUT/config.json."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite: both given; expected one of them")
    from egcnn.data import open_dataset
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
        say(_described(dataset, config, where))
        _say_unlabelled(dataset)
    existing: IfExists = "resume" if resume else "overwrite" if overwrite else "error"
    run = fit(config, dataset, output, existing=existing, device=device, cache=cache)
    if not first:
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
    labelled = sum(case.label is not None for case in dataset.cases)
    network = config.network
    return (
        f"{dataset.root}: {dataset.layout} layout, {labelled} labelled cases, "
        f"{'edge-gated ' if network.edge else ''}{network.backbone.name} with "
        f"{network.backbone.filters} filters, "
        f"patch {'x'.join(map(str, config.preprocessing.patch))}, {config.epochs} epochs, batch "
        f"{config.batch_size}, {config.devices * config.nodes} x {device.type} ({config.precision})"
    )


def _say_unlabelled(dataset: Dataset) -> None:
    """Say in one line which cases cannot be trained on; nothing if all have a label."""
    from egcnn.terminal import say

    names = [case.name for case in dataset.cases if case.label is None]
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        say(
            f"{len(names)} of {len(dataset.cases)} cases have no label and are left out: "
            f"{', '.join(names[:8])}{more}"
        )


@app.command()
def compare(
    data: Annotated[Path, typer.Argument(help="Dataset folder; its layout is detected.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of all runs.")],
    backbones: Annotated[
        str | None, typer.Option(help="Backbones to compare, separated by commas; all by default.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Arms: none (backbone alone), larger (with EG-CNN's parameters), consistency "
            "(alone, with the consistency loss), egcnn and paper (EG-CNN with the preset paper, "
            "overriding --set), separated by commas."
        ),
    ] = "none,egcnn",
    seeds: Annotated[int, typer.Option(help="Runs per arm, with seeds 0, 1, ...")] = 3,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Also run EG-CNN with other settings: NAME=VALUE, several quoted. May "
            "be given repeatedly."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of training epochs.")] = None,
    fold: Annotated[int | None, FOLD] = None,
    settings: Annotated[list[str] | None, SET] = None,
    device: Annotated[str, DEVICE] = "auto",
    cache: Annotated[Path | None, CACHE] = None,
) -> None:
    """Train backbones with and without the edge stream: the paper's table, mean ± deviation.

    Run again with the same OUTPUT, it continues where it was interrupted.
    """
    from egcnn import comparison
    from egcnn.data import open_dataset
    from egcnn.inference import choose_device
    from egcnn.machine import first_process
    from egcnn.nn import BACKBONES
    from egcnn.report import write_report
    from egcnn.terminal import Terminal, say, show
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
        _say_unlabelled(dataset)
    console = Terminal(soft_wrap=True, quiet=not first)
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
    show(comparison.as_table(f"Mean ± deviation, {seeds} seeds", comparison.rows(runs)))
    show(comparison.as_table("Edges", comparison.edge_rows(runs)))
    if lines := comparison.difference_rows(runs):
        show(comparison.as_table("Differences, paired by seed", lines))
    for path in (*written, write_report(output, device=device)):
        say(str(path))
