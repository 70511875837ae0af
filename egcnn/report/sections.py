"""The sections of the page as plain data: tables, curves and provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from egcnn import comparison as compared
from egcnn.data.case import read_edges, read_label
from egcnn.edges import EdgeGrid
from egcnn.evaluation import MEAN, Evaluation
from egcnn.metrics import LESION_METRICS, METRICS, VOXEL_METRICS, mean_and_deviation
from egcnn.report import curves
from egcnn.report.found import Evaluated, Training
from egcnn.report.measures import Measures, add_case, measures
from egcnn.report.tables import edge_rows, region_rows
from egcnn.terminal import counted

_WORST = 5
#: Errors and edges are counted in at most so many cases, from the worst to the best.
_MEASURED = 12
_LOSSES = {"total": "loss", "segmentation": "semantic", "consistency": "consistency"}
_HASH = 16
# Diagrams whose values lie between 0 and 1.
_SHARES = ("Dice", "Edges")


def comparison_tables(comparison: compared.Comparison) -> dict[str, list[dict[str, str]]]:
    """The tables of a comparison by title; see :mod:`egcnn.comparison.tables`."""
    seeds = counted(len({result.seed for result in comparison.results}), "seed")
    tables = {
        f"Mean ± deviation, {seeds}": compared.rows(comparison),
        "Edges": compared.edge_rows(comparison),
        "Differences, paired by seed": compared.difference_rows(comparison),
    }
    return {title: lines for title, lines in tables.items() if lines}


def tiles(evaluated: Evaluated) -> dict[str, str]:
    """The numbers to read first."""
    summary = evaluated.evaluation.summary()
    names = ("dice", "surface_dice", "hd95", "edge_f1")
    titles = (*(METRICS[name].title for name in names[:3]), "Edge F1")
    shown = {"Cases": str(len(evaluated.evaluation.cases))}
    for name, title in zip(names, titles, strict=True):
        value = summary[MEAN][name]["mean"]
        if not math.isnan(value):
            digits = METRICS[name.removeprefix("edge_")].digits
            shown[f"Mean {title}"] = f"{value:.{digits}f}"
    return shown


def scores(evaluated: Evaluated, title: str) -> dict[str, Any]:
    """The tables by region, the spread over cases, and the worst cases of an evaluation."""
    evaluation = evaluated.evaluation
    tables = {"Segmentation": region_rows(evaluation, VOXEL_METRICS)}
    if edges := edge_rows(evaluation):
        tables[f"Edges, taken on {evaluation.edge_space}"] = edges
    if LESION_METRICS[0] in evaluation.columns:
        tables["Lesions"] = region_rows(evaluation, LESION_METRICS)
    regions = list(next(iter(evaluation.cases.values())))
    spreads = {
        metric: {
            region: [case[region][metric] for case in evaluation.cases.values()]
            for region in regions
        }
        for metric in ("dice", "hd95")
    }
    cases = [_case(evaluation, name, dice) for name, dice in evaluated.ranking]
    missing = len(evaluation.missing)
    said = counted(len(evaluation.cases), "case")
    said += f"; {missing} labelled cases have no prediction and are left out" if missing else ""
    return {
        "title": title,
        "said": said,
        "tables": tables,
        "charts": {
            f"{METRICS[metric].title} by region": curves.spread(
                values, METRICS[metric].title, f"{metric} {title}", zero=metric == "hd95"
            )
            for metric, values in spreads.items()
        },
        "worst": cases[:_WORST],
        "others": cases[_WORST:],
    }


def _case(evaluation: Evaluation, name: str, dice: float) -> dict[str, str]:
    regions = evaluation.cases[name]
    hd95 = mean_and_deviation([region["hd95"] for region in regions.values()])[0]
    numbers = {f"{region} Dice": ("dice", row["dice"]) for region, row in regions.items()}
    columns = {"Mean Dice": ("dice", dice), **numbers, "Mean HD95 (mm)": ("hd95", hd95)}
    texts = {
        title: "" if math.isnan(value) else f"{value:.{METRICS[metric].digits}f}"
        for title, (metric, value) in columns.items()
    }
    return {"Case": name, **texts}


def chosen(evaluations: Sequence[Evaluated]) -> dict[str, str]:
    """The worst, the median and the best case that all evaluations can draw, and why."""
    first, *others = evaluations
    names = [name for name in first.drawable if all(name in other.drawable for other in others)]
    dice = dict(first.ranking)
    reasons = {"Best": len(names) - 1, "Median": (len(names) - 1) // 2, "Worst": 0}
    why = {names[place]: reason for reason, place in reasons.items() if names}
    if len(names) == 1:
        why = {names[0]: "The only"}
    ordered = [name for name in names if name in why]
    return {name: f"{why[name]} case, mean Dice {dice[name]:.3f}" for name in ordered}


def measured(evaluated: Evaluated) -> Measures | None:
    """Count errors and edges over the cases of an evaluation; None without any at hand.

    Raises:
        InputError: a damaged file.
    """
    dataset, names = evaluated.dataset, list(evaluated.drawable)
    if dataset is None or not names:
        return None
    step = (len(names) - 1) / max(1, _MEASURED - 1)
    some = names if len(names) <= _MEASURED else [names[round(i * step)] for i in range(_MEASURED)]
    cases = [evaluated.drawable[name] for name in some]
    labels = [read_label(case, dataset.regions) for case in cases]
    sums = measures(dataset.regions, max(float(x.pixdim.max()) for x in labels))
    for case, truth in zip(cases, labels, strict=True):
        predicted = read_label(case, dataset.regions, evaluated.prediction(case.name))
        file = evaluated.edges(case.name)
        edges = None if file is None else read_edges(case, file, dataset.regions).numpy()
        grid = EdgeGrid(truth.affine.numpy(), evaluated.evaluation.edge_spacing(case.name))
        volumes = truth.numpy()[0], predicted.numpy()[0]
        add_case(sums, *volumes, edges, dataset.regions, [float(n) for n in truth.pixdim], grid)
    return sums


def training_charts(trainings: Sequence[Training]) -> dict[str, dict[str, str]]:
    """The curves of one training, or of several in the same diagrams."""
    known = [training for training in trainings if training.history]
    if not known:
        return {}
    if len(known) == 1:
        return {"": _one_training(known[0])}
    diagrams = (("Loss", "loss", "loss"), ("Dice", "dice", "mean Dice of the held-out cases"))
    return {
        "": {
            title: curves.lines(
                {run.title: curves.column(run.history, name) for run in known},
                "epoch",
                label,
                title,
                share=title in _SHARES,
            )
            for title, name, label in (*diagrams, ("Learning rate", "lr", "learning rate"))
        }
    }


def _one_training(run: Training) -> dict[str, str]:
    rows = run.history
    edges = "edge" if "edge" in rows[0] else None
    losses = {**_LOSSES, **({"edges": edges} if edges else {})}
    dice = {name: f"dice_{name}" for name in run.regions}
    heads = {name: f"edge_f1_{name}" for name in run.regions}
    charts: dict[str, tuple[str, dict[str, str]]] = {
        "Losses": ("loss", losses),
        "Dice": ("Dice of the held-out cases", {**dice, MEAN: "dice"}),
        "Edges": ("F1 of the edge head", heads),
        "Learning rate": ("learning rate", {"learning rate": "lr"}),
    }
    drawn = {
        title: (label, curves.history(rows, names)) for title, (label, names) in charts.items()
    }
    return {
        title: curves.lines(series, "epoch", label, title, share=title in _SHARES)
        for title, (label, series) in drawn.items()
        if series
    }


def provenance(
    trainings: Sequence[Training], evaluations: Sequence[Evaluated]
) -> dict[str, dict[str, str]]:
    """What the results come from, by folder."""
    facts = {f"Training {run.title}": _training_facts(run) for run in trainings}
    if len(trainings) == 1:
        hashes = (f"{path.name} {sha[:_HASH]}" for path, sha in trainings[0].checkpoints)
        facts[f"Training {trainings[0].title}"]["Checkpoints (SHA-256)"] = ", ".join(hashes)
    for evaluated in evaluations:
        networks = {
            str(source["origin"].get("checkpoint")): source["origin"]
            for source in evaluated.evaluation.sources.values()
        }
        for checkpoint, origin in networks.items():
            versions = origin.get("versions")
            facts[f"Predictions of {evaluated.title}"] = {
                "Network (SHA-256)": checkpoint[:_HASH],
                "Training steps": str(origin.get("steps", "unknown")),
                "Training data (SHA-256)": str(origin.get("data", "unknown"))[:_HASH],
                "Made with": _versions(versions if isinstance(versions, Mapping) else {}),
            }
    return facts


def _training_facts(run: Training) -> dict[str, str]:
    described = run.described
    config, dataset = described.config, described.dataset
    network = config.network
    split = described.split
    patch = "x".join(map(str, config.preprocessing.patch))
    edge = " with edge stream" if network.edge else " without edge stream"
    return {
        "Network": f"{network.backbone.name}, {network.backbone.filters} filters,{edge}",
        "Data": f"layout {dataset.get('layout', 'unknown')}, {len(split['train'])} cases to train "
        f"on, {len(split['validation'])} held out",
        "Training": f"{len(run.history)} of {counted(config.epochs, 'epoch')}, batches of "
        f"{config.batch_size} patches of {patch} voxels, seed {config.seed}",
        "Made with": _versions(described.versions),
    }


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())


def configurations(trainings: Sequence[Training]) -> dict[str, str]:
    """The hyperparameters of trainings, as JSON."""
    return {run.title: json.dumps(run.described.config.to_dict(), indent=1) for run in trainings}
